//! kernelc: compiles every `<dir>/*.cu` to `<dir>/ptx/<op>.<target>.ptx` and writes
//! `<dir>/manifest.json`.
//!
//! No CUDA toolkit is needed: NVRTC and ptxas come from two PyPI wheels pinned by version and
//! SHA-256, installed under `target/kernelc`. Headers (`<dir>/*.cuh`) are handed to NVRTC from
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
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use manifest::{Kernel, Output, Source};

const USAGE: &str =
    "usage: kernelc [--dir kernels] [--check | --verify] [--nvrtc LIB] [--ptxas BIN]
  (no flag)  compile and write the PTX and the manifest
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
    let mut s =
        Settings { dir: PathBuf::from("kernels"), mode: Mode::Write, nvrtc: None, ptxas: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut path = || args.next().map(PathBuf::from).ok_or(format!("{arg} needs a path"));
        match arg.as_str() {
            "--dir" => s.dir = path()?,
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
    let sources = sources(&s.dir)?;
    let mut files = Vec::new();
    if !sources.is_empty() {
        let tools = wheels::locate(Path::new("target/kernelc"), &s.nvrtc, &s.ptxas)?;
        let nvrtc = nvrtc::Nvrtc::load(&tools.nvrtc)?;
        let headers = headers(&s.dir)?;
        let mut described = Vec::new();
        for path in &sources {
            described.push(compile(path, &headers, &nvrtc, &tools.ptxas, &mut files)?);
        }
        let text = manifest::render(&nvrtc.version, &headers, &described);
        files.push((s.dir.join("manifest.json"), text));
    }
    let stale = stale(&s.dir, &files)?;
    if s.mode == Mode::Check {
        return check(&files, &stale);
    }
    fs::create_dir_all(s.dir.join("ptx")).map_err(|e| format!("{}: {e}", s.dir.display()))?;
    for (path, text) in &files {
        fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for path in stale {
        fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(format!("{}: {} sources, {} files written", s.dir.display(), sources.len(), files.len()))
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

fn listed(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(format!("{}: {e}", dir.display())),
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    paths.sort();
    Ok(paths)
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>, String> {
    if !dir.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    listed(dir, "cu")
}

fn headers(dir: &Path) -> Result<Vec<(String, String)>, String> {
    listed(dir, "cuh")?.iter().map(|p| Ok((name_of(p), read(p)?))).collect()
}

/// PTX files of the directory that no source produces any more.
fn stale(dir: &Path, files: &[(PathBuf, String)]) -> Result<Vec<PathBuf>, String> {
    let mut ptx = listed(&dir.join("ptx"), "ptx")?;
    ptx.retain(|p| !files.iter().any(|(path, _)| path == p));
    Ok(ptx)
}

fn compile(
    path: &Path,
    headers: &[(String, String)],
    nvrtc: &nvrtc::Nvrtc,
    ptxas: &Path,
    files: &mut Vec<(PathBuf, String)>,
) -> Result<Source, String> {
    let (name, text) = (name_of(path), read(path)?);
    let stem = name.trim_end_matches(".cu").to_string();
    let wanted = manifest::comment_values(&text, "targets").next().map(str::to_string);
    let excuses: Vec<&str> = manifest::comment_values(&text, "local memory").collect();
    let mut outputs = Vec::new();
    for (suffix, nvrtc_arch, ptxas_arch) in TARGETS {
        if wanted.as_ref().is_some_and(|w| !w.split_whitespace().any(|t| t == suffix)) {
            continue;
        }
        let ptx = nvrtc.compile(&name, &text, headers, nvrtc_arch)?;
        check_version(&name, &ptx)?;
        let mut kernels = ptxas::inspect(ptxas, ptxas_arch, &ptx, &format!("{stem}.{suffix}"))?;
        for k in &mut kernels {
            excuse(&name, k, &excuses)?;
        }
        let file = format!("ptx/{stem}.{suffix}.ptx");
        outputs.push(Output {
            target: suffix,
            sha256: manifest::sha256(ptx.as_bytes()),
            file,
            kernels,
        });
        let dir = path.parent().unwrap_or(Path::new("."));
        files.push((dir.join("ptx").join(format!("{stem}.{suffix}.ptx")), ptx));
    }
    if outputs.is_empty() {
        return Err(format!("{name}: `// targets:` names none of sm80, sm90a"));
    }
    Ok(Source { sha256: manifest::sha256(text.as_bytes()), name, outputs })
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

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}
