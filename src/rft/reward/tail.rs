//! The end of what a child process writes to its standard error.

use std::io::{self, Read};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of standard error that are kept.
const KEPT: usize = 2048;

/// How long the last words of a process are waited for.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(100);

/// Reads a stream on a thread of its own, so that no process is held up by it, and keeps its end.
pub(super) struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Ends when the stream does.
    reader: JoinHandle<()>,
}

impl Tail {
    pub fn of(stream: ChildStderr) -> io::Result<Tail> {
        let kept = Arc::default();
        let inner = Arc::clone(&kept);
        let reader = thread::Builder::new().spawn(move || keep(stream, &inner))?;
        Ok(Tail { kept, reader })
    }

    /// What is kept, once the process has ended.
    pub fn text(&self) -> String {
        // A process that left the group may hold the stream open: the wait has an end.
        let pause = Duration::from_millis(1);
        for _ in 0..LAST_WORDS.as_millis() / pause.as_millis() {
            if self.reader.is_finished() {
                break;
            }
            thread::sleep(pause);
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_string()
    }
}

fn keep(mut stream: ChildStderr, kept: &Mutex<Vec<u8>>) {
    let mut chunk = [0; KEPT];
    while let Ok(read @ 1..) = stream.read(&mut chunk) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }
}
