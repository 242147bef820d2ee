//! Writes `ffi/src/sys.rs` from `ffi/include/gradus.h`; with `--check`, fails where the committed file
//! is another. Needs libclang: `LIBCLANG_PATH=$(python3 -c 'import clang.native as n; print(n.__path__[0])')`
//! after `pip install libclang`. Users of the crates never run this.

use std::path::Path;
use std::process::{Command, ExitCode};

const HEAD: &str = "// Generated from ffi/include/gradus.h by `cargo run -p gradus-bindings`.\n";

/// The C compiler's own headers: libclang from PyPI comes without.
fn own_headers() -> Result<String, String> {
    let output = Command::new("cc").arg("-print-file-name=include").output();
    let output = output.map_err(|e| format!("cc: {e}"))?;
    String::from_utf8(output.stdout).map(|path| path.trim().to_string()).map_err(|e| e.to_string())
}

fn generate(ffi: &Path) -> Result<String, String> {
    let header = ffi.join("include/gradus.h");
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_arg(format!("-isystem{}", own_headers()?))
        .allowlist_item("gradus_.*")
        .allowlist_item("GRADUS_.*")
        // Inline helpers have no symbol.
        .blocklist_function("gradus_(matrix|vector)")
        .prepend_enum_name(false)
        .layout_tests(false)
        .generate_comments(false)
        .use_core()
        .merge_extern_blocks(true)
        .sort_semantically(true)
        .derive_default(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::Rustfmt)
        .generate()
        .map_err(|e| e.to_string())?;
    Ok(format!("{HEAD}{bindings}"))
}

fn run() -> Result<(), String> {
    let ffi = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (file, text) = (ffi.join("src/sys.rs"), generate(&ffi)?);
    if std::env::args().any(|argument| argument == "--check") {
        let committed = std::fs::read_to_string(&file).map_err(|e| format!("{file:?}: {e}"))?;
        return if committed == text {
            Ok(())
        } else {
            Err(format!("{file:?} is not what the header gives"))
        };
    }
    std::fs::write(&file, text).map_err(|e| format!("{file:?}: {e}"))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}
