//! kernelc: compiles every `kernels/<family>/<op>.cu` to `kernels/generated/<op>.<target>.ptx`, and
//! writes the manifest and the Rust table of PTX files beside them.
//!
//! No CUDA toolkit is needed: NVRTC and ptxas come from two PyPI wheels pinned by version and
//! SHA-256, installed under `target/kernelc`. Headers (`*.cuh`) are handed to NVRTC from
//! memory, so no path of this machine reaches the PTX and two machines write the same bytes.
//!
//! A source chooses its targets and excuses local memory in comment lines of its own:
//!
//! ```text
//! // targets: sm90a
//! // local memory: my_kernel_*: an array of 8 floats is indexed at run time
//! ```

mod manifest;
mod nvrtc;
mod ptxas;
mod rust;
mod tree;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use manifest::{Kernel, Output, Source};

const USAGE: &str = "usage: kernelc [--dir DIR] [--check | --verify] [--nvrtc LIB] [--ptxas BIN]
  (no flag)  compile `kernels`; write the PTX, the manifest and the Rust beside them
  --dir      compile the sources of another folder; write the PTX and the manifest only
  --check    compile and compare with the committed files, byte for byte
  --verify   compare the files with the manifest's hashes; needs no compiler
  --nvrtc    libnvrtc to load in place of the pinned wheel's
  --ptxas    ptxas to run in place of the pinned wheel's";

/// Newest PTX ISA that 550-series drivers load.
const MAX_PTX_VERSION: (u32, u32) = (8, 4);

/// File suffix, NVRTC architecture, ptxas architecture.
const TARGETS: [(&str, &str, &str); 2] =
    [("sm80", "compute_80", "sm_80"), ("sm90a", "compute_90a", "sm_90a")];

#[derive(PartialEq)]
enum Mode {
    Write,
    Check,
    Verify,
}

struct Settings {
    dir: PathBuf,
    /// The folder is the crate's own, which has Rust beside its PTX.
    crate_own: bool,
    mode: Mode,
    nvrtc: Option<PathBuf>,
    ptxas: Option<PathBuf>,
}

fn main() -> ExitCode {
    match settings().and_then(|s| run(&s)) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("kernelc: {message}");
            ExitCode::FAILURE
        }
    }
}

fn settings() -> Result<Settings, String> {
    let mut s = Settings {
        dir: PathBuf::from("kernels"),
        crate_own: true,
        mode: Mode::Write,
        nvrtc: None,
        ptxas: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut path = || args.next().map(PathBuf::from).ok_or(format!("{arg} needs a path"));
        match arg.as_str() {
            "--dir" => (s.dir, s.crate_own) = (path()?, false),
            "--nvrtc" => s.nvrtc = Some(path()?),
            "--ptxas" => s.ptxas = Some(path()?),
            "--check" => s.mode = Mode::Check,
            "--verify" => s.mode = Mode::Verify,
            _ => return Err(format!("unknown argument `{arg}`\n{USAGE}")),
        }
    }
    Ok(s)
}

fn run(s: &Settings) -> Result<String, String> {
    if s.mode == Mode::Verify {
        let files = manifest::verify(&s.dir)?;
        return Ok(format!("{}: {files} files match the manifest", s.dir.display()));
    }
    let sources = tree::files(&s.dir, "cu")?;
    if sources.is_empty() {
        return Err(format!("{} has no `.cu` file", s.dir.display()));
    }
    let generated = s.dir.join("generated");
    let files = compile_all(s, &sources, &generated)?;
    let stale = stale(&generated, &files)?;
    if s.mode == Mode::Check {
        return check(&files, &stale);
    }
    fs::create_dir_all(&generated).map_err(|e| format!("{}: {e}", generated.display()))?;
    for (path, text) in &files {
        fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for path in stale {
        fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(format!("{}: {} sources, {} files written", s.dir.display(), sources.len(), files.len()))
}

/// Every generated file of the folder: its path and its text.
fn compile_all(
    s: &Settings,
    sources: &[tree::File],
    generated: &Path,
) -> Result<Vec<(PathBuf, String)>, String> {
    let tools = wheels::locate(Path::new("target/kernelc"), &s.nvrtc, &s.ptxas)?;
    let nvrtc = nvrtc::Nvrtc::load(&tools.nvrtc)?;
    let headers = tree::files(&s.dir, "cuh")?;
    let (mut files, mut described) = (Vec::new(), Vec::new());
    for source in sources {
        let (source, ptx) = compile(source, &headers, &nvrtc, &tools.ptxas)?;
        for (output, text) in source.outputs.iter().zip(ptx) {
            files.push((s.dir.join(&output.file), text));
        }
        described.push(source);
    }
    let manifest = manifest::render(&nvrtc.version, &headers, &described);
    files.push((generated.join("manifest.json"), manifest));
    if s.crate_own {
        files.push((generated.join("images.rs"), rust::images(&described)));
    }
    Ok(files)
}

fn check(files: &[(PathBuf, String)], stale: &[PathBuf]) -> Result<String, String> {
    let mut wrong: Vec<String> = files
        .iter()
        .filter(|(path, text)| fs::read(path).ok().as_deref() != Some(text.as_bytes()))
        .map(|(path, _)| format!("{} is missing or differs", path.display()))
        .collect();
    wrong.extend(stale.iter().map(|p| format!("{} has no source", p.display())));
    if wrong.is_empty() {
        return Ok(format!("{} generated files are up to date", files.len()));
    }
    Err(format!("{}\nrun `cargo run --release -p kernelc` and commit the result", wrong.join("\n")))
}

/// Generated files that nothing produces any more.
fn stale(generated: &Path, files: &[(PathBuf, String)]) -> Result<Vec<PathBuf>, String> {
    let mut there = tree::entries(generated)?;
    there.retain(|p| !files.iter().any(|(path, _)| path == p));
    Ok(there)
}

/// Compiles a source for its targets: what there is to say of it, and the PTX of each target.
fn compile(
    file: &tree::File,
    headers: &[tree::File],
    nvrtc: &nvrtc::Nvrtc,
    ptxas: &Path,
) -> Result<(Source, Vec<String>), String> {
    let (name, text) = (&file.name, &file.text);
    let wanted = manifest::comment_values(text, "targets").next();
    let excuses: Vec<&str> = manifest::comment_values(text, "local memory").collect();
    let mut source = Source::new(file);
    let mut texts = Vec::new();
    for (suffix, nvrtc_arch, ptxas_arch) in TARGETS {
        if wanted.is_some_and(|w| !w.split_whitespace().any(|t| t == suffix)) {
            continue;
        }
        let ptx = nvrtc.compile(name, text, headers, nvrtc_arch)?;
        check_version(name, &ptx)?;
        let label = format!("{}.{suffix}", source.stem());
        let mut kernels = ptxas::inspect(ptxas, ptxas_arch, &ptx, &label)?;
        for k in &mut kernels {
            excuse(name, k, &excuses)?;
        }
        source.outputs.push(Output {
            target: suffix,
            sha256: manifest::sha256(ptx.as_bytes()),
            file: format!("generated/{label}.ptx"),
            kernels,
        });
        texts.push(ptx);
    }
    if texts.is_empty() {
        return Err(format!("{name}: `// targets:` names none of sm80, sm90a"));
    }
    Ok((source, texts))
}

/// Local memory must be zero unless the source gives the reason.
fn excuse(source: &str, kernel: &mut Kernel, excuses: &[&str]) -> Result<(), String> {
    if kernel.spill_bytes == 0 && kernel.stack_bytes == 0 {
        return Ok(());
    }
    let names = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => kernel.name.starts_with(start),
        None => kernel.name == pattern,
    };
    let told = excuses.iter().filter_map(|e| e.split_once(':'));
    let reason = told.filter(|(who, _)| names(who)).map(|(_, why)| why).next().ok_or(format!(
        "{source}: kernel `{}` has {} bytes of stack and {} bytes of spills, expected 0 or a line \
         `// local memory: {}: <reason>`",
        kernel.name, kernel.stack_bytes, kernel.spill_bytes, kernel.name
    ))?;
    kernel.reason = Some(reason.trim().to_string());
    Ok(())
}

fn check_version(name: &str, ptx: &str) -> Result<(), String> {
    let line = ptx.lines().find_map(|l| l.trim().strip_prefix(".version ")).unwrap_or("");
    let parsed =
        line.trim().split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some(v) if v <= MAX_PTX_VERSION => Ok(()),
        _ => Err(format!("{name}: PTX version `{line}`, expected at most 8.4")),
    }
}
