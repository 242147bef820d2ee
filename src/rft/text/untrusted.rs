//! Foreign files and the libraries that read them.

use std::cell::Cell;
use std::path::Path;
use std::sync::Once;

use serde_json::Value;

use crate::io::json;
use gradus::error::{Error, Result};

/// The text of a file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = json::read_limited(path, limit)?;
    String::from_utf8(bytes).map_err(|e| Error::format(path, format!("is not UTF-8: {e}")))
}

/// The object of a JSON file; `Null` where there is none.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    match path.exists() {
        true => json::read_object(path).map(Value::Object),
        false => Ok(Value::Null),
    }
}

thread_local! {
    /// Whether this thread runs code whose panics become errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that become errors from being printed. The hook of before sees all others.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                before(panic);
            }
        }));
    });
}

/// Runs code of a dependency that may panic on a hostile file; a panic becomes an error about
/// `path`, and nothing is printed.
pub(crate) fn guarded<T>(path: &Path, what: &str, run: impl FnOnce() -> T) -> Result<T> {
    install_hook();
    let outer = GUARDED.replace(true);
    // What `run` borrows is either dropped with the error or read-only.
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    GUARDED.set(outer);
    done.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Error::format(path, format!("{what} panicked on this file: {words}"))
    })
}

/// Stack of the thread that reads hostile input, in bytes; only what is used is ever backed by memory.
/// A template can nest a value 400,000 levels deep within its budget; 256 MiB, 670 bytes a level, were
/// too little for a build with counters.
const STACK: usize = 1 << 30;

/// [`guarded`] on a thread of its own with a large stack. Templates and schemas can nest deeper than
/// their libraries count, and what is nested is built, compared and dropped recursively; an
/// overflowing stack would end the process.
pub(crate) fn contained<T: Send>(
    path: &Path,
    what: &str,
    run: impl FnOnce() -> T + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let work = move || guarded(path, what, run);
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let no_thread = |e: std::io::Error| Error::OutOfMemory {
            what: format!("a thread for {what} ({e})"),
            bytes: STACK as u64,
        };
        let ended = thread.map_err(no_thread)?.join();
        ended.map_err(|_| Error::format(path, format!("the thread of {what} panicked")))?
    })
}
