//! Child processes that end when they are told to, with all that they started, and that do not
//! outlive this process however it ends.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::Duration;

use super::keeper::{self, Held};
use crate::io::interrupt::wait_for;

/// The file that `program` names: a path, or a name on the search path.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file().then(|| path.to_path_buf());
    }
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file() || file.with_extension("exe").is_file())
}

/// A child that leads a process group of its own: it can be killed with its descendants, and the
/// terminal's Ctrl-C, which ends a run between two steps, does not end it in the middle of one.
/// Dropping it kills the group; if this process ends without doing so, the keeper does.
pub(super) struct Group {
    child: Child,
    /// The keeper's number for it.
    number: u64,
    /// Out of the keeper's hands: the child is reaped, its number may belong to another.
    reaped: bool,
}

impl Group {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> io::Result<Group> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        Group::adopt(command)
    }

    /// Starts a `command` that makes itself the leader of its group.
    pub fn adopt(command: &mut Command) -> io::Result<Group> {
        let number = keeper::announce(command);
        match command.spawn() {
            Ok(child) => {
                keeper::hold(Held::Group(child.id(), number));
                Ok(Group { child, number, reaped: false })
            }
            Err(error) => {
                keeper::lost(number);
                Err(error)
            }
        }
    }

    /// The ends of its streams, as far as they are pipes and were not taken before.
    pub fn streams(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?, self.child.stderr.take()?))
    }

    /// Its end of standard error, if that is a pipe and was not taken before.
    #[cfg(unix)]
    pub fn errors(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Kills the group and reaps its leader. A leader that had ended before keeps its status. The
    /// order matters: as long as the leader is not reaped, no other process can have its number.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        if !self.reaped {
            // A child that was reaped by somebody else has no group to be reached by that number.
            #[cfg(unix)]
            if state(&self.child).is_some() {
                // SAFETY: a plain system call; the group is the child's own.
                unsafe { libc::kill(-(self.child.id() as libc::pid_t), libc::SIGKILL) };
            }
            // Already dead is as good as killed.
            let _ = self.child.kill();
            keeper::let_go(Held::Group(self.child.id(), self.number));
            self.reaped = true;
        }
        self.child.wait().ok()
    }

    /// Whether the leader ends within `time`, and before a stop is asked for. It is not reaped, so
    /// that its group can still be killed.
    pub fn exits_within(&mut self, time: Duration) -> bool {
        let mut pause = Duration::from_millis(1);
        let ended = wait_for(time, |turn| {
            if has_ended(&mut self.child) {
                return Some(());
            }
            std::thread::sleep(pause.min(turn));
            pause = (2 * pause).min(turn.max(Duration::from_millis(1)));
            None
        });
        ended.is_some() || has_ended(&mut self.child)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether `child` has ended; `None` where the system knows no such child any more.
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
fn has_ended(child: &mut Child) -> bool {
    state(child).unwrap_or(true)
}

#[cfg(not(unix))]
fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}
