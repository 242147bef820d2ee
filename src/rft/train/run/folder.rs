//! The folder of a run while a process writes to it.
//!
//! ```text
//! runs/
//!   latest -> demo-s0-1764489600
//!   demo-s0-1764489600/
//!     .lock            the process that writes here, locked while it lives
//!     run.json         what the run is: settings, content of the files it reads
//!     config.toml      the settings it began with, for a person and for `gradus eval`
//!     metrics.*, events.out.tfevents.*, curve.svg, summary.json, checkpoints/
//!     adapter/, model/ what the run made, for a run on a model from disk
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::io::atomic::{self, TemporaryFolder};
use crate::train::config::RunConfig;
use crate::train::run::identity::Identity;
use crate::train::run::progress::line;
use gradus::error::{Error, Result};

const LOCK: &str = ".lock";
/// All that a run folder holds before its run has begun.
const FRESH: [&str; 3] = [LOCK, "config.toml", "run.json"];

/// A run folder that this process alone writes to.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Held as long as the folder is written to; only Unix looks at it again.
    #[cfg_attr(not(unix), allow(dead_code))]
    lock: File,
}

/// Refuses an `out` whose `latest` is something that no run made.
///
/// # Errors
/// `Config`.
pub(crate) fn check_place(out: &Path) -> Result<()> {
    let latest = out.join("latest");
    match fs::symlink_metadata(&latest) {
        Ok(about) if about.is_dir() || cfg!(unix) && !about.is_symlink() => {
            let reason = format!(
                "{} is not a link: a run would make it point at its folder; move it away or choose \
                 another `out`",
                latest.display()
            );
            Err(Error::config("out", reason))
        }
        _ => Ok(()),
    }
}

impl RunFolder {
    /// A new folder `<out>/<name>-s<seed>-<time>`, which `<out>/latest` then points at.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(out: &Path, config: &RunConfig, identity: &Identity) -> Result<RunFolder> {
        let seconds = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let stem = format!("{}-s{}-{seconds}", config.name, config.seed);
        fs::create_dir_all(out).map_err(Error::io(out))?;
        let held = atomic::hold(out);
        if held.is_some() {
            clear(out)?;
        }
        let mut attempt = 0;
        loop {
            let name = if attempt == 0 { stem.clone() } else { format!("{stem}-{attempt}") };
            attempt += 1;
            let path = out.join(&name);
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            let temporary = TemporaryFolder::beside(&path, held.is_some())?;
            let lock = take_lock(temporary.path())?;
            let settings = temporary.path().join("config.toml");
            atomic::write_synced(&settings, config.to_toml().as_bytes())?;
            identity.write(temporary.path())?;
            if temporary.publish_new()? {
                atomic::link(Path::new(&name), &out.join("latest"))?;
                return Ok(RunFolder { path, lock });
            }
        }
    }

    /// Takes over the folder of a run that ended or was killed, and removes what it left half done.
    ///
    /// # Errors
    /// `Io`, which names the process that writes to it if there is one.
    pub fn open(path: &Path) -> Result<RunFolder> {
        let lock = take_lock(path)?;
        atomic::remove_temporaries(path)?;
        atomic::remove_temporaries(&path.join("checkpoints"))?;
        Ok(RunFolder { path: path.into(), lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the path still leads to this folder.
    ///
    /// # Errors
    /// `Io` if somebody removed or replaced it.
    pub fn check(&self) -> Result<()> {
        let there = fs::metadata(self.path.join(LOCK)).and_then(|there| self.is_ours(&there));
        if matches!(there, Ok(true)) {
            return Ok(());
        }
        let reason = "the run folder was removed or replaced while the run went on";
        Err(Error::io(&self.path)(io::Error::new(ErrorKind::NotFound, reason)))
    }

    #[cfg(unix)]
    fn is_ours(&self, there: &fs::Metadata) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let ours = self.lock.metadata()?;
        Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    }

    #[cfg(not(unix))]
    fn is_ours(&self, _: &fs::Metadata) -> io::Result<bool> {
        Ok(true)
    }
}

/// Locks `folder` for this process until the result is dropped.
fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
    let mut file = options.open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::io(folder)(taken(&path))),
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
            line("  this file system has no locks: let no second process resume this run");
        }
        Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
    }
    let holder = format!("{}\n", std::process::id());
    file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(Error::io(&path))?;
    Ok(file)
}

fn taken(path: &Path) -> io::Error {
    let holder = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let who = holder.map_or("another process".into(), |pid| format!("process {pid}"));
    let reason = format!("{who} writes to this run; wait for it, or stop it, before it is resumed");
    io::Error::new(ErrorKind::ResourceBusy, reason)
}

/// Removes what killed processes left in `out` before their run began: temporary names, and folders
/// without a run in them that `latest` does not point at. Who calls holds `out`.
fn clear(out: &Path) -> Result<()> {
    atomic::remove_abandoned(out, |_| true)?;
    for path in atomic::temporaries(out)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".latest.tmp-") && path.is_symlink() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    let latest = out.join("latest").canonicalize().ok();
    for entry in fs::read_dir(out).map_err(Error::io(out))? {
        let path = entry.map_err(Error::io(out))?.path();
        let is_latest = latest.is_some() && path.canonicalize().ok() == latest;
        if !is_latest && is_fresh(&path) {
            atomic::remove_whole(&path)?;
        }
    }
    Ok(())
}

/// Whether a run was to begin in `folder`, did not, and nobody is about to begin it.
fn is_fresh(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let names: Vec<_> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let all = |name: &io::Result<std::ffi::OsString>| {
        name.as_ref().is_ok_and(|name| FRESH.iter().any(|fresh| name == fresh))
    };
    names.len() == FRESH.len()
        && names.iter().all(all)
        && File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}
