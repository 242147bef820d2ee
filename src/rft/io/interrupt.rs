//! Signals that ask a run to stop.
//!
//! While a [`Listening`] lives, the first SIGINT, SIGTERM or SIGHUP asks the run to stop, and
//! everything that takes long asks [`check`] whether it should go on. A signal within a second of
//! the first is the same request: `timeout` and service managers send theirs to a process and to
//! its group. A later one ends the process at once. A SIGHUP that was ignored before, as under
//! `nohup`, stays ignored.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gradus::error::{Error, Result};

/// Runs that listen.
static LISTENING: AtomicUsize = AtomicUsize::new(0);

/// Signals so soon after the first are the same request.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// How long a wait may be deaf.
const POLL: Duration = Duration::from_millis(20);

/// What was asked for, and what holds it off.
struct Request {
    /// The signal, and above it when it came: one word, so that no handler sees half of it. 0 is none.
    heard: AtomicU64,
    /// Stretches of work that must not be cut.
    held: AtomicUsize,
}

/// The process's.
static REQUEST: Request = Request::new();

impl Request {
    const fn new() -> Request {
        Request { heard: AtomicU64::new(0), held: AtomicUsize::new(0) }
    }

    fn forget(&self) {
        self.heard.store(0, Ordering::SeqCst);
    }

    /// Takes note of `signal` at `now`. Whether it is a further request, which ends the process.
    fn note(&self, signal: i32, now: Duration) -> bool {
        let word = (now.as_millis() as u64) << 8 | (signal as u64 & 0xff);
        match self.heard.compare_exchange(0, word, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => false,
            Err(first) => now >= Duration::from_millis(first >> 8) + SAME_REQUEST,
        }
    }

    fn signal(&self) -> Option<i32> {
        match self.heard.load(Ordering::SeqCst) {
            0 => None,
            heard => Some((heard & 0xff) as i32),
        }
    }

    fn check(&self) -> Result<()> {
        match self.signal() {
            Some(signal) if self.held.load(Ordering::SeqCst) == 0 => {
                Err(Error::Interrupted { signal })
            }
            _ => Ok(()),
        }
    }

    fn wait_for<T>(
        &self,
        time: Duration,
        mut wait: impl FnMut(Duration) -> Option<T>,
    ) -> Option<T> {
        let begun = Instant::now();
        loop {
            let left = time.saturating_sub(begun.elapsed());
            if let Some(value) = wait(left.min(POLL)) {
                return Some(value);
            }
            if left.is_zero() || self.check().is_err() {
                return None;
            }
        }
    }
}

/// As long as this lives, signals are requests. The last one to go gives the signals back to whom
/// they belonged.
#[derive(Debug)]
pub struct Listening(());

/// Begins to listen.
///
/// # Errors
/// `Training` if the system refuses the handler.
pub fn listen() -> Result<Listening> {
    if LISTENING.fetch_add(1, Ordering::SeqCst) == 0 {
        REQUEST.forget();
        if let Err(error) = system::install() {
            LISTENING.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::Training { reason: format!("signal handler: {error}") });
        }
    }
    Ok(Listening(()))
}

impl Drop for Listening {
    fn drop(&mut self) {
        if LISTENING.fetch_sub(1, Ordering::SeqCst) == 1 {
            system::restore();
            REQUEST.forget();
        }
    }
}

/// The signal that asked for a stop, if any.
pub fn requested() -> Option<i32> {
    REQUEST.signal()
}

/// Whether to go on.
///
/// # Errors
/// `Interrupted` once a signal has asked for a stop, unless something holds it off.
pub fn check() -> Result<()> {
    REQUEST.check()
}

/// As long as this lives, [`check`] lets everything go on.
#[derive(Debug)]
pub(crate) struct Held(());

/// Work begins that is done as a whole or not at all.
pub(crate) fn hold() -> Held {
    REQUEST.held.fetch_add(1, Ordering::SeqCst);
    Held(())
}

impl Drop for Held {
    fn drop(&mut self) {
        REQUEST.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sleeps for `time`, or until a stop is asked for.
pub(crate) fn pause(time: Duration) {
    let turn = |turn: Duration| {
        sleep(turn);
        None::<()>
    };
    REQUEST.wait_for(time, turn);
}

/// What `wait` gives within `time`, asked in short turns, so that a signal is heard in between:
/// `None` once the time is over or a stop is asked for.
pub(crate) fn wait_for<T>(time: Duration, wait: impl FnMut(Duration) -> Option<T>) -> Option<T> {
    REQUEST.wait_for(time, wait)
}

/// A file that grows beyond the process's limit (`ulimit -f`) becomes an error of the write, not
/// the end of the process. Children get the default back when they start.
pub fn large_files_are_errors() {
    system::catch_file_limit();
}

#[cfg(unix)]
mod system {
    use std::io::{Error, Result};
    use std::mem::{MaybeUninit, zeroed};
    use std::ptr::null_mut;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use libc::{SIG_IGN, SIGHUP, SIGINT, SIGTERM, SIGXFSZ, c_int, sigaction};

    /// What the signals did before.
    static BEFORE: Mutex<Vec<(c_int, sigaction)>> = Mutex::new(Vec::new());

    const NOTICE: &[u8] =
        b"\nstopping; another signal after a second ends at once, and saves nothing\n";

    /// Runs between any two instructions: system calls and atomics only.
    extern "C" fn hear(signal: c_int) {
        // SAFETY: clock_gettime, write and _exit are async-signal-safe; errno is put back.
        unsafe {
            let errno = Errno::save();
            let mut time = MaybeUninit::<libc::timespec>::zeroed();
            libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr());
            let time = time.assume_init();
            let now = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            let first = super::requested().is_none();
            if super::REQUEST.note(signal, now) {
                libc::_exit(128 + signal);
            }
            if first {
                libc::write(2, NOTICE.as_ptr().cast(), NOTICE.len());
            }
            errno.restore();
        }
    }

    /// The thread's errno, which a handler must leave as it was.
    struct Errno(c_int);

    impl Errno {
        fn save() -> Errno {
            Errno(Error::last_os_error().raw_os_error().unwrap_or(0))
        }

        fn restore(self) {
            // SAFETY: the location is this thread's.
            unsafe {
                #[cfg(any(target_os = "linux", target_os = "emscripten", target_os = "hurd"))]
                let at = libc::__errno_location();
                #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
                let at = libc::__error();
                #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
                let at = libc::__errno();
                *at = self.0;
            }
        }
    }

    fn set(signal: c_int, handler: extern "C" fn(c_int)) -> Result<sigaction> {
        // SAFETY: zeros are a valid sigaction, and both live here.
        unsafe {
            let (mut action, mut old): (sigaction, sigaction) = (zeroed(), zeroed());
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            match libc::sigaction(signal, &action, &mut old) {
                0 => Ok(old),
                _ => Err(Error::last_os_error()),
            }
        }
    }

    fn put_back(signal: c_int, action: &sigaction) {
        // SAFETY: the action is one that the system gave out.
        unsafe { libc::sigaction(signal, action, null_mut()) };
    }

    pub fn install() -> Result<()> {
        catch_file_limit();
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let old = set(signal, hear)?;
            match signal == SIGHUP && old.sa_sigaction == SIG_IGN {
                true => put_back(signal, &old),
                false => before.push((signal, old)),
            }
        }
        Ok(())
    }

    pub fn restore() {
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        before.drain(..).for_each(|(signal, action)| put_back(signal, &action));
    }

    extern "C" fn nothing(_: c_int) {}

    /// A handler and not SIG_IGN, which children would inherit.
    pub fn catch_file_limit() {
        if let Ok(old) = set(SIGXFSZ, nothing)
            && old.sa_sigaction != libc::SIG_DFL
        {
            put_back(SIGXFSZ, &old);
        }
    }
}

#[cfg(not(unix))]
mod system {
    use std::io::{Error, Result};
    use std::sync::OnceLock;
    use std::time::Instant;

    /// SIGINT, the only one that there is.
    const INTERRUPT: i32 = 2;

    pub fn install() -> Result<()> {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        let begun = *BEGUN.get_or_init(Instant::now);
        let hear = move || {
            let deaf = super::LISTENING.load(super::Ordering::SeqCst) == 0;
            if deaf || super::REQUEST.note(INTERRUPT, begun.elapsed()) {
                std::process::exit(128 + INTERRUPT);
            }
        };
        match ctrlc::set_handler(hear) {
            Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
            Err(error) => Err(Error::other(error)),
        }
    }

    pub fn restore() {}

    pub fn catch_file_limit() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_of_one_moment_are_one_request() {
        let (request, at) = (Request::new(), Duration::from_millis);
        assert!(request.check().is_ok() && request.signal().is_none());
        assert!(!request.note(15, at(5_000)));
        assert!(!request.note(15, at(5_000)) && !request.note(2, at(5_999)));
        assert!(request.note(2, at(6_000)));
        // The first stays the one that is named.
        assert!(matches!(request.check(), Err(Error::Interrupted { signal: 15 })));
        request.held.store(1, Ordering::SeqCst);
        assert!(request.check().is_ok() && request.signal() == Some(15));
        request.held.store(0, Ordering::SeqCst);
        request.forget();
        assert!(request.check().is_ok());
    }

    #[test]
    fn waits_end_with_their_time_or_with_a_request() {
        let (request, begun) = (Request::new(), Instant::now());
        let wait = |turn| {
            sleep(turn);
            None::<()>
        };
        assert_eq!(request.wait_for(Duration::ZERO, |_| Some(1)), Some(1));
        assert!(request.wait_for(Duration::from_millis(50), wait).is_none());
        assert!(begun.elapsed() >= Duration::from_millis(50));
        request.note(15, Duration::from_secs(5));
        assert!(request.wait_for(Duration::from_secs(60), wait).is_none());
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
