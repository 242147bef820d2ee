//! The lines by which a family knows its ops and their tests. What lies in its folder and is not declared gets its
//! line; what is declared stays as it is written. A test that no line declares would never run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::tree::entries;

/// What stands in a `mod.rs` for a module `{}`, one line after the other.
const OP: [(&str, &str); 2] = [("pub mod ", ";"), ("pub use ", "::*;")];
const TEST: [(&str, &str); 1] = [("mod ", ";")];

/// The `mod.rs` files of all families, with every op and every test declared.
pub fn files(root: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let mut found = Vec::new();
    for family in entries(&root.join("src/ops"))? {
        // An op is a folder; files beside the folders are what ops share, and what a family makes public of it.
        found.extend(declared(&family, &OP, |path| path.join("gpu.rs").is_file())?);
    }
    for family in entries(&root.join("tests/ops"))? {
        let is_test = |path: &Path| {
            path.join("mod.rs").is_file()
                || path.extension().is_some_and(|e| e == "rs") && !path.ends_with("mod.rs")
        };
        found.extend(declared(&family, &TEST, is_test)?);
    }
    Ok(found)
}

/// A family's `mod.rs`, if the folder is one, with lines for the modules that lack theirs.
fn declared(
    family: &Path,
    lines: &[(&str, &str)],
    is_module: impl Fn(&Path) -> bool,
) -> Result<Option<(PathBuf, String)>, String> {
    let path = family.join("mod.rs");
    if !path.is_file() {
        return Ok(None);
    }
    let mut text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    for module in entries(family)?.iter().filter(|path| is_module(path)) {
        let name = module.file_stem().unwrap_or_default().to_string_lossy();
        let declaration = format!("mod {name};");
        let is_declaration = |line: &str| {
            let visible = line.strip_suffix(&declaration);
            visible.is_some_and(|before| before.is_empty() || before.starts_with("pub"))
        };
        if !text.lines().any(is_declaration) {
            for (before, after) in lines {
                text = with_line(&text, before, &format!("{before}{name}{after}"))
                    .ok_or(format!("{}: expected a line `{before}...`", path.display()))?;
            }
        }
    }
    Ok(Some((path, text)))
}

/// `text` with a line among those that begin alike, which are in the order of the alphabet.
fn with_line(text: &str, before: &str, line: &str) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let alike = |other: &&str| other.starts_with(before);
    let last = lines.iter().rposition(alike)?;
    let next = lines.iter().position(|other| alike(other) && *other > line);
    lines.insert(next.unwrap_or(last + 1), line);
    Some(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kernelc-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn ops_and_tests_without_a_line_get_it() {
        let root = tree(
            "modules",
            &[
                (
                    "src/ops/optim/mod.rs",
                    "//! Updates.\n\nmod shared;\n\npub mod adamw;\npub mod lerp;\n\n\
                     pub use adamw::*;\npub use lerp::*;\n",
                ),
                ("src/ops/optim/adamw/gpu.rs", ""),
                ("src/ops/optim/ema/gpu.rs", ""),
                ("src/ops/optim/lerp/gpu.rs", ""),
                ("src/ops/optim/zip/gpu.rs", ""),
                ("src/ops/optim/shared/cpu.rs", ""),
                ("src/ops/optim/helper.rs", ""),
                ("src/ops/mod.rs", "pub mod optim;\n"),
                ("tests/ops/optim/mod.rs", "mod adamw;\npub mod support;\n\nfn shared() {}\n"),
                ("tests/ops/optim/adamw.rs", ""),
                ("tests/ops/optim/ema.rs", ""),
                ("tests/ops/optim/lerp/mod.rs", ""),
                ("tests/ops/optim/support/mod.rs", ""),
                ("tests/ops/optim/data/values.json", ""),
            ],
        );
        let found = files(&root);
        fs::remove_dir_all(&root).unwrap();
        let texts: Vec<String> = found.unwrap().into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            texts,
            [
                "//! Updates.\n\nmod shared;\n\npub mod adamw;\npub mod ema;\npub mod lerp;\npub mod zip;\n\n\
                 pub use adamw::*;\npub use ema::*;\npub use lerp::*;\npub use zip::*;\n",
                "mod adamw;\nmod ema;\nmod lerp;\npub mod support;\n\nfn shared() {}\n",
            ]
        );
    }

    #[test]
    fn a_family_without_a_place_for_its_lines_is_refused() {
        let root = tree(
            "no-place",
            &[("src/ops/new/mod.rs", "//! New.\n"), ("src/ops/new/ema/gpu.rs", "")],
        );
        let found = files(&root);
        fs::remove_dir_all(&root).unwrap();
        let message = found.err().unwrap();
        assert!(message.ends_with("new/mod.rs: expected a line `pub mod ...`"), "{message}");
    }
}
