//! From a `Result` to a status and a text that the caller's thread can ask for. Nothing unwinds past
//! [`guard`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use gradus::{Error, Result};

use crate::sys;

// None of these has a destructor: they are there in a thread's first call, whose memory may have to come
// from nowhere, and in its last, which may be made by a destructor of the caller's own.
thread_local! {
    static LAST: RefCell<Text<2048>> = const { RefCell::new(Text::new()) };
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Text<256>> = const { RefCell::new(Text::new()) };
}

/// A C string in a fixed place; what does not fit is left out.
struct Text<const SIZE: usize> {
    bytes: [u8; SIZE],
    len: usize,
}

impl<const SIZE: usize> Text<SIZE> {
    const fn new() -> Self {
        Text { bytes: [0; SIZE], len: 0 }
    }

    fn clear(&mut self) {
        (self.bytes[0], self.len) = (0, 0);
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<const SIZE: usize> Write for Text<SIZE> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            let mut buffer = [0; 4];
            let piece = if c == '\0' { "\\0" } else { c.encode_utf8(&mut buffer) };
            // One byte is the final NUL's.
            if self.len + piece.len() >= SIZE {
                return Err(std::fmt::Error);
            }
            self.bytes[self.len..][..piece.len()].copy_from_slice(piece.as_bytes());
            self.len += piece.len();
        }
        self.bytes[self.len] = 0;
        Ok(())
    }
}

/// What an export failed with.
#[derive(Debug)]
pub(crate) enum Failure {
    Error(Error),
    BadHandle(u64),
    Panic(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

impl Failure {
    fn status(&self) -> sys::gradus_status {
        match self {
            Failure::Error(error) => error.code(),
            Failure::BadHandle(_) => sys::GRADUS_BAD_HANDLE as i32,
            Failure::Panic(_) => sys::GRADUS_PANIC as i32,
        }
    }

    fn write(&self, to: &mut impl Write) -> std::fmt::Result {
        match self {
            Failure::Error(error) => write!(to, "{error}"),
            Failure::BadHandle(handle) => write!(
                to,
                "argument `ctx`: got {handle:#x}, expected a context that gradus_create gave and \
                 gradus_destroy has not taken"
            ),
            Failure::Panic(what) => write!(to, "gradus has a bug, please report it: {what}"),
        }
    }
}

/// The body of every export: a status, and for a failure its text. Panics become `GRADUS_PANIC`.
pub(crate) fn guard(body: impl FnOnce() -> std::result::Result<(), Failure>) -> sys::gradus_status {
    static HOOK: Once = Once::new();
    HOOK.call_once(install_hook);
    GUARDED.set(true);
    // What a panicking body leaves behind is its own locals: shared state is behind locks that
    // recover from poison.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
    GUARDED.set(false);
    let failure = match outcome {
        Ok(Ok(())) => return sys::GRADUS_OK as i32,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::Panic(panic_text(&*payload)),
    };
    LAST.with_borrow_mut(|last| {
        last.clear();
        // A text that is too long ends early.
        let _ = failure.write(last);
        last.bytes[last.len] = 0;
    });
    failure.status()
}

/// Panics under a guard are the caller's to hear of, not standard error's.
fn install_hook() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if GUARDED.get() {
            PLACE.with_borrow_mut(|place| {
                place.clear();
                let _ = info.location().map_or(Ok(()), |at| write!(place, " at {at}"));
            });
        } else {
            before(info);
        }
    }));
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_string());
    PLACE.with_borrow(|place| text + place.as_str())
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gradus_last_error() -> *const c_char {
    LAST.with_borrow(|text| text.bytes.as_ptr().cast())
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gradus_status_string(status: sys::gradus_status) -> *const c_char {
    let name: &CStr = match status as u32 {
        sys::GRADUS_OK => c"OK",
        sys::GRADUS_INVALID_ARGUMENT => c"INVALID_ARGUMENT",
        sys::GRADUS_NON_FINITE => c"NON_FINITE",
        sys::GRADUS_OUT_OF_MEMORY => c"OUT_OF_MEMORY",
        sys::GRADUS_NO_DRIVER => c"NO_DRIVER",
        sys::GRADUS_DEVICE_LOST => c"DEVICE_LOST",
        sys::GRADUS_IO => c"IO",
        sys::GRADUS_FORMAT => c"FORMAT",
        sys::GRADUS_CONFIG => c"CONFIG",
        sys::GRADUS_DRIVER => c"DRIVER",
        sys::GRADUS_UNSUPPORTED => c"UNSUPPORTED",
        sys::GRADUS_BAD_HANDLE => c"BAD_HANDLE",
        sys::GRADUS_PANIC => c"PANIC",
        _ => c"unknown status",
    };
    name.as_ptr()
}

/// A pointer that must not be NULL.
pub(crate) fn given<'a, T>(op: &'static str, name: &str, at: *const T) -> Result<&'a T> {
    check_pointer(op, name, at)?;
    // SAFETY: not null and aligned; the header asks that it points to such a struct for the call.
    Ok(unsafe { &*at })
}

/// A pointer to a result, which must not be NULL.
pub(crate) fn given_mut<'a, T>(op: &'static str, name: &str, at: *mut T) -> Result<&'a mut T> {
    check_pointer(op, name, at)?;
    // SAFETY: as above, and nobody else looks at a result during the call.
    Ok(unsafe { &mut *at })
}

/// A pointer that is passed on without a look at what it points to.
pub(crate) fn not_null(op: &'static str, name: &str, at: *const c_void) -> Result<()> {
    check_pointer(op, name, at as *const u8)
}

fn check_pointer<T>(op: &'static str, name: &str, at: *const T) -> Result<()> {
    if at.is_null() {
        return Err(Error::invalid(op, name, "NULL", "a pointer"));
    }
    if !at.is_aligned() {
        let expected = format!("a pointer that is a multiple of {}", align_of::<T>());
        return Err(Error::invalid(op, name, format!("{at:p}"), expected));
    }
    Ok(())
}

/// `count` structs from `at` on; none may be at NULL.
pub(crate) fn list<'a, T>(
    op: &'static str,
    name: &str,
    at: *const T,
    count: i64,
) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(size_of::<T>()));
    if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Error::invalid(op, format!("{name}_count"), count, "a number >= 0"));
    }
    check_pointer(op, name, at)?;
    // SAFETY: not null, aligned, and the header asks for so many structs there.
    Ok(unsafe { std::slice::from_raw_parts(at, count as usize) })
}

/// 0 or 1.
pub(crate) fn flag(op: &'static str, name: &str, value: i32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::invalid(op, name, other, "0 or 1")),
    }
}

/// A text that must be UTF-8.
pub(crate) fn text<'a>(op: &'static str, name: &str, at: *const c_char) -> Result<&'a str> {
    check_pointer(op, name, at)?;
    // SAFETY: not null; the header asks for a text that ends with NUL.
    let bytes = unsafe { CStr::from_ptr(at) };
    bytes.to_str().map_err(|_| Error::invalid(op, name, "other bytes", "UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: the text is this thread's own.
        unsafe { CStr::from_ptr(gradus_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_status_and_nothing_else() {
        assert_eq!(guard(|| panic!("number {}", 7)), sys::GRADUS_PANIC as i32);
        assert!(last().contains("number 7") && last().contains("status.rs"), "{}", last());
        assert_eq!(guard(|| Ok(())), 0);
        assert!(last().contains("number 7"), "a success leaves the last text alone");
        let other = std::thread::spawn(last).join().unwrap();
        assert_eq!(other, "", "the text belongs to its thread");
    }

    #[test]
    fn numbers_of_statuses_are_those_of_the_errors() {
        let invalid = Error::invalid("op", "x", 1, "2");
        assert_eq!(guard(|| Err(invalid.into())), sys::GRADUS_INVALID_ARGUMENT as i32);
        assert_eq!(last(), "op: argument `x`: got 1, expected 2");
        let pairs = [
            (Error::NoDriver { reason: String::new() }, sys::GRADUS_NO_DRIVER),
            (Error::DeviceLost { reason: String::new() }, sys::GRADUS_DEVICE_LOST),
            (Error::Unsupported { op: "", reason: String::new() }, sys::GRADUS_UNSUPPORTED),
            (Error::config("", ""), sys::GRADUS_CONFIG),
            (Error::format("", ""), sys::GRADUS_FORMAT),
            (Error::OutOfMemory { what: String::new(), bytes: 0 }, sys::GRADUS_OUT_OF_MEMORY),
            (Error::NonFinite { op: "", arg: String::new(), index: 0 }, sys::GRADUS_NON_FINITE),
            (Error::Driver { call: "", code: 1, reason: String::new() }, sys::GRADUS_DRIVER),
        ];
        for (error, status) in pairs {
            assert_eq!(error.code() as u32, status);
        }
    }
}
