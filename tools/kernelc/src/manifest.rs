//! The manifest: what was compiled from what, and what ptxas made of it. One fact per line, keys
//! in a fixed order, so that two runs write the same bytes and a diff reads as a change list.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::tree::File;

/// One kernel as ptxas sees it.
#[derive(Default)]
pub struct Kernel {
    pub name: String,
    pub registers: u64,
    pub shared_bytes: u64,
    pub stack_bytes: u64,
    pub spill_bytes: u64,
    /// Why the source accepts local memory.
    pub reason: Option<String>,
}

/// One PTX file.
pub struct Output {
    pub target: &'static str,
    pub file: String,
    pub sha256: String,
    pub kernels: Vec<Kernel>,
}

/// One source and its PTX files.
pub struct Source {
    /// Path below the kernel folder.
    pub place: String,
    pub sha256: String,
    pub outputs: Vec<Output>,
}

impl Source {
    /// A source that is not compiled yet.
    pub fn new(file: &File) -> Source {
        let (place, sha256) = (file.place.clone(), sha256(file.text.as_bytes()));
        Source { place, sha256, outputs: Vec::new() }
    }

    /// The file's name without folder and extension.
    pub fn stem(&self) -> &str {
        let name = self.place.rsplit('/').next().unwrap_or(&self.place);
        name.trim_end_matches(".cu")
    }
}

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Values of the comment lines `// <key>: <value>` of a source.
pub fn comment_values<'a>(text: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("// {key}:");
    text.lines().filter_map(move |l| l.trim().strip_prefix(&prefix)).map(str::trim)
}

/// The manifest's text.
pub fn render(nvrtc: &str, headers: &[File], sources: &[&Source]) -> String {
    let mut out = format!("{{\n  \"nvrtc\": \"{nvrtc}\",\n  \"headers\": [");
    let entries: Vec<String> = headers
        .iter()
        .map(|h| file_entry("    ", &h.place, &sha256(h.text.as_bytes())) + "}")
        .collect();
    out += &list(&entries, "  ");
    out += ",\n  \"sources\": [";
    let entries: Vec<String> = sources.iter().map(|source| source_entry(source)).collect();
    out += &list(&entries, "  ");
    out + "\n}\n"
}

fn list(entries: &[String], indent: &str) -> String {
    if entries.is_empty() {
        return "]".to_string();
    }
    format!("\n{}\n{indent}]", entries.join(",\n"))
}

fn file_entry(indent: &str, file: &str, hash: &str) -> String {
    format!("{indent}{{\"file\": {}, \"sha256\": \"{hash}\"", quoted(file))
}

fn source_entry(source: &Source) -> String {
    let outputs: Vec<String> = source
        .outputs
        .iter()
        .map(|o| {
            let kernels: Vec<String> = o.kernels.iter().map(kernel_entry).collect();
            let head = file_entry("      ", &o.file, &o.sha256);
            format!(
                "{head}, \"target\": \"{}\", \"kernels\": [{}}}",
                o.target,
                list(&kernels, "      ")
            )
        })
        .collect();
    let head = file_entry("    ", &source.place, &source.sha256);
    format!("{head}, \"ptx\": [{}}}", list(&outputs, "    "))
}

fn kernel_entry(k: &Kernel) -> String {
    let mut line = format!(
        "        {{\"name\": {}, \"registers\": {}, \"shared_bytes\": {}, \"stack_bytes\": {}, \
         \"spill_bytes\": {}",
        quoted(&k.name),
        k.registers,
        k.shared_bytes,
        k.stack_bytes,
        k.spill_bytes
    );
    if let Some(reason) = &k.reason {
        let _ = write!(line, ", \"local_memory_reason\": {}", quoted(reason));
    }
    line + "}"
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// Compares every file the manifest names with its hash; returns how many there are. It reads
/// the layout [`render`] writes: `"file"` and `"sha256"` stand on one line.
pub fn verify(dir: &Path) -> Result<usize, String> {
    let path = dir.join("generated/manifest.json");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut files = 0;
    for line in text.lines() {
        let (Some(file), Some(hash)) = (field(line, "file"), field(line, "sha256")) else {
            continue;
        };
        let path = dir.join(file);
        let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if sha256(&bytes) != hash {
            return Err(format!("{} does not have the manifest's SHA-256", path.display()));
        }
        files += 1;
    }
    Ok(files)
}

fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(&format!("\"{key}\": \""))?.1.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_fails_verification() {
        let dir = std::env::temp_dir().join(format!("kernelc-test-{}", std::process::id()));
        fs::create_dir_all(dir.join("generated")).unwrap();
        fs::create_dir_all(dir.join("family")).unwrap();
        fs::write(dir.join("family/a.cu"), "source").unwrap();
        fs::write(dir.join("generated/a.sm80.ptx"), "text").unwrap();
        let kernel = Kernel { name: "a\"b".into(), registers: 9, ..Kernel::default() };
        let output = Output {
            target: "sm80",
            file: "generated/a.sm80.ptx".into(),
            sha256: sha256(b"text"),
            kernels: vec![kernel],
        };
        let (name, place) = ("a.cu".into(), "family/a.cu".into());
        let mut source = Source::new(&File { name, place, text: "source".into() });
        assert_eq!(source.stem(), "a");
        source.outputs.push(output);
        let text = render("12.4", &[], &[&source]);
        assert!(text.contains("\"name\": \"a\\\"b\", \"registers\": 9"), "{text}");
        fs::write(dir.join("generated/manifest.json"), text).unwrap();
        assert_eq!(verify(&dir), Ok(2));
        fs::write(dir.join("generated/a.sm80.ptx"), "other").unwrap();
        let message = verify(&dir).unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert!(message.contains("a.sm80.ptx"), "{message}");
    }

    #[test]
    fn sha256_known_answer() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), abc);
    }
}
