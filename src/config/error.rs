//! What is wrong with a file: everything at once, a line for each.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::FILE_BYTES_MAX;

/// One thing that is wrong. No message ever holds a secret, or a value that may contain one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The first line of a file is 1.
    pub line: usize,
    /// The path of the key, such as `handler.mail.timeout`; empty if the line could not be understood.
    pub key: String,
    /// What is wrong and what the rule is, without a line break.
    pub message: String,
}

/// Everything that is wrong with a file, in the order of its lines. Displayed as one line per error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    pub file: String,
    pub errors: Vec<Error>,
}

/// More errors than this are only counted: a file that has them is not a configuration.
const ERRORS_MAX: usize = 1000;

impl Errors {
    /// Sorts by line, and drops what was found twice.
    pub(super) fn new(file: &str, mut errors: Vec<Error>) -> Self {
        errors.sort_by(|a, b| (a.line, &a.key, &a.message).cmp(&(b.line, &b.key, &b.message)));
        errors.dedup();
        if let Some(first_unlisted) = errors.get(ERRORS_MAX) {
            let (line, count) = (first_unlisted.line, errors.len() - ERRORS_MAX);
            errors.truncate(ERRORS_MAX);
            errors.push(Error { line, key: String::new(), message: format!("{count} more errors from here on") });
        }
        Self { file: file.to_owned(), errors }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}:{error}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: the configuration cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: a configuration has at most {FILE_BYTES_MAX} bytes, this file is larger", path.display())]
    TooLarge { path: PathBuf },
    #[error(transparent)]
    Invalid(#[from] Errors),
}
