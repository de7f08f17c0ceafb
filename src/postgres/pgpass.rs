//! The password file of libpq: <https://www.postgresql.org/docs/current/libpq-pgpass.html>.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What a password is looked up by; the fields are in the order of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: &'a str,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The text of the password file; `Ok(None)` if there is none. An error is one line that says why it is not used.
pub(super) fn read(path: &Path) -> Result<Option<String>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("password file {} is not used: {error}", path.display())),
    };
    if !metadata.is_file() {
        return Err(format!("password file {} is not used: it is not a plain file", path.display()));
    }
    if let Some(wrong) = read_by_others(path) {
        return Err(format!("password file {} is not used: {wrong}", path.display()));
    }
    fs::read_to_string(path).map(Some).map_err(|error| format!("password file {} is not used: {error}", path.display()))
}

/// What is wrong with the mode of a file that holds a secret.
pub(super) fn read_by_others(path: &Path) -> Option<String> {
    let open = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
    open.then(|| format!("others may read it; do: chmod 600 {}", path.display()))
}

/// The password of the first line that matches.
pub(super) fn password(file: &str, wanted: Wanted<'_>) -> Option<String> {
    let values = [wanted.host, wanted.port, wanted.database, wanted.user];
    file.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for value in values {
            let (field, after) = field(rest);
            if field != "*" && unescaped(field) != value {
                return None;
            }
            rest = after?;
        }
        // A colon ends a password only because libpq reads it as a field; anything after it is ignored there too.
        let password = unescaped(field(rest).0);
        (!password.is_empty()).then_some(password)
    })
}

/// The text up to the next colon that is not escaped, and what follows that colon.
fn field(text: &str) -> (&str, Option<&str>) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

fn unescaped(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        // A backslash at the very end stands for itself.
        text.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str) -> Option<String> {
        password(file, Wanted { host: "db", port: "5432", database: "app:1", user: "me" })
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        assert_eq!(found("db:5432:app\\:1:me:first\ndb:5432:*:me:second"), Some("first".into()));
        assert_eq!(found("other:*:*:*:no\n*:*:*:*:any"), Some("any".into()));
        assert_eq!(found("# *:*:*:*:comment\n\nshort:line\n"), None);
        assert_eq!(found("db:5432:app:me:another database"), None);
        assert_eq!(found("*:*:*:*:\n"), None);
    }

    #[test]
    fn escapes_stand_for_the_character_itself() {
        assert_eq!(found(r"*:*:*:*:a\:b\\c"), Some(r"a:b\c".into()));
        assert_eq!(found(r"*:*:*:*:ends with \"), Some(r"ends with \".into()));
        assert_eq!(found(r"\*:*:*:*:a host called star"), None);
        assert_eq!(found("*:*:*:*: spaces kept "), Some(" spaces kept ".into()));
    }
}
