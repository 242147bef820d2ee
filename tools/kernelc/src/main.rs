//! kernelc: compiles every `kernels/<family>/<op>.cu` to `kernels/generated/<op>.<target>.ptx`, and
//! writes the manifest, what the crate is built from (Rust, and the PTX compressed) beside them, the table of
//! `kernels/README.md`, and the lines that declare ops and their tests in the `mod.rs` of families.
//!
//! No CUDA toolkit is needed: NVRTC and ptxas come from two PyPI wheels pinned by version and
//! SHA-256, installed under `target/kernelc`. Headers (`*.cuh`) are handed to NVRTC from
//! memory, so no path of this machine reaches the PTX and two machines write the same bytes.
//! `kernels/<family>/<op>.h` holds what a kernel shares with its launch: constants, enums, parameter
//! structs. Their Rust side is written from them, and NVRTC is asked whether it has the same layout.
//!
//! A source chooses its targets and excuses local memory in comment lines of its own:
//!
//! ```text
//! // targets: sm90a
//! // local memory: my_kernel_*: an array of 8 floats is indexed at run time
//! ```

mod cache;
mod header;
mod layout;
mod manifest;
mod modules;
mod nvrtc;
mod pack;
mod ptxas;
mod readme;
mod rust;
mod token;
mod tree;
mod wheels;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use manifest::{Kernel, Output, Source};

const USAGE: &str = "usage: kernelc [--dir DIR] [--check | --verify] [--nvrtc LIB] [--ptxas BIN]
  (no flag)  compile `kernels`; write the PTX, the manifest and the Rust beside them, and declare new ops and tests
  --dir      compile the sources of another folder; write the PTX and the manifest only
  --check    compile and compare with the committed files, byte for byte
  --headers  write the Rust side of the shared headers and the declarations only, which takes a second
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
    Headers,
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
            "--headers" => s.mode = Mode::Headers,
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
    let generated = s.dir.join("generated");
    if s.mode == Mode::Headers {
        let files = declarations(&Compiler::new(s)?, &generated)?;
        return Ok(format!("{} of {} files written", write(&files)?, files.len()));
    }
    let sources = tree::files(&s.dir, "cu")?;
    if sources.is_empty() {
        return Err(format!("{} has no `.cu` file", s.dir.display()));
    }
    let files = compile_all(s, &sources, &generated)?;
    let stale = stale(&generated, &files)?;
    if s.mode == Mode::Check {
        return check(&files, &stale);
    }
    fs::create_dir_all(&generated).map_err(|e| format!("{}: {e}", generated.display()))?;
    let written = write(&files)?;
    for path in stale {
        fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let (dir, sources, all) = (s.dir.display(), sources.len(), files.len());
    Ok(format!("{dir}: {sources} sources, {written} of {all} files written"))
}

/// A generated file: its path and what is in it.
type File = (PathBuf, Vec<u8>);

fn is_written((path, bytes): &File) -> bool {
    fs::read(path).ok().as_ref() == Some(bytes)
}

/// Writes the files that differ, and says how many: cargo builds again what is newer than its output.
fn write(files: &[File]) -> Result<usize, String> {
    let differ: Vec<_> = files.iter().filter(|file| !is_written(file)).collect();
    for (path, bytes) in &differ {
        fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(differ.len())
}

/// The compilers and what they read.
struct Compiler {
    home: PathBuf,
    nvrtc: nvrtc::Nvrtc,
    ptxas: PathBuf,
    /// Which compilers they are, for the cache.
    tools: String,
    headers: Vec<tree::File>,
}

impl Compiler {
    fn new(s: &Settings) -> Result<Compiler, String> {
        let home = PathBuf::from("target/kernelc");
        let tools = wheels::locate(&home, &s.nvrtc, &s.ptxas)?;
        let shared = tree::files(&s.dir, "h")?;
        let mut headers = tree::files(&s.dir, "cuh")?;
        headers.extend(shared);
        let nvrtc = nvrtc::Nvrtc::load(&tools.nvrtc)?;
        let name = format!("{} {} {}", nvrtc.version, tools.nvrtc.display(), tools.ptxas.display());
        Ok(Compiler { home, nvrtc, ptxas: tools.ptxas, tools: name, headers })
    }
}

/// The Rust side of the shared headers, and the lines that declare ops and tests.
fn declarations(compiler: &Compiler, generated: &Path) -> Result<Vec<File>, String> {
    let mut texts = modules::files(Path::new(""))?;
    texts.push((generated.join("params.rs"), shared_definitions(compiler)?));
    Ok(texts.into_iter().map(|(path, text)| (path, text.into_bytes())).collect())
}

/// Every generated file of the folder.
fn compile_all(
    s: &Settings,
    sources: &[tree::File],
    generated: &Path,
) -> Result<Vec<File>, String> {
    let compiler = Compiler::new(s)?;
    let mut compiled = Vec::new();
    for source in in_parallel(sources, |source| compile(source, &compiler)) {
        compiled.push(source?);
    }
    let described: Vec<&Source> = compiled.iter().map(|(source, _)| source).collect();
    let manifest = manifest::render(&compiler.nvrtc.version, &compiler.headers, &described);
    let mut files = vec![(generated.join("manifest.json"), manifest.into_bytes())];
    if s.crate_own {
        files.extend(declarations(&compiler, generated)?);
        let packed: Vec<_> = in_parallel(&compiled, |(source, ptx)| pack::pack(source, ptx));
        files.push((generated.join("images.rs"), rust::images(&described, &packed).into_bytes()));
        let streams = packed.into_iter().flatten().filter_map(|image| image.stream);
        files.extend(streams.map(|(name, bytes)| (generated.join(name), bytes)));
        let path = s.dir.join("README.md");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let rows: Vec<_> = sources.iter().zip(described).collect();
        files.push((path, readme::with_table(&text, &rows)?.into_bytes()));
    }
    for (source, ptx) in compiled {
        let texts = source.outputs.iter().zip(ptx);
        files.extend(texts.map(|(output, ptx)| (s.dir.join(&output.file), ptx.into_bytes())));
    }
    Ok(files)
}

/// `work` on each item, on all cores; results in the order of the items.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((i, item)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            items.get(i).map(|item| (i, item))
        } {
            done.push((i, work(item)));
        }
        done
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let joined = workers.into_iter().map(|w| w.join());
        joined.flat_map(|done| done.unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, result)| result).collect()
}

/// The Rust side of the headers that kernels share with their launches, after the CUDA compiler
/// has agreed with every size, offset and value that Rust is going to have.
fn shared_definitions(compiler: &Compiler) -> Result<String, String> {
    let mut model = layout::Model { headers: Vec::new() };
    let mut left: Vec<&tree::File> =
        compiler.headers.iter().filter(|h| h.name.ends_with(".h")).collect();
    while !left.is_empty() {
        let known = |name: &str| model.header(name.trim_end_matches(".h")).is_some();
        let ready = |file: &&tree::File| {
            let includes = file.text.lines().filter_map(|l| l.strip_prefix("#include \""));
            includes.map(|l| l.trim_end_matches('"')).all(known)
        };
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(ready);
        if now.is_empty() {
            let names: Vec<&str> = later.iter().map(|f| f.place.as_str()).collect();
            return Err(format!("{}: an include is no shared header", names.join(", ")));
        }
        for file in now {
            let header = header::Header::parse(file, &model.headers)?;
            model.headers.push(header);
        }
        left = later;
    }
    model.headers.sort_by(|a, b| a.name.cmp(&b.name));
    for header in &model.headers {
        let text = format!("#include \"common.cuh\"\n{}", model.questions(header)?);
        let name = format!("{}.h as kernelc reads it", header.name);
        compiler.nvrtc.compile(&name, &text, &compiler.headers, TARGETS[0].1)?;
    }
    rust::params(&model)
}

fn check(files: &[File], stale: &[PathBuf]) -> Result<String, String> {
    let mut wrong: Vec<String> = files
        .iter()
        .filter(|file| !is_written(file))
        .map(|(path, _)| format!("{} is missing or differs", path.display()))
        .collect();
    wrong.extend(stale.iter().map(|p| format!("{} has no source", p.display())));
    if wrong.is_empty() {
        return Ok(format!("{} generated files are up to date", files.len()));
    }
    Err(format!("{}\nrun `cargo run --release -p kernelc` and commit the result", wrong.join("\n")))
}

/// Generated files that nothing produces any more.
fn stale(generated: &Path, files: &[File]) -> Result<Vec<PathBuf>, String> {
    let mut there = tree::entries(generated)?;
    there.retain(|p| !files.iter().any(|(path, _)| path == p));
    Ok(there)
}

/// Compiles a source for its targets: what there is to say of it, and the PTX of each target.
fn compile(file: &tree::File, compiler: &Compiler) -> Result<(Source, Vec<String>), String> {
    let (name, text) = (&file.name, &file.text);
    let wanted = manifest::comment_values(text, "targets").next();
    let excuses: Vec<&str> = manifest::comment_values(text, "local memory").collect();
    let mut source = Source::new(file);
    let mut texts = Vec::new();
    for (suffix, nvrtc_arch, ptxas_arch) in TARGETS {
        if wanted.is_some_and(|w| !w.split_whitespace().any(|t| t == suffix)) {
            continue;
        }
        let label = format!("{}.{suffix}", source.stem());
        let entry =
            cache::Entry::new(&compiler.home, &compiler.tools, suffix, file, &compiler.headers);
        let (ptx, report) = match entry.read() {
            Some(found) => found,
            None => {
                let ptx = compiler.nvrtc.compile(name, text, &compiler.headers, nvrtc_arch)?;
                let report = ptxas::report(&compiler.ptxas, ptxas_arch, &ptx, &label)?;
                entry.write(&ptx, &report)?;
                (ptx, report)
            }
        };
        check_version(name, &ptx)?;
        let mut kernels = ptxas::inspect(&report, &label)?;
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
