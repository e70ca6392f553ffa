//! [`Failure`]: why a command did not do what it was asked, and the exit code that says so.

use std::fmt::Display;
use std::io;
use std::path::Path;

use graviton_engine::port::{ErrorKind, StorageError};

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Called wrongly.
    Usage = 2,
    /// No blob has the key.
    NotFound = 3,
    /// What is on disk is not what was written.
    Corruption = 4,
}

impl Exit {
    /// The code to leave with when both happened: damage first, then failure, then absence.
    pub fn worse(self, other: Self) -> Self {
        let rank = |exit| match exit {
            Self::Done => 0,
            Self::NotFound => 1,
            Self::Usage => 2,
            Self::Failed => 3,
            Self::Corruption => 4,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

/// Why a command failed.
#[derive(Debug, Clone)]
pub enum Failure {
    /// To be shown in one line.
    Error {
        /// The exit code.
        exit: Exit,
        /// What kind it is, for machines.
        kind: &'static str,
        /// One line for people, without `graviton: `.
        message: String,
    },
    /// Everything was shown already; only the exit code is left.
    Reported(Exit),
    /// Nobody reads standard output any more: ends quietly.
    BrokenPipe,
}

impl Failure {
    /// The command was called wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Error {
            exit: Exit::Usage,
            kind: "usage",
            message: message.into(),
        }
    }

    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Error {
            exit: Exit::Failed,
            kind: "failed",
            message: message.into(),
        }
    }

    /// A system call on a file did not work. `doing` completes "cannot ...".
    pub fn file(doing: &str, path: &Path, error: &(impl Display + ?Sized)) -> Self {
        Self::Error {
            exit: Exit::Failed,
            kind: "io",
            message: format!("cannot {doing} {}: {error}", path.display()),
        }
    }

    /// Standard output did not take what was written.
    pub fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::Error {
            exit: Exit::Failed,
            kind: "io",
            message: format!("cannot write to standard output: {error}"),
        }
    }

    /// The same in other words.
    pub fn saying(self, message: String) -> Self {
        match self {
            Self::Error { exit, kind, .. } => Self::Error {
                exit,
                kind,
                message,
            },
            other => other,
        }
    }

    /// The exit code it leads to.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Error { exit, .. } | Self::Reported(exit) => *exit,
            Self::BrokenPipe => Exit::Done,
        }
    }

    /// Whether the store itself can't go on, so that trying the next blob is no use.
    pub fn ends_everything(&self) -> bool {
        match self {
            Self::Error { kind, .. } => matches!(*kind, "no_space" | "unavailable"),
            Self::Reported(_) => false,
            Self::BrokenPipe => true,
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let (exit, kind) = match error.kind() {
            ErrorKind::NotFound => (Exit::NotFound, "not_found"),
            ErrorKind::Corruption => (Exit::Corruption, "corruption"),
            ErrorKind::Conflict => (Exit::Failed, "conflict"),
            ErrorKind::Denied => (Exit::Failed, "denied"),
            ErrorKind::NoSpace => (Exit::Failed, "no_space"),
            ErrorKind::Io => (Exit::Failed, "io"),
            ErrorKind::Unavailable => (Exit::Failed, "unavailable"),
            ErrorKind::InvalidInput => match error {
                // Only these two are wrong whatever the store holds.
                StorageError::InvalidKey { .. } | StorageError::InvalidArgument { .. } => {
                    (Exit::Usage, "usage")
                }
                _ => (Exit::Failed, "invalid_input"),
            },
            _ => (Exit::Failed, "failed"),
        };
        let mut message = error.to_string();
        if matches!(error, StorageError::NoStore { .. }) {
            message.push_str(" (graviton init makes one)");
        }
        Self::Error {
            exit,
            kind,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_decides() {
        assert_eq!(Exit::NotFound.worse(Exit::Failed), Exit::Failed);
        assert_eq!(Exit::Failed.worse(Exit::NotFound), Exit::Failed);
        assert_eq!(Exit::Failed.worse(Exit::Corruption), Exit::Corruption);
        assert_eq!(Exit::Done.worse(Exit::NotFound), Exit::NotFound);
        assert_eq!(Exit::Done.worse(Exit::Done), Exit::Done);
    }

    #[test]
    fn a_bad_key_is_a_usage_error() {
        let failure = Failure::from(StorageError::InvalidKey { length: 0 });
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
