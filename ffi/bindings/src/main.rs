//! Writes `ffi/src/sys.rs`, `ffi/src/registry.rs` and `ffi/src/ops/plain.rs` from `ffi/include/gradus.h`; with
//! `--check`, fails where a committed file differs. libclang comes from the folder `LIBCLANG_PATH`, or from a pinned PyPI wheel that pip puts
//! into `target/libclang`. Users of the crates never run this.

#[allow(dead_code)]
#[path = "../../tests/common/header.rs"]
mod header;
mod plain;
mod registry;

use std::path::Path;
use std::process::{Command, ExitCode};

const HEAD: &str = "// Generated from ffi/include/gradus.h by `cargo run -p gradus-bindings`.\n";

/// Another version may print the declarations in another way.
const LIBCLANG: &str = "libclang==18.1.1";

/// Points bindgen to libclang, which is fetched if no other is named.
fn find_libclang() -> Result<(), String> {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return Ok(());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/libclang");
    let native = folder.join("clang/native");
    if !native.is_dir() {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(&folder)
            .arg(LIBCLANG)
            .output()
            .map_err(|e| {
                format!("python3 -m pip: {e}; or set LIBCLANG_PATH to libclang's folder")
            })?;
        if !pip.status.success() {
            let said = String::from_utf8_lossy(&pip.stderr);
            return Err(format!(
                "pip could not install {LIBCLANG}: {}; or set LIBCLANG_PATH to libclang's folder",
                said.trim()
            ));
        }
    }
    // SAFETY: the program has one thread.
    unsafe { std::env::set_var("LIBCLANG_PATH", native) };
    Ok(())
}

/// The C compiler's own headers: libclang from PyPI comes without.
fn own_headers() -> Result<String, String> {
    let output = Command::new("cc").arg("-print-file-name=include").output();
    let output = output.map_err(|e| format!("cc: {e}"))?;
    String::from_utf8(output.stdout).map(|path| path.trim().to_string()).map_err(|e| e.to_string())
}

fn bindings(ffi: &Path) -> Result<String, String> {
    let header = ffi.join("include/gradus.h");
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_arg(format!("-isystem{}", own_headers()?))
        .allowlist_item("gradus_.*")
        .allowlist_item("GRADUS_.*")
        // Inline helpers have no symbol.
        .blocklist_function("gradus_(matrix|vector)")
        // An enum with a name becomes an enum, so that a `match` has to be complete.
        .rustified_enum("gradus_.*")
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
    Ok(bindings.to_string())
}

fn run() -> Result<(), String> {
    find_libclang()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let source = root.join("ffi/src");
    let bindings = bindings(&source.join(".."))?;
    let registry = registry::render(&bindings).map_err(|e| format!("not understood: {e}"))?;
    let plain = plain::render(&root)?;
    let check = std::env::args().any(|argument| argument == "--check");
    for (file, text) in [("sys.rs", bindings), ("registry.rs", registry), (plain::FILE, plain)] {
        let (file, text) = (source.join(file), format!("{HEAD}{text}"));
        if !check {
            std::fs::write(&file, text).map_err(|e| format!("{file:?}: {e}"))?;
        } else if std::fs::read_to_string(&file).map_err(|e| format!("{file:?}: {e}"))? != text {
            return Err(format!("{file:?} is not what the header gives"));
        }
    }
    Ok(())
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
