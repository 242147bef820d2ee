//! A folder for one run of a program, and how it is cleared whatever the program left there.

use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chmodat, fchmod, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::io::interrupt;
use crate::reward::keeper::{self, Held};

/// How long a run waits for its folder to be cleared. What takes longer, as a program may make 30,000
/// folders in a second and a slow disk take minutes to remove them, is done behind its back.
const WAIT: Duration = Duration::from_secs(30);

/// When that is given up too: a program that has escaped may write for ever. Then the keeper removes
/// the folder after the end of this process.
const GIVE_UP: Duration = Duration::from_secs(600);

/// Folders that may wait for their turn; with so many, runs wait.
const QUEUE: usize = 4;

/// A random word.
pub(super) fn nonce() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A folder that goes with the value.
pub(super) struct Folder {
    pub path: PathBuf,
    name: String,
    /// The folder itself, whatever the program puts in its place.
    top: OwnedFd,
    cleared: bool,
}

impl Folder {
    pub fn new() -> io::Result<Folder> {
        // Creation fails if the name is taken, so nobody can have put anything there.
        let name = format!("gradus-code-{:016x}", nonce());
        let path = keeper::folders().join(&name);
        keeper::hold(Held::Folder(&name));
        let made = DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .and_then(|()| Ok(openat(CWD, &path, FOLDER, Mode::empty())?));
        match made {
            Ok(top) => Ok(Folder { path, name, top, cleared: false }),
            Err(error) => {
                keeper::let_go(Held::Folder(&name));
                Err(error)
            }
        }
    }

    /// Removes the folder with all that is in it. Depth costs neither stack nor open files: a folder
    /// that is not empty gives its own folders to the top one, under other names, until all are empty.
    ///
    /// # Errors
    /// What could not be removed, with the folder's name.
    pub fn clear(mut self) -> io::Result<()> {
        match self.remove(WAIT) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => hand_over(self),
            done => {
                self.cleared = true;
                done
            }
        }
    }

    fn remove(&self, time: Duration) -> io::Result<()> {
        let mut clearing = Clearing { begun: Instant::now(), time, next: 0 };
        let done = clearing.whole(&self.top).and_then(|()| remove_empty(&self.path));
        if done.is_ok() {
            keeper::let_go(Held::Folder(&self.name));
        }
        let path = self.path.display();
        done.map_err(|error| io::Error::new(error.kind(), format!("cannot remove {path}: {error}")))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.cleared {
            // After another error, which is the one to be told; or it has had its time, and the
            // keeper will do it.
            let _ = self.remove(Duration::from_secs(1));
        }
    }
}

/// Leaves a folder to the thread that goes on clearing it. After a stop the keeper does that.
fn hand_over(mut folder: Folder) -> io::Result<()> {
    static CLEANER: Mutex<Option<SyncSender<Folder>>> = Mutex::new(None);
    folder.cleared = true;
    loop {
        let mut cleaner = CLEANER.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match &*cleaner {
            Some(sender) => sender,
            None => {
                let (sender, inbox) = sync_channel::<Folder>(QUEUE);
                thread::Builder::new().spawn(move || {
                    for folder in inbox {
                        let _ = folder.remove(GIVE_UP);
                    }
                })?;
                cleaner.insert(sender)
            }
        };
        match sender.try_send(folder) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Disconnected(_)) => {
                return Err(io::Error::other("the thread that clears folders has ended"));
            }
            Err(TrySendError::Full(waiting)) => folder = waiting,
        }
        drop(cleaner);
        if interrupt::check().is_err() {
            return Ok(());
        }
        interrupt::pause(Duration::from_millis(100));
    }
}

/// Removes what is left at `path`: an empty folder, or what a program has put in its place.
fn remove_empty(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(unlinkat(CWD, path, AtFlags::empty())?),
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Clearing {
    begun: Instant,
    time: Duration,
    /// Number in the name of the next folder that is moved.
    next: u64,
}

/// What an entry turned out to be.
enum Entry {
    Gone,
    /// A folder that holds something.
    Full,
}

impl Clearing {
    /// Empties the folder `top`.
    fn whole(&mut self, top: &OwnedFd) -> io::Result<()> {
        fchmod(top, Mode::RWXU)?;
        loop {
            let names = names(top)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if let Entry::Full = self.remove(top, &name)? {
                    self.flatten(top, &name)?;
                }
            }
        }
    }

    fn remove(&self, folder: &OwnedFd, name: &CStr) -> io::Result<Entry> {
        if self.begun.elapsed() > self.time {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Entry::Gone),
            // What a folder is answered with depends on the system.
            Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(Entry::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Entry::Full),
            Err(error) => Err(error.into()),
        }
    }

    /// Empties the folder `name` in `top`, and removes it.
    fn flatten(&mut self, top: &OwnedFd, name: &CStr) -> io::Result<()> {
        allow(top, name)?;
        let folder = openat(top, name, FOLDER, Mode::empty())?;
        for inner in names(&folder)? {
            if let Entry::Full = self.remove(&folder, &inner)? {
                // To move a folder is to write its parent's name into it.
                allow(&folder, &inner)?;
                self.move_up(&folder, &inner, top)?;
            }
        }
        // Where somebody still writes it is not empty, and its turn comes again.
        self.remove(top, name).map(|_| ())
    }

    fn move_up(&mut self, folder: &OwnedFd, name: &CStr, top: &OwnedFd) -> io::Result<()> {
        loop {
            let other = format!("gradus-moved-{}", self.next);
            self.next += 1;
            match renameat(folder, name, top, other) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The program has used the name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Gives the owner every right to the folder `name`, and never to what a link points at: a program
/// that has escaped may put one there at any moment.
#[cfg(target_os = "linux")]
fn allow(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let folder = openat(parent, name, FOLDER.union(OFlags::PATH), Mode::empty())?;
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    Ok(chmodat(CWD, path, Mode::RWXU, AtFlags::empty())?)
}

/// Gives the owner every right to the folder `name`, where the system call itself leaves links alone.
#[cfg(not(target_os = "linux"))]
fn allow(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    Ok(chmodat(parent, name, Mode::RWXU, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The entries of a folder. Read as a whole: it changes while they are removed.
fn names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn whatever_is_in_a_folder_goes_with_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path.clone();
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        fs::create_dir_all(path.join("gradus-moved-0/x")).unwrap();
        fs::write(path.join("gradus-moved-1"), "taken").unwrap();
        fs::write(path.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/", path.join("a/b/root")).unwrap();
        std::os::unix::fs::symlink("nowhere", path.join("dangling")).unwrap();
        let _socket = UnixListener::bind(path.join("socket")).unwrap();
        let _open = fs::File::create(path.join("open")).unwrap();
        for closed in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(path.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        folder.clear().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_takes_too_long_is_removed_later() {
        let folder = Folder::new().unwrap();
        let path = folder.path.clone();
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        let error = folder.remove(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(path.exists());
        hand_over(folder).unwrap();
        let begun = Instant::now();
        while path.exists() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_program_puts_in_the_folders_place_is_not_followed() {
        let bystander = Folder::new().unwrap();
        fs::write(bystander.path.join("file"), "x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::set_permissions(&bystander.path, fs::Permissions::from_mode(0o755)).unwrap();
        let folder = Folder::new().unwrap();
        let (path, moved) = (folder.path.clone(), folder.path.with_extension("moved"));
        fs::write(path.join("file"), "x").unwrap();
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&bystander.path, &path).unwrap();
        folder.clear().unwrap();
        assert!(path.symlink_metadata().is_err());
        assert_eq!(mode(&bystander.path), 0o755);
        assert!(bystander.path.join("file").exists());
        // What was in the folder is gone from wherever it is now.
        fs::remove_dir(&moved).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_is_named() {
        let folder = Folder::new().unwrap();
        let (path, moved) = (folder.path.clone(), folder.path.with_extension("moved"));
        fs::rename(&path, &moved).unwrap();
        fs::create_dir_all(path.join("other")).unwrap();
        let error = folder.clear().unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        fs::remove_dir_all(&path).unwrap();
        fs::remove_dir(&moved).unwrap();
    }
}
