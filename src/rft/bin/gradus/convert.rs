//! `gradus quantize`, `gradus merge` and `gradus lerp`: folders made of folders; `gradus diff`.

use std::path::PathBuf;
use std::time::Instant;

use gradus::escape::escaped;
use gradus::quant::{Nf4Options, QuantType};
use gradus::{DType, Error, Result};
use gradus_rft::io::system_memory;
use gradus_rft::pretrained::{Adapter, Converted, Difference, Pretrained};
use gradus_rft::train::progress::{Progress, line};

#[derive(clap::Args)]
pub struct QuantizeArgs {
    /// Hugging Face folder.
    model: PathBuf,
    /// Folder to write.
    out: PathBuf,
    /// Code book: nf4 or fp4.
    #[arg(long = "type", default_value = "nf4")]
    kind: String,
    /// Values per block, a power of two from 32 to 4096; transformers reads 64.
    #[arg(long, default_value_t = 64)]
    blocksize: usize,
    /// Keep the block maxima in f32.
    #[arg(long)]
    no_double_quant: bool,
}

#[derive(clap::Args)]
pub struct MergeArgs {
    /// Hugging Face folder; 4-bit weights are expanded.
    model: PathBuf,
    /// PEFT adapter.
    adapter: PathBuf,
    /// Folder to write.
    out: PathBuf,
    /// f32, bf16 or f16; that of the model without it.
    #[arg(long)]
    dtype: Option<String>,
}

#[derive(clap::Args)]
pub struct LerpArgs {
    /// Hugging Face folder.
    first: PathBuf,
    /// Folder of a model of the same shape.
    second: PathBuf,
    /// Folder to write, with configuration and tokenizer of the first.
    out: PathBuf,
    /// Share of the second model: 0 is the first, 1 the second.
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    weight: f64,
}

#[derive(clap::Args)]
pub struct DiffArgs {
    /// Hugging Face folder of the model before.
    first: PathBuf,
    /// Folder of the model after.
    second: PathBuf,
    /// Weights that are no more apart count as unchanged.
    #[arg(long, default_value_t = 1e-5, allow_negative_numbers = true)]
    tol: f64,
}

/// Runs `lerp`.
pub fn lerp(args: &LerpArgs) -> Result<()> {
    let mut second = Pretrained::open(&args.second)?;
    let what = |done: &Converted| {
        let (changed, kept) = (done.changed, done.kept);
        let mut text = format!("{changed} weights mixed, {kept} the same in both");
        if done.expanded > 0 {
            text += &format!(", {} 4-bit weights expanded", done.expanded);
        }
        text
    };
    let run = |folder: &mut Pretrained, on_tensor: OnTensor<'_>| {
        folder.lerp_to(&mut second, args.weight, &args.out, on_tensor)
    };
    convert("lerp", &args.first, &args.out, run, what)
}

/// The table that `diff` prints.
pub fn diff(args: &DiffArgs) -> Result<String> {
    let (mut first, mut second) = (Pretrained::open(&args.first)?, Pretrained::open(&args.second)?);
    let Difference { all, kinds } = first.difference(&mut second, args.tol, &mut |_, _| ())?;
    let rows = kinds.iter().map(|(kind, stats)| (kind.as_str(), stats)).chain([("all", &all)]);
    let width = kinds.keys().map(String::len).max().unwrap_or(0);
    let within = format!("within {:e}", args.tol);
    let mut text = format!(
        "{:width$}  {:>13}  {:>9}  {within:>13}  {:>12}  {:>11}\n",
        "", "weights", "unchanged", "bf16 absorbs", "largest"
    );
    for (kind, stats) in rows {
        let share = |count: u64| if stats.n == 0 { 1.0 } else { count as f64 / stats.n as f64 };
        let (equal, within) = (share(stats.equal_exact), stats.sparsity());
        let (absorbed, largest) = (share(stats.absorbed_bf16), stats.max_delta);
        text += &format!(
            "{kind:width$}  {:>13}  {equal:>9.4}  {within:>13.4}  {absorbed:>12.4}  {largest:>11.3e}\n",
            stats.n
        );
    }
    Ok(text)
}

/// Runs `quantize`.
pub fn quantize(args: &QuantizeArgs) -> Result<()> {
    let quant_type = match args.kind.as_str() {
        "nf4" => QuantType::Nf4,
        "fp4" => QuantType::Fp4,
        other => return Err(Error::config("type", format!("`{other}` is not nf4 or fp4"))),
    };
    let (blocksize, double_quant) = (args.blocksize, !args.no_double_quant);
    let options = Nf4Options { quant_type, blocksize, double_quant };
    let blocks = if double_quant { "double-quantized" } else { "maxima in f32" };
    let what = |done: &Converted| {
        let (dense, packed) = (size(done.to - done.packed), size(done.packed));
        format!(
            "{} weights in 4 bits ({}, blocks of {blocksize}, {blocks}; {packed}), {} as they were ({dense})",
            done.changed, args.kind, done.kept
        )
    };
    let run = |folder: &mut Pretrained, on_tensor: OnTensor<'_>| {
        folder.quantize_to(&args.out, &options, on_tensor)
    };
    convert("quantize", &args.model, &args.out, run, what)
}

/// Runs `merge`.
pub fn merge(args: &MergeArgs) -> Result<()> {
    let adapter = Adapter::load(&args.adapter)?;
    let what = |done: &Converted| {
        let mut text = format!("{} updates added", done.changed - done.replaced);
        if done.replaced > 0 {
            text += &format!(", {} modules replaced whole", done.replaced);
        }
        if done.expanded > 0 {
            text += &format!(", {} 4-bit weights expanded", done.expanded);
        }
        text += &format!(", {} weights as they were", done.kept);
        if done.untied {
            text += "; the head is a weight of its own now, no longer the embedding's";
        }
        text
    };
    let run = |folder: &mut Pretrained, on_tensor: OnTensor<'_>| {
        let dtype = match args.dtype.as_deref() {
            None => folder.config.dtype,
            Some("f32") => DType::F32,
            Some("bf16") => DType::Bf16,
            Some("f16") => DType::F16,
            Some(other) => {
                return Err(Error::config("dtype", format!("`{other}` is not f32, bf16 or f16")));
            }
        };
        folder.merge_to(&adapter, &args.out, dtype, on_tensor)
    };
    convert("merge", &args.model, &args.out, run, what)
}

/// What a conversion calls as tensors are done.
type OnTensor<'a> = &'a mut dyn FnMut(usize, usize);

fn convert(
    name: &'static str,
    model: &std::path::Path,
    out: &std::path::Path,
    run: impl FnOnce(&mut Pretrained, OnTensor<'_>) -> Result<Converted>,
    what: impl FnOnce(&Converted) -> String,
) -> Result<()> {
    let begun = Instant::now();
    let mut folder = Pretrained::open(model)?;
    let (bytes, peak) = (folder.files.bytes(), folder.conversion_memory());
    line(&format!("  reads {}, holds at most {}", size(bytes), size(peak)));
    let mut progress: Option<Progress> = None;
    let done = run(&mut folder, &mut |done, total| {
        let bar = progress.get_or_insert_with(|| Progress::new(name, 0, total as u64));
        bar.update(done as u64, String::new);
    });
    if let Some(bar) = progress {
        bar.finish();
    }
    let done = done?;
    let held = system_memory::peak_memory().unwrap_or(0);
    let (name, took) =
        (escaped(&out.display().to_string()).to_string(), begun.elapsed().as_secs_f64());
    line(&format!("  {name}: {}", what(&done)));
    let (from, to, held) = (size(done.from), size(done.to), size(held));
    line(&format!("  {from} -> {to} in {took:.1} s, memory {held}"));
    Ok(())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
