//! One run of a program under resource limits, in a session and a folder of its own. Unix only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::code::Code;
use super::folder::Folder;
use crate::reward::process::Group;
use crate::reward::tail::Tail;

/// What a run left.
pub(super) struct Ran {
    /// Whether it ended by itself, in time, with status 0.
    pub success: bool,
    /// Whether it ended by itself in time, whatever its status.
    pub in_time: bool,
    /// What it wrote to its standard output, as far as the limit on files let it.
    pub stdout: String,
    /// The end of what it wrote to its standard error, without the path of its folder, which is
    /// another one at each run.
    pub stderr: String,
}

/// Runs `program` with `stdin` through the interpreter of `code`, for `time` at most. `Err` says why
/// it could not even be started, or what it left that cannot be cleared up.
pub(super) fn run(code: &Code, program: &str, stdin: &str, time: Duration) -> io::Result<Ran> {
    let folder = Folder::new()?;
    let (main, input) = (folder.path.join("main"), folder.path.join("stdin"));
    std::fs::write(&main, program)?;
    std::fs::write(&input, stdin)?;
    // Files instead of pipes: nothing can block, and the limit on files is the limit on output. The
    // handle is kept, as the program may put something else in the file's place.
    let create = OpenOptions::new().read(true).write(true).create_new(true).clone();
    let mut output = create.open(folder.path.join("stdout"))?;
    let mut command = command(code, &main, &folder.path, time);
    command.stdin(File::open(&input)?).stdout(output.try_clone()?).stderr(Stdio::piped());
    let mut child = Group::adopt(&mut command)?;
    let errors = child.errors().map(Tail::of).transpose()?;
    let in_time = child.exits_within(time);
    let status = child.kill();
    output.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    output.take(code.file).read_to_end(&mut bytes)?;
    let stderr = errors.map_or(String::new(), |errors| errors.text());
    let stderr = stderr.replace(&format!("{}/", folder.path.display()), "");
    folder.clear()?;
    let stdout = String::from_utf8_lossy(&bytes).into_owned();
    let success = in_time && status.is_some_and(|status| status.success());
    Ok(Ran { success, in_time, stdout, stderr })
}

fn command(code: &Code, main: &Path, folder: &Path, time: Duration) -> Command {
    let mut command = Command::new(&code.interpreter[0]);
    command.args(&code.interpreter[1..]).arg(main).current_dir(folder).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", folder).env("TMPDIR", folder).env("LANG", "C.UTF-8");
    let limits = limits(code, time);
    // SAFETY: the closure runs between fork and exec and makes system calls only; it neither
    // allocates nor takes a lock.
    unsafe { command.pre_exec(move || confine(&limits)) };
    command
}

/// Resource and limit; the type of the first differs between C libraries.
type Limits = [(i32, u64); 5];

fn limits(code: &Code, time: Duration) -> Limits {
    let seconds = time.as_secs() + 1;
    [
        (libc::RLIMIT_AS as i32, code.memory),
        (libc::RLIMIT_CPU as i32, seconds),
        (libc::RLIMIT_FSIZE as i32, code.file),
        (libc::RLIMIT_NPROC as i32, code.processes),
        (libc::RLIMIT_CORE as i32, 0),
    ]
}

fn confine(limits: &Limits) -> io::Result<()> {
    // SAFETY: plain system calls on values that live here.
    unsafe {
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for &(resource, most) in limits {
            let limit = libc::rlimit { rlim_cur: most as _, rlim_max: most as _ };
            if libc::setrlimit(resource as _, &limit) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}
