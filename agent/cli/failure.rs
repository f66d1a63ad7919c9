//! How a command ends when it does not end well.

use crate::control::client::ClientError;
use std::io::Write;
use std::process::ExitCode;

/// Exit statuses of the interface: 1, 2, 3.
#[derive(Debug)]
pub(super) enum Failure {
    /// The thing asked for failed.
    Failed(String),
    /// Usage or configuration.
    Usage(String),
    /// Usage or configuration, and everything about it was said already.
    Said,
    /// The daemon is not reachable.
    Unreachable(String),
    /// Nobody reads on.
    Enough,
}

impl Failure {
    /// One line on standard error, and the exit status.
    pub fn report(self) -> ExitCode {
        let (code, line) = match self {
            Failure::Failed(line) => (1, line),
            Failure::Usage(line) => (2, line),
            Failure::Said => (2, String::new()),
            Failure::Unreachable(line) => (3, line),
            Failure::Enough => (0, String::new()),
        };
        if !line.is_empty() {
            // With standard error closed there is nobody to tell.
            let _ = std::io::stderr().write_all(format!("pgsquire: {line}\n").as_bytes());
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        match e {
            ClientError::Unreachable { .. } => Failure::Unreachable(e.to_string()),
            ClientError::Refused(_) => Failure::Failed(format!("the daemon refused: {e}")),
        }
    }
}
