//! Logits of a model with a PEFT adapter, for comparison with other implementations.
//!
//!     cargo run --release --example adapter_logits -- MODEL ADAPTER OUT.safetensors
//!
//! `OUT` gets `input_ids` `[1, 48]` and `logits` `[1, 48, vocab]`, in f32 on the CPU.

use std::path::Path;

use gradus::{Device, Error, Result};
use gradus_rft::io::safetensors::{TensorData, Tensors, write_pt};
use gradus_rft::model::{Decoder, Packed};
use gradus_rft::pretrained::{Adapter, LoadOptions, Pretrained};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, out] = arguments.as_slice() else {
        return Err(Error::config("arguments", "expected MODEL ADAPTER OUT.safetensors"));
    };
    let mut folder = Pretrained::open(model.as_ref())?;
    let mut decoder: Decoder = folder.load(Device::Cpu, &LoadOptions::default())?;
    Adapter::load(adapter.as_ref())?.attach(&mut decoder)?;

    let vocab = decoder.config.vocab;
    let ids: Vec<i32> = (0..48).map(|i| (i * 89 + 5) % vocab as i32).collect();
    let batch = Packed::of([ids.as_slice()]).place(&decoder.allocator)?;
    let hidden = decoder.forward(&batch, true, None, None)?;
    let logits = decoder.logits(&decoder.allocator, &hidden)?.to_host()?;

    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let mut tensors = Tensors::new();
    tensors.insert("input_ids".into(), TensorData::new(&[1, 48], &ids));
    tensors.insert("logits".into(), TensorData::new(&[1, 48, vocab], &logits));
    write_pt(Path::new(out), &tensors)
}
