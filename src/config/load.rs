//! The file and the secrets as this machine has them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::{Error, Errors, LoadError};
use super::expand::FILE;
use super::{Config, FILE_BYTES_MAX};

/// The largest secret that is read from a file.
const SECRET_BYTES_MAX: u64 = 65_536;

impl Config {
    /// Reads a file. `${NAME}` is a variable of the environment, else a systemd credential; `${file:/PATH}` is what stands in that
    /// file.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let file = path.display().to_string();
        let bytes = read(path, FILE_BYTES_MAX)
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?
            .ok_or_else(|| LoadError::TooLarge { path: path.to_owned() })?;
        let text = str::from_utf8(&bytes).map_err(|e| not_utf8(&file, &bytes[..e.valid_up_to()]))?;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        let env = |name: &str| match name.strip_prefix(FILE) {
            Some(path) => secret(Path::new(path)),
            None => std::env::var(name).ok().or_else(|| secret(&Path::new(credentials.as_deref()?).join(name))),
        };
        Ok(Self::parse(text, &file, &env)?)
    }
}

fn not_utf8(file: &str, valid: &[u8]) -> Errors {
    let line = valid.split(|&b| b == b'\n').count();
    let message = "this is not UTF-8; a configuration is UTF-8 text".to_owned();
    Errors::new(file, vec![Error { line, key: String::new(), message }])
}

/// What stands in a file, without the newline at its end.
pub(super) fn secret(path: &Path) -> Option<String> {
    // To open a pipe could last for ever.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let bytes = read(path, SECRET_BYTES_MAX).ok()??;
    let mut text = String::from_utf8(bytes).ok()?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Some(text)
}

/// The whole file, or `None` if it has more than `bytes_max`.
fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}
