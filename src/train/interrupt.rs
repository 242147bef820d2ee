//! SIGINT and SIGTERM: the first asks a run to stop after its step, the second ends the process.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::error::{Error, Result};

static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Exit code after SIGINT, as shells expect it.
pub const INTERRUPTED: i32 = 130;

/// Installs the handler, once per process.
pub fn install() -> Result<()> {
    let handler = || {
        if SIGNAL.swap(2, Ordering::SeqCst) != 0 {
            std::process::exit(INTERRUPTED);
        }
    };
    match ctrlc::set_handler(handler) {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        Err(error) => Err(Error::Training { reason: format!("signal handler: {error}") }),
    }
}

/// The signal that asked for a stop, if any.
pub fn requested() -> Option<i32> {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}
