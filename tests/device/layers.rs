//! The layers that docs/DESIGN.md draws are those of the imports.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::root;

type Names = BTreeSet<String>;

/// Rows of the tables `| module of CRATE | imports | ... |`: module and what it imports.
fn drawn(package: &str) -> Vec<(String, Names)> {
    let text = std::fs::read_to_string(root().join("docs/DESIGN.md")).unwrap();
    let head = format!("| module of `{package}` | imports |");
    let (_, rows) = text.split_once(&head).expect("the table of modules");
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect();
    let cells = |row: &str| row.split('|').map(String::from).collect::<Vec<_>>();
    let row = |row: &str| {
        let cells = cells(row);
        let modules: Vec<String> = names(&cells[1]);
        let imports: Vec<String> = names(&cells[2]);
        modules.into_iter().map(move |module| (module, imports.iter().cloned().collect()))
    };
    rows.flat_map(row).collect()
}

/// Rust sources at a path: the file, or all files under the folder.
fn sources(path: &Path, out: &mut Vec<String>) {
    if path.is_file() {
        return out.push(std::fs::read_to_string(path).unwrap());
    }
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|e| e == "rs") {
            sources(&path, out);
        }
    }
}

/// The module that a path through the crate's root leads to.
fn module(word: &str) -> &str {
    match word {
        "Device" => "device",
        "DType" | "bf16" | "f16" => "dtype",
        "Error" | "Result" => "error",
        "View" | "ViewMut" => "view",
        name => name,
    }
}

/// Modules of its own crate that a module names, but for its tests and comments.
fn imported(folder: &str, name: &str) -> Names {
    let path = root().join(folder).join(name);
    let mut texts = Vec::new();
    for path in [path.with_extension("rs"), path].iter().filter(|path| path.exists()) {
        sources(path, &mut texts);
    }
    let mut found = Names::new();
    for text in texts {
        let (text, _) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((&text, ""));
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for after in code.flat_map(|line| line.split("crate::").skip(1)) {
            let end = |c: char| !c.is_alphanumeric() && c != '_';
            let word = after.split(end).next().unwrap();
            assert!(!word.is_empty(), "src/{name}: `crate::{after}`, write one path per line");
            found.insert(module(word).to_string());
        }
    }
    found.remove(name);
    found
}

#[test]
fn imports_are_those_that_the_design_draws() {
    for (package, folder) in [("gradus", "src"), ("gradus-rft", "src/rft")] {
        let drawn = drawn(package);
        let modules: Names = drawn.iter().map(|(module, _)| module.clone()).collect();
        let in_tree = std::fs::read_dir(root().join(folder)).unwrap().map(|f| f.unwrap().path());
        let in_tree: Names = in_tree
            .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "rs"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .filter(|name| !["lib", "rft", "bin"].contains(&name.as_str()))
            .collect();
        assert_eq!(modules, in_tree, "docs/DESIGN.md, modules of {package}");
        let mut below = Names::new();
        for (module, imports) in drawn {
            assert_eq!(imports, imported(folder, &module), "docs/DESIGN.md, imports of `{module}`");
            // Rows go from the bottom up: a module imports only what stands above it in the table.
            let back: Vec<_> = imports.difference(&below).collect();
            assert!(back.is_empty(), "`{module}` imports {back:?}, which docs/DESIGN.md has later");
            below.insert(module);
        }
    }
}
