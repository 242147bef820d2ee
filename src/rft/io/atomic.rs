//! Writes that are there whole or not at all: a temporary name beside the target, fsync, rename,
//! fsync of the folder.
//!
//! A temporary name is `.NAME.tmp-PID`, with a number behind it where that is taken, and is always
//! made anew: nothing is written through what a killed process left there or a link that somebody
//! planted. Readers of a target find the old content or the new one at every moment.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gradus::error::{Error, Result};

/// Replaces the file `path` by `bytes`. On failure the old file is untouched and the temporary
/// one removed.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let (temporary, file) = fresh(path, |name| File::create_new(name))?;
    let written = fill(file, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(Error::io(path))?;
    sync_folder(parent(path))
}

/// Writes a file that is not there yet and waits until it is on the disk.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    File::create_new(path).and_then(|file| fill(file, bytes)).map_err(Error::io(path))
}

fn fill(mut file: File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// Waits until a folder's entries are on the disk.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path))
}

/// Points the symbolic link `link` at `target`, replacing an older link.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    let (temporary, ()) = fresh(link, |name| symlink(target, name))?;
    let moved = fs::rename(&temporary, link);
    if moved.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    moved.map_err(Error::io(link))?;
    sync_folder(parent(link))
}

#[cfg(unix)]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, name)
}

#[cfg(not(unix))]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    fill(File::create_new(name)?, target.to_string_lossy().as_bytes())
}

/// Builds the folder `path` beside its place with `fill`, then moves it there; an older one is
/// replaced. On failure nothing of the new one is left.
pub fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = TemporaryFolder::create(path)?;
    fill(temporary.path())?;
    temporary.publish()
}

/// A folder on its way to its place. Dropped before it got there, it leaves nothing behind.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    target: PathBuf,
    /// Held for as long as the folder is being written: what nobody holds was left by a process
    /// that ended.
    _held: Option<File>,
}

impl TemporaryFolder {
    /// An empty folder beside `target`, whose own folder is made if it is not there. Those that
    /// killed processes left on their way to the same place are removed.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(target: &Path) -> Result<TemporaryFolder> {
        let place = parent(target);
        fs::create_dir_all(place).map_err(Error::io(place))?;
        let held = hold(place);
        TemporaryFolder::beside(target, held.is_some())
    }

    /// An empty folder beside `target`. If this process is `alone` in the folder that `target` lies in,
    /// what killed processes left on their way to the same place is removed.
    pub(crate) fn beside(target: &Path, alone: bool) -> Result<TemporaryFolder> {
        let stem = stem(target);
        if alone {
            remove_abandoned(parent(target), |name| name.starts_with(&stem))?;
        }
        let (path, ()) = fresh(target, |name| fs::create_dir(name))?;
        let held = File::open(&path).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(TemporaryFolder { path, target: target.into(), _held: held })
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, in exchange for what has it now.
    ///
    /// # Errors
    /// `Io`.
    pub fn publish(self) -> Result<()> {
        sync_folder(&self.path)?;
        swap(&self.path, &self.target).map_err(Error::io(&self.target))?;
        sync_folder(parent(&self.target))
    }

    /// Gives it its name, unless something has it: then false.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn publish_new(self) -> Result<bool> {
        sync_folder(&self.path)?;
        // Of folders only an empty one is replaced, and none that counts is empty.
        match fs::rename(&self.path, &self.target) {
            Ok(()) => sync_folder(parent(&self.target)).map(|()| true),
            Err(e) if is_taken(&e) => Ok(false),
            Err(e) => Err(Error::io(&self.target)(e)),
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    use ErrorKind::*;
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Gone if it was published to a free place; else what had the name before.
        let _ = remove(&self.path);
    }
}

/// Moves the folder `new` to `target`. What is there takes its place, or is gone.
fn swap(new: &Path, target: &Path) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => return fs::rename(new, target),
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    match exchange(new, target) {
        // Not every file system can.
        Err(e) if can_not(&e) => fill_in(new, target),
        done => done,
    }
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = |path: &Path| {
        std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| ErrorKind::InvalidInput)
    };
    let (a, b) = (name(a)?, name(b)?);
    let (here, flag) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: both names end in a zero and outlive the call, which reads nothing else.
    let status =
        unsafe { libc::syscall(libc::SYS_renameat2, here, a.as_ptr(), here, b.as_ptr(), flag) };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether a system or its file system does not know how to exchange two names.
fn can_not(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

/// Replaces the files of `target` by those of `new`, one by one, so that each is there at every
/// moment; what only `target` has is removed.
fn fill_in(new: &Path, target: &Path) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(new)? {
        let entry = entry?;
        fs::rename(entry.path(), target.join(entry.file_name()))?;
        names.push(entry.file_name());
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        if !names.contains(&entry.file_name()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Keeps other processes that ask for it out of `folder` while the result lives. None on a system
/// without such locks, and if somebody holds the folder for longer than anything here does.
pub(crate) fn hold(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    for _ in 0..100 {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// Removes the temporary folders in `folder` that no process holds and whose name `belongs`. Who
/// calls holds `folder`, so that nobody is between making one and holding it.
pub(crate) fn remove_abandoned(folder: &Path, belongs: impl Fn(&str) -> bool) -> Result<()> {
    for path in temporaries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir());
        let free = || File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
        if belongs(&name) && is_folder && free() {
            remove(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// Removes everything with a temporary name from `folder`, in which nobody else writes now.
pub(crate) fn remove_temporaries(folder: &Path) -> Result<()> {
    temporaries(folder)?.into_iter().try_for_each(|path| remove(&path).map_err(Error::io(&path)))
}

/// Everything in `folder` with a temporary name; nothing if there is no such folder.
pub(crate) fn temporaries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_temporary(&name) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let behind = name.strip_prefix('.').and_then(|name| name.rsplit_once(".tmp-"));
    behind.is_some_and(|(_, numbers)| numbers.split('-').all(number))
}

/// Moves `path` aside and removes it, so that it is whole or gone under its own name.
pub(crate) fn remove_whole(path: &Path) -> Result<()> {
    let (temporary, ()) = fresh(path, |name| fs::create_dir(name))?;
    // A folder replaces an empty one.
    let moved = fs::rename(path, &temporary).map_err(Error::io(path));
    let removed = remove(&temporary).map_err(Error::io(&temporary));
    moved.and(removed)
}

/// Removes whatever is at `path`, a link and not what it points at.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Makes something under a name beside `path` that nothing has.
fn fresh<X>(path: &Path, make: impl Fn(&Path) -> io::Result<X>) -> Result<(PathBuf, X)> {
    let first = stem(path) + &std::process::id().to_string();
    for attempt in 0..10_000 {
        let name = if attempt == 0 { first.clone() } else { format!("{first}-{attempt}") };
        let temporary = path.with_file_name(name);
        match make(&temporary) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            made => return Ok((temporary, made.map_err(Error::io(path))?)),
        }
    }
    let reason = format!("10,000 temporary names like {first} are taken beside it");
    Err(Error::format(path, reason))
}

/// What temporary names for `path` begin with.
fn stem(path: &Path) -> String {
    format!(".{}.tmp-", path.file_name().unwrap_or_default().to_string_lossy())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What file systems without an exchange of names do.
    #[test]
    fn files_replace_files_where_folders_cannot_be_exchanged() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        for (place, names) in [(&new, ["a", "b"]), (&old, ["b", "c"])] {
            fs::create_dir(place).unwrap();
            names.iter().for_each(|name| {
                fs::write(place.join(name), place.as_os_str().as_encoded_bytes()).unwrap()
            });
        }
        fill_in(&new, &old).unwrap();
        for name in ["a", "b"] {
            assert_eq!(fs::read(old.join(name)).unwrap(), new.as_os_str().as_encoded_bytes());
        }
        assert!(!old.join("c").exists() && fs::read_dir(&new).unwrap().next().is_none());
    }

    #[test]
    fn a_name_that_is_taken_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let planted = folder.path().join(format!(".x.tmp-{}", std::process::id()));
        fs::write(folder.path().join("victim"), "victim").unwrap();
        symlink(&folder.path().join("victim"), &planted).unwrap();
        write(&path, b"x").unwrap();
        link(Path::new("x"), &folder.path().join("y")).unwrap();
        assert_eq!(fs::read(folder.path().join("victim")).unwrap(), b"victim");
        assert!(planted.is_symlink());
    }
}
