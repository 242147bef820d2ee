//! Writes that are there whole or not at all: a temporary file beside the target, fsync, rename,
//! fsync of the folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Replaces the file `path` by `bytes`. On failure the old file is untouched and the temporary
/// one removed.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = sibling(path);
    let written = write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(path)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Writes a new file and waits until it is on the disk.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))
}

/// Waits until a folder's entries are on the disk.
pub fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path))
}

/// Points the symbolic link `link` at `target`, replacing an older link.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    let temporary = sibling(link);
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, &temporary).map_err(Error::io(link))?;
    #[cfg(not(unix))]
    fs::write(&temporary, target.to_string_lossy().as_bytes()).map_err(Error::io(link))?;
    fs::rename(&temporary, link).map_err(Error::io(link))
}

/// Builds the folder `path` beside its place with `fill`, then moves it there; an older one is
/// replaced. On failure nothing of the new one is left.
pub fn folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = sibling(path);
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
    let moved = fill(&temporary).and_then(|()| sync_folder(&temporary)).and_then(|()| {
        if path.exists() {
            fs::remove_dir_all(path).map_err(Error::io(path))?;
        }
        fs::rename(&temporary, path).map_err(Error::io(path))
    });
    if moved.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    moved?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// A name beside `path` that nothing else uses.
pub(crate) fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp-{}", std::process::id()))
}
