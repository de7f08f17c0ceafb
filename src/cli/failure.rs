//! How a verb fails: one line and an exit code.

use std::process::ExitCode;

use crate::config::LoadError;
use crate::daemon::DaemonError;
use crate::observe::chain;
use crate::postgres::{ConnectError, MigrateError, ThrowawayError};
use crate::store;

/// A message for the operator and the code the process ends with.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Something did not work.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The configuration, or the database's set-up, is wrong: trying again does not help.
    pub(super) fn config(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }

    /// An operator names an event that is not there.
    pub(super) fn no_event(id: i64) -> Self {
        Self::new(format!("there is no event {id} in the log or in outbox.open"))
    }

    /// An operator names a handler that is not there.
    pub(super) fn no_handler(name: &str, known: &[(String, bool)]) -> Self {
        let known: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        Self::new(format!("there is no handler {name}; registered are: {}", known.join(", ")))
    }

    /// Something that should not be possible.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { code: 70, message: message.into() }
    }

    /// With an exit code of its own.
    pub(super) fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Prints the message and gives the exit code.
    pub(super) fn tell(self) -> ExitCode {
        use std::io::Write as _;
        if !self.message.is_empty() {
            // When stderr is gone there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "outboxd: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::config(chain(&error))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self { code: error.exit_code(), message: chain(&error) }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error.code().map(|code| code.code().to_owned()).as_deref() {
            Some("42501") => Self::config(format!("this role lacks a right: {error}")),
            Some(_) => Self::new(error.to_string()),
            None => Self { code: 69, message: error.to_string() },
        }
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        let code = match &error {
            MigrateError::Connect(error) => error.exit_code(),
            MigrateError::Unusable(_) | MigrateError::NoRight { .. } | MigrateError::Closed { .. } => 78,
            _ => 1,
        };
        Self { code, message: chain(&error) }
    }
}

impl From<ThrowawayError> for Failure {
    fn from(error: ThrowawayError) -> Self {
        let code = match &error {
            ThrowawayError::NotFound(_) => 69,
            ThrowawayError::Connect(error) => error.exit_code(),
            _ => 1,
        };
        Self { code, message: chain(&error) }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let code = if error.as_db_error().is_some() { 1 } else { 69 };
        Self { code, message: store::reason(&error) }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Connect(error) => error.into(),
            error => Self::config(chain(&error)),
        }
    }
}
