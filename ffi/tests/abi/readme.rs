//! The README's C program, compiled with warnings as errors against the header and the shared library, and
//! run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo puts the shared library of this build.
fn library_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().to_path_buf()
}

fn block(language: &str) -> String {
    let text = include_str!("../../../README.md");
    let (_, rest) =
        text.split_once(&format!("```{language}\n")).expect("the README has such a block");
    rest.split_once("```").unwrap().0.to_string()
}

#[test]
#[cfg(target_os = "linux")]
fn the_c_program_of_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("demo.c");
    assert!(block("c").lines().count() <= 12);
    std::fs::write(&source, block("c")).unwrap();
    let libraries = library_folder();
    for (compiler, language) in [("cc", &["-std=c99"][..]), ("c++", &["-std=c++17", "-xc++"][..])] {
        let program = folder.path().join(compiler);
        let built = Command::new(compiler)
            .args(language)
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"])
            .arg(format!("-I{}", root.join("include").display()))
            .arg(&source)
            .arg("-o")
            .arg(&program)
            .args(["-xnone"])
            .arg(format!("-L{}", libraries.display()))
            .arg("-lgradus_c")
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let run = Command::new(&program).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        assert_eq!(String::from_utf8_lossy(&run.stdout), "0.707 -0.707\n");
    }
}
