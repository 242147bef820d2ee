//! What was compiled before, under `target/kernelc/cache`: a source is compiled again only if it,
//! a header that it includes or a tool has changed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::manifest;
use crate::tree::File;

/// The place of one source's results for one target.
pub struct Entry {
    folder: PathBuf,
}

impl Entry {
    /// `tools` says which compilers, `target` for what.
    pub fn new(home: &Path, tools: &str, target: &str, source: &File, headers: &[File]) -> Entry {
        let mut key = format!("{tools}\n{target}\n{}\n{}", source.name, source.text);
        for header in included(source, headers) {
            key += &format!("\n{}\n{}", header.name, header.text);
        }
        Entry { folder: home.join("cache").join(manifest::sha256(key.as_bytes())) }
    }

    /// PTX and the report of ptxas, if they were made before.
    pub fn read(&self) -> Option<(String, String)> {
        let ptx = fs::read_to_string(self.folder.join("ptx")).ok()?;
        Some((ptx, fs::read_to_string(self.folder.join("report")).ok()?))
    }

    pub fn write(&self, ptx: &str, report: &str) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.folder.display());
        fs::create_dir_all(&self.folder).map_err(failed)?;
        fs::write(self.folder.join("report"), report).map_err(failed)?;
        // The PTX comes last, so that half an entry is none.
        fs::write(self.folder.join("ptx"), ptx).map_err(failed)
    }
}

/// Headers that a source includes, directly or not, each once.
fn included<'a>(source: &'a File, headers: &'a [File]) -> Vec<&'a File> {
    let mut found: Vec<&File> = Vec::new();
    let mut texts = vec![source.text.as_str()];
    while let Some(text) = texts.pop() {
        for header in headers {
            let known = found.iter().any(|h| h.name == header.name);
            if !known && text.contains(&format!("#include \"{}\"", header.name)) {
                found.push(header);
                texts.push(&header.text);
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File { name: name.into(), place: name.into(), text: text.into() }
    }

    #[test]
    fn a_changed_header_is_another_entry_if_it_is_included() {
        let source = file("a.cu", "#include \"b.cuh\"\n");
        let key = |inner: &str, other: &str| {
            let headers =
                [file("b.cuh", "#include \"c.h\"\n"), file("c.h", inner), file("d.h", other)];
            Entry::new(Path::new("x"), "12.4", "sm80", &source, &headers).folder
        };
        assert_eq!(key("1", "2"), key("1", "3"));
        assert_ne!(key("1", "2"), key("4", "2"));
    }
}
