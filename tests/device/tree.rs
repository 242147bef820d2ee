//! Lists that name what is in the tree, against the tree: what they lack is untested or unknown, and what they
//! have too much never ran.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::common::root;

type Names = BTreeSet<String>;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Sources of kernels, or their headers, in every family.
fn kernels(extension: &str) -> Names {
    let families = std::fs::read_dir(root().join("kernels")).unwrap().map(|f| f.unwrap().path());
    let families = families.filter(|f| f.is_dir() && !f.ends_with("generated"));
    let of = |f: PathBuf| stems(f.strip_prefix(root()).unwrap().to_str().unwrap(), extension);
    families.flat_map(of).chain(stems("kernels", extension)).collect()
}

/// Files of a folder with this extension, by stem.
fn stems(folder: &str, extension: &str) -> Names {
    let files = std::fs::read_dir(root().join(folder)).unwrap().map(|f| f.unwrap().path());
    let fits = |f: &PathBuf| f.extension().is_some_and(|e| e == extension);
    files.filter(fits).map(|f| f.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

fn same(what: &str, left: &Names, right: &Names) {
    let only = |a: &Names, b: &Names| a.difference(b).cloned().collect::<Vec<_>>();
    let (left_only, right_only) = (only(left, right), only(right, left));
    assert!(
        left_only.is_empty() && right_only.is_empty(),
        "{what}: {left_only:?} | {right_only:?}"
    );
    assert!(!left.is_empty(), "{what}: nothing was found");
}

#[test]
fn every_kernel_is_shipped_and_described() {
    let sources = kernels("cu");
    for set in ["sm80", "sm90a"] {
        let ptx = stems("kernels/generated", "ptx");
        let of_set = ptx.iter().filter_map(|name| name.strip_suffix(&format!(".{set}")));
        same("kernels and kernels/generated", &sources, &of_set.map(String::from).collect());
    }
    let readme = read("kernels/README.md");
    let (table, _) = readme.split_once("## Counted by the emulator").unwrap();
    let of = |text: &str, end: &'static str| -> Names {
        let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
        quoted.iter().filter_map(|q| q.strip_suffix(end)).map(String::from).collect()
    };
    same("kernels and kernels/README.md", &sources, &of(table, ".cu"));
    let (_, files) = readme.split_once("## Files").unwrap();
    same("headers of kernels and kernels/README.md", &kernels("cuh"), &of(files, ".cuh"));
    for header in kernels("cuh") {
        let lines =
            files.lines().filter(|l| l.starts_with('|') && l.contains(&format!("`{header}.cuh`")));
        assert_eq!(lines.count(), 1, "kernels/README.md on {header}.cuh");
    }
}

const FAMILIES: [&str; 6] = ["vocabulary", "policy", "products", "quantize", "decoder", "optim"];

/// Ops of a family in the C header: those whose struct is passed to a function.
fn header_ops(family: &str) -> Names {
    let text = read(&format!("ffi/include/gradus/{family}.h"));
    let op = |line: &str| {
        line.strip_prefix("typedef struct gradus_")?.strip_suffix("_args {").map(String::from)
    };
    text.lines().filter_map(op).collect()
}

/// Folders of ops: `logprob` for src/ops/vocabulary/logprob.
fn rooms() -> Names {
    let folders = |path: PathBuf| {
        let inside = std::fs::read_dir(path).unwrap().map(|f| f.unwrap().path());
        inside.filter(|f| f.is_dir())
    };
    let name = |f: PathBuf| f.file_name().unwrap().to_string_lossy().into_owned();
    folders(root().join("src/ops")).flat_map(folders).map(name).collect()
}

/// An op of the C header lies in the header of its family. Every other list of ops comes from the header.
#[test]
fn the_header_has_the_families() {
    let mut compared = 0;
    for family in FAMILIES {
        for op in header_ops(family) {
            let elsewhere = |other: &&str| root().join("src/ops").join(other).join(&op).is_dir();
            let found = FAMILIES.iter().find(|other| elsewhere(other));
            assert!(
                found.is_none_or(|&found| found == family),
                "{op} is in {family}.h, not {found:?}"
            );
            compared += found.is_some() as usize;
        }
    }
    assert!(compared > 30, "{compared} ops compared");
}

#[test]
fn ops_of_the_readme_exist() {
    let ops: Names = FAMILIES.into_iter().flat_map(header_ops).collect();
    assert!(ops.len() >= 58, "{ops:?}");
    // Names of ops in the README are ops, or files of ops.
    let readme = read("README.md");
    let (_, what) = readme.split_once("## What is in it").expect("the README's list");
    let (what, _) = what.split_once("\n## ").unwrap();
    let rooms = rooms();
    let mut named = 0;
    for line in what.lines().filter(|l| FAMILIES.iter().any(|f| l.starts_with(&format!("| {f} |"))))
    {
        for name in line.split('`').skip(1).step_by(2) {
            let known = ops.contains(name) || rooms.contains(name);
            assert!(known, "README.md names the op `{name}`");
            named += 1;
        }
    }
    assert!(named > 12, "{named} ops named");
}

/// Markdown files of the repository.
fn documents() -> Vec<PathBuf> {
    let mut all = vec![
        root().join("README.md"),
        root().join("CONTRIBUTING.md"),
        root().join("SECURITY.md"),
        root().join("CHANGELOG.md"),
        root().join("kernels/README.md"),
        root().join("ffi/python/README.md"),
    ];
    for folder in ["docs", "docs/design", "tools/emu"] {
        let files = std::fs::read_dir(root().join(folder)).unwrap().map(|f| f.unwrap().path());
        all.extend(files.filter(|f| f.extension().is_some_and(|e| e == "md")));
    }
    all
}

#[test]
fn numerics_names_tests_that_exist() {
    let text = read("docs/NUMERICS.md");
    let mut count = 0;
    for name in
        text.split('`').skip(1).step_by(2).filter(|q| q.ends_with(".rs") && !q.contains(' '))
    {
        let places = ["tests", "ffi/tests", "src", "tools/emu/tests", "."];
        let found = places.iter().any(|place| root().join(place).join(name).is_file());
        assert!(found, "docs/NUMERICS.md names `{name}`");
        count += 1;
    }
    assert!(count > 10, "{count} tests named");
}

#[test]
fn tables_are_tables() {
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let first = line.starts_with('|') && (i == 0 || !lines[i - 1].starts_with('|'));
            let ruled = lines
                .get(i + 1)
                .is_some_and(|next| next.starts_with("|-") || next.starts_with("|:"));
            assert!(!first || ruled, "{}:{}: a row without a table", path.display(), i + 1);
        }
    }
}

#[test]
fn one_promise_of_what_a_failed_call_leaves() {
    let promise = "has written nothing. A call that fails later leaves its outputs unspecified, and everything else as it was";
    for path in ["src/error.rs", "src/lib.rs", "src/ops/mod.rs", "ffi/include/gradus.h"] {
        let text = read(path).replace("(no memory, a driver) ", "");
        let plain: Vec<&str> =
            text.split_whitespace().filter(|w| !["///", "//!", "*"].contains(w)).collect();
        assert!(plain.join(" ").contains(promise), "{path} promises something else");
    }
}
