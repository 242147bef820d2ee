//! What must not outlive this process: groups of children, and the folders they work in.
//!
//! A process that is killed cannot clear up, so another one does: a shell that reads which groups
//! there are from a socket and, when the socket closes, kills those that are left. The system
//! closes it however this process ends. Where there is no `/bin/sh`, children outlive a kill.

#[cfg(unix)]
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the folders that are held are.
#[cfg(unix)]
pub(super) fn folders() -> PathBuf {
    std::env::temp_dir()
}

/// What ends with this process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'a> {
    /// The process group of this leader, with the number that [`announce`] gave. To be let go of before
    /// the leader is reaped, as its process number is free after that.
    #[cfg_attr(not(unix), allow(dead_code))]
    Group(u32, u64),
    /// A folder in the system's for temporary files, with a name without spaces.
    #[cfg_attr(not(unix), allow(dead_code))]
    Folder(&'a str),
}

/// The group that a child of `command` leads ends with this process, from the child's first moment on.
/// Returns a number of its own for it.
pub(super) fn announce(command: &mut Command) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    #[cfg(unix)]
    unix::announce(command, number);
    #[cfg(not(unix))]
    let _ = command;
    number
}

/// The child that was announced as `number` has not become what it should: there is no such group.
pub(super) fn lost(number: u64) {
    #[cfg(unix)]
    unix::lost(number);
    #[cfg(not(unix))]
    let _ = number;
}

/// `what` ends with this process.
pub(super) fn hold(what: Held<'_>) {
    #[cfg(unix)]
    unix::hold(what);
    #[cfg(not(unix))]
    let _ = what;
}

/// `what` is gone.
pub(super) fn let_go(what: Held<'_>) {
    #[cfg(unix)]
    unix::let_go(what);
    #[cfg(not(unix))]
    let _ = what;
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::{Mutex, PoisonError};

    use super::{Held, folders};

    /// `$1` is where the folders are.
    const SCRIPT: &str = r#"
held=' '
while read -r verb entry; do
  case $verb in
    hold)
      case $held in
        *" $entry "*) ;;
        *) held="$held$entry " ;;
      esac ;;
    drop)
      case $held in
        *" $entry "*) held="${held%%" $entry "*} ${held#*" $entry "}" ;;
      esac ;;
    lost)
      kept=' '
      for other in $held; do
        case $other in
          group:*":$entry") ;;
          *) kept="$kept$other " ;;
        esac
      done
      held=$kept ;;
  esac
done
for entry in $held; do
  case $entry in
    group:*)
      group=${entry#group:}
      kill -s KILL -- "-${group%:*}" ;;
  esac
done
for entry in $held; do
  case $entry in
    folder:*)
      folder=$1/${entry#folder:}
      # What is killed may take a moment to end.
      for pause in 0 1 5; do
        sleep $pause
        chmod -R u+rwx "$folder"
        rm -rf -- "$folder"
        [ -e "$folder" ] || break
      done ;;
  esac
done
"#;

    struct Keeper {
        socket: UnixStream,
        shell: Child,
    }

    /// The process's keeper, if one could be started, and all that is held.
    struct State {
        keeper: Option<Keeper>,
        held: Vec<String>,
    }

    static STATE: Mutex<State> = Mutex::new(State { keeper: None, held: Vec::new() });

    /// Makes a child of `command` tell the keeper of its group itself before it does anything else, so
    /// that there is no moment in which nobody knows of it.
    pub fn announce(command: &mut Command, number: u64) {
        let socket = STATE.lock().unwrap_or_else(PoisonError::into_inner).socket();
        let Some(socket) = socket else { return };
        let tell = move || {
            // SAFETY: a plain system call.
            let group = unsafe { libc::getpid() }.unsigned_abs();
            let mut line = Line { bytes: [0; 64], length: 0 };
            line.push(b"hold group:");
            line.push_number(group as u64);
            line.push(b":");
            line.push_number(number);
            line.push(b"\n");
            // The parent says it too, to another keeper if this one has gone.
            let _ = send(&socket, &line.bytes[..line.length]);
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes system calls only; it neither
        // allocates nor takes a lock.
        unsafe { command.pre_exec(tell) };
    }

    pub fn lost(number: u64) {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.tell(&format!("lost {number}\n"));
    }

    /// A text that needs no allocator.
    struct Line {
        bytes: [u8; 64],
        length: usize,
    }

    impl Line {
        fn push(&mut self, bytes: &[u8]) {
            self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
            self.length += bytes.len();
        }

        fn push_number(&mut self, number: u64) {
            let (mut digits, mut begin, mut left) = ([0; 20], 20, number);
            loop {
                begin -= 1;
                digits[begin] = b'0' + (left % 10) as u8;
                left /= 10;
                if left == 0 {
                    break;
                }
            }
            self.push(&digits[begin..]);
        }
    }

    pub fn hold(what: Held<'_>) {
        let entry = entry(what);
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.tell(&format!("hold {entry}\n"));
        state.held.push(entry);
    }

    pub fn let_go(what: Held<'_>) {
        let entry = entry(what);
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.held.retain(|held| *held != entry);
        state.tell(&format!("drop {entry}\n"));
    }

    fn entry(what: Held<'_>) -> String {
        match what {
            Held::Group(leader, number) => format!("group:{leader}:{number}"),
            Held::Folder(name) => format!("folder:{name}"),
        }
    }

    impl State {
        /// The way to the keeper, which is started for it if there is none.
        fn socket(&mut self) -> Option<UnixStream> {
            if self.keeper.is_none() {
                self.tell("");
            }
            self.keeper.as_ref()?.socket.try_clone().ok()
        }

        /// Says a line to the keeper; to another one, with all that is held, if it has gone.
        fn tell(&mut self, line: &str) {
            if self.keeper.as_mut().is_some_and(|keeper| keeper.say(line).is_ok()) {
                return;
            }
            let all = self.held.iter().map(|entry| format!("hold {entry}\n"));
            let all = all.collect::<String>() + line;
            self.keeper = Keeper::start().ok();
            if let Some(keeper) = &mut self.keeper {
                // One that goes at once is missed at the next line.
                let _ = keeper.say(&all);
            }
        }
    }

    impl Keeper {
        /// A shell in a group of its own, which signals to this process's do not reach.
        fn start() -> io::Result<Keeper> {
            let (socket, theirs) = UnixStream::pair()?;
            let mut command = Command::new("/bin/sh");
            command.args(["-c", SCRIPT, "gradus-keeper"]).arg(folders()).current_dir("/");
            command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
            let shell = command.process_group(0).spawn()?;
            Ok(Keeper { socket, shell })
        }

        fn say(&mut self, line: &str) -> io::Result<()> {
            send(&self.socket, line.as_bytes())
        }
    }

    /// Sends `line`, without a signal to this process or a wait if nobody reads it.
    fn send(socket: &UnixStream, line: &[u8]) -> io::Result<()> {
        #[cfg(not(any(target_os = "macos", target_os = "ios")))]
        const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // There the standard library has told the socket so.
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        const FLAGS: libc::c_int = libc::MSG_DONTWAIT;
        let mut left = line;
        while !left.is_empty() {
            let (at, count) = (left.as_ptr().cast(), left.len());
            // SAFETY: `at` and `count` are those of a slice that lives on.
            let sent = unsafe { libc::send(socket.as_raw_fd(), at, count, FLAGS) };
            match usize::try_from(sent) {
                Ok(sent) => left = &left[sent..],
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    impl Drop for Keeper {
        fn drop(&mut self) {
            // One that can no longer be spoken to; it is not left as a zombie.
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }
}
