//! One error type for the whole crate. `Display` says what was wrong, what was expected and,
//! where there is one, what to do next. What it quotes of files, programs and models is shown with
//! its control characters escaped.

use std::fmt::{self, Write};
use std::path::PathBuf;

use crate::escape::Escaping;

/// Result of every fallible call of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. A refused call has written nothing. A call that fails later leaves its outputs
/// unspecified, and everything else as it was: what it wrote must not be read as a result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument is outside its contract; nothing was computed.
    InvalidArgument {
        /// The op or function that refused.
        op: &'static str,
        /// The argument's name as the documentation spells it.
        arg: String,
        /// What was passed.
        got: String,
        /// What the contract asks for.
        expected: String,
    },
    /// A value that must be finite is NaN or infinite.
    NonFinite {
        /// The op that refused.
        op: &'static str,
        /// The argument that holds the value.
        arg: String,
        /// Flat index of the first such value.
        index: usize,
    },
    /// Memory could not be had.
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// This machine has no usable GPU driver.
    NoDriver {
        /// What the probe found.
        reason: String,
    },
    /// The device failed in a way that ends its context.
    DeviceLost {
        /// The driver's words.
        reason: String,
    },
    /// A driver call failed; the device can go on.
    Driver {
        /// The driver function.
        call: &'static str,
        /// Its status.
        code: i32,
        /// The driver's words.
        reason: String,
    },
    /// The op cannot run there.
    Unsupported {
        /// The op that refused.
        op: &'static str,
        /// What is missing.
        reason: String,
    },
    /// Reading or writing a file failed.
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file was read but does not hold what it should.
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration value is wrong.
    Config {
        /// Dotted key, for example `rl.learning_rate`.
        key: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A reward function failed for more samples than the run allows.
    Reward {
        /// The last failure.
        reason: String,
    },
    /// Training cannot go on, for example after repeated non-finite steps.
    Training {
        /// What happened and at which step.
        reason: String,
    },
    /// The user asked to stop; state was saved.
    Interrupted {
        /// The signal's number: 1 (SIGHUP), 2 (SIGINT) or 15 (SIGTERM).
        signal: i32,
    },
}

impl Error {
    /// Stable status code, the same number the C ABI returns. 0 is success and never an error.
    pub fn code(&self) -> i32 {
        match self {
            Error::InvalidArgument { .. } => 1,
            Error::NonFinite { .. } => 2,
            Error::OutOfMemory { .. } => 3,
            Error::NoDriver { .. } => 4,
            Error::DeviceLost { .. } => 5,
            Error::Io { .. } => 6,
            Error::Format { .. } => 7,
            Error::Config { .. } => 8,
            Error::Reward { .. } => 9,
            Error::Training { .. } => 10,
            Error::Interrupted { .. } => 11,
            Error::Driver { .. } => 12,
            Error::Unsupported { .. } => 13,
        }
    }

    /// [`Error::InvalidArgument`] from anything printable.
    pub fn invalid(
        op: &'static str,
        arg: impl Into<String>,
        got: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Error {
        Error::InvalidArgument {
            op,
            arg: arg.into(),
            got: got.to_string(),
            expected: expected.into(),
        }
    }

    /// [`Error::Io`] for `path`, to be used with `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// [`Error::Format`] for `path`.
    pub fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Error {
        Error::Format { path: path.into(), reason: reason.into() }
    }

    /// [`Error::Config`] for `key`.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Config { key: key.into(), reason: reason.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Escaping::message(f);
        match self {
            Error::InvalidArgument { op, arg, got, expected } => {
                write!(f, "{op}: argument `{arg}`: got {got}, expected {expected}")
            }
            Error::NonFinite { op, arg, index } => {
                write!(f, "{op}: argument `{arg}` holds NaN or infinity at element {index}")
            }
            Error::OutOfMemory { what, bytes } => {
                write!(f, "out of memory: {what} needs {bytes} bytes")
            }
            Error::NoDriver { reason } => write!(f, "no GPU driver: {reason}"),
            Error::DeviceLost { reason } => write!(f, "device lost: {reason}"),
            Error::Driver { call, code, reason } => {
                write!(f, "driver call {call} failed with status {code}: {reason}")
            }
            Error::Unsupported { op, reason } => write!(f, "{op}: unsupported: {reason}"),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Format { path, reason } => write!(f, "{}: {reason}", path.display()),
            Error::Config { key, reason } => write!(f, "config `{key}`: {reason}"),
            Error::Reward { reason } => write!(f, "reward: {reason}"),
            Error::Training { reason } => write!(f, "training stopped: {reason}"),
            Error::Interrupted { signal: 1 } => write!(f, "stopped by SIGHUP"),
            Error::Interrupted { signal: 2 } => write!(f, "stopped by SIGINT"),
            Error::Interrupted { signal: 15 } => write!(f, "stopped by SIGTERM"),
            Error::Interrupted { signal } => write!(f, "stopped by signal {signal}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
