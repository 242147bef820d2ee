//! The kernel tree: which sources and headers there are, and where they lie.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the tree.
pub struct File {
    /// Name without the folder: what NVRTC and `#include` know it by.
    pub name: String,
    /// Path below the tree, with `/` on every system.
    pub place: String,
    pub text: String,
}

/// The files of `dir` and of its families (folders one level down) with this extension, by name.
/// A name may appear once: a kernel includes headers by bare name, and PTX files lie in one folder.
pub fn files(dir: &Path, extension: &str) -> Result<Vec<File>, String> {
    if !dir.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    let mut found = in_folder(dir, "", extension)?;
    for path in entries(dir)? {
        let family = name_of(&path);
        if path.is_dir() && family != "generated" {
            found.extend(in_folder(&path, &format!("{family}/"), extension)?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some([a, b]) = found.array_windows().find(|[a, b]| a.name == b.name) {
        return Err(format!(
            "{} and {} have the same name, expected one file per name: `#include` and PTX files \
             know no folder",
            a.place, b.place
        ));
    }
    Ok(found)
}

fn in_folder(folder: &Path, prefix: &str, extension: &str) -> Result<Vec<File>, String> {
    let paths = entries(folder)?.into_iter().filter(|p| has_extension(p, extension));
    paths
        .map(|path| {
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            let name = name_of(&path);
            Ok(File { place: format!("{prefix}{name}"), name, text })
        })
        .collect()
}

/// What lies in a folder; nothing if there is no such folder.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(format!("{}: {e}", folder.display())),
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e == extension)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("kernelc-{name}-{}", std::process::id()));
        for family in ["first", "second", "generated"] {
            fs::create_dir_all(dir.join(family)).unwrap();
        }
        dir
    }

    #[test]
    fn families_are_walked_and_generated_files_are_not() {
        let dir = folder("walk");
        for place in ["top.cu", "first/b.cu", "second/a.cu", "generated/c.cu", "first/b.cuh"] {
            fs::write(dir.join(place), place).unwrap();
        }
        let found = files(&dir, "cu").unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let places: Vec<&str> = found.iter().map(|f| f.place.as_str()).collect();
        assert_eq!(places, ["second/a.cu", "first/b.cu", "top.cu"]);
        assert_eq!(found[1].text, "first/b.cu");
    }

    #[test]
    fn one_name_in_two_families_is_refused() {
        let dir = folder("twice");
        for place in ["first/a.cu", "second/a.cu"] {
            fs::write(dir.join(place), "").unwrap();
        }
        let message = files(&dir, "cu").err().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(message.contains("first/a.cu and second/a.cu have the same name"), "{message}");
    }
}
