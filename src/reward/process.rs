//! Child processes that end when they are told to, with all that they started.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The file that `program` names: a path, or a name on the search path.
pub(super) fn find_program(program: &str) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file().then(|| path.to_path_buf());
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file() || file.with_extension("exe").is_file())
}

/// Puts the child in a process group of its own: it can be killed with its descendants, and the
/// terminal's Ctrl-C, which ends a run between two steps, does not end it in the middle of one.
pub(super) fn own_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// Kills a child that leads its group, with the group, and reaps it. A child that had ended before
/// keeps its status. The order matters: as long as the leader is not reaped, no other process can
/// have its number.
pub(super) fn kill_group(child: &mut Child) -> Option<ExitStatus> {
    // A child that was reaped already has no group to be reached by that number.
    #[cfg(unix)]
    if !is_reaped(child) {
        // SAFETY: a plain system call; the group is the child's own.
        unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
    }
    // Already dead is as good as killed.
    let _ = child.kill();
    child.wait().ok()
}

/// Whether `child` ends within `time`. It is not reaped, so that its group can still be killed.
pub(super) fn exits_within(child: &mut Child, time: Duration) -> bool {
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        let left = time.saturating_sub(begun.elapsed());
        let ended = has_ended(child);
        if ended || left.is_zero() {
            return ended;
        }
        sleep(pause.min(left));
        pause = (2 * pause).min(Duration::from_millis(20));
    }
}

/// `None` where the system knows no such child any more.
#[cfg(unix)]
fn state(child: &Child) -> Option<bool> {
    // SAFETY: zeros are a valid siginfo_t, and the call writes into it alone.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let found = libc::waitid(libc::P_PID, child.id() as _, &mut info, flags) == 0;
        found.then_some(info.si_signo != 0)
    }
}

#[cfg(unix)]
fn is_reaped(child: &Child) -> bool {
    state(child).is_none()
}

#[cfg(unix)]
fn has_ended(child: &mut Child) -> bool {
    state(child).unwrap_or(true)
}

#[cfg(not(unix))]
fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}
