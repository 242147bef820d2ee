//! Limits on the length of files, functions and kernels, for all that is not generated.

use std::path::{Path, PathBuf};

use crate::common::root;

/// Lines of a Rust file, of a function, of a kernel's source or header.
const FILE: usize = 600;
const FUNCTION: usize = 60;
const KERNEL: usize = 400;

/// Files under a folder with one of the extensions, but for what is generated or built.
fn files(folder: &Path, extensions: &[&str], out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "generated", "artifacts"].contains(&&*name) {
            files(&path, extensions, out);
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            out.push(path);
        }
    }
}

/// Name, first line and length of each function that a rustfmt-ed text defines.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = |line: &str| {
        let code = line.trim_start();
        let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "unsafe ", "extern \"C\" "];
        let code = words.iter().fold(code, |code, word| code.strip_prefix(word).unwrap_or(code));
        let name = code.strip_prefix("fn ")?.split(['(', '<']).next()?;
        Some((name.to_string(), line.len() - line.trim_start().len()))
    };
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some((name, indent)) = starts(line) else { continue };
        // A body's last line, a body on one line, or a declaration without one.
        let length = lines[first..]
            .iter()
            .position(|l| l.ends_with(['}', ';']) && indent == l.len() - l.trim_start().len());
        found.extend(length.map(|length| (name, first + 1, length + 1)));
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let (mut rust, mut kernels) = (Vec::new(), Vec::new());
    for folder in ["src", "tests", "benches", "examples", "ffi", "tools"] {
        files(&root().join(folder), &["rs"], &mut rust);
    }
    files(&root().join("kernels"), &["cu", "cuh", "h"], &mut kernels);
    let mut long = Vec::new();
    for (paths, limit) in [(&rust, FILE), (&kernels, KERNEL)] {
        for path in paths {
            let text = std::fs::read_to_string(path).unwrap();
            let name = path.strip_prefix(root()).unwrap().display();
            // bindgen's output has no generated/ folder of its own.
            if text.lines().take(3).any(|line| line.contains("enerated by")) {
                continue;
            }
            let count = text.lines().count();
            if count > limit {
                long.push(format!("{name}: {count} lines, at most {limit}"));
            }
            if limit == FILE {
                let over = functions(&text).into_iter().filter(|f| f.2 > FUNCTION);
                long.extend(over.map(|(f, at, n)| format!("{name}:{at}: `{f}` has {n} lines")));
            }
        }
    }
    assert!(rust.len() > 300 && kernels.len() > 40, "{} {}", rust.len(), kernels.len());
    assert!(long.is_empty(), "{}", long.join("\n"));
}
