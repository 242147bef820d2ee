//! 4-bit tensors, and their values by the rule.

use crate::common::devices::on_all;
use crate::common::{Golden, bits, same_parts};
use gradus::quant::{Nf4Options, Nf4Tensor, OwnedAbsmax, QuantType};
use gradus::{DType, Device, View, bf16, f16};

pub fn golden_options(golden: &Golden) -> Nf4Options {
    Nf4Options {
        quant_type: match golden.text("quant_type") {
            Some("nf4") => QuantType::Nf4,
            Some("fp4") => QuantType::Fp4,
            other => panic!("{}: {other:?}", golden.name),
        },
        blocksize: golden.number("blocksize").unwrap() as usize,
        double_quant: golden.has("nested_absmax"),
    }
}

pub fn round_to(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

pub fn nibble(packed: &[u8], i: usize) -> usize {
    (packed[i / 2] >> (4 * (1 - i % 2)) & 15) as usize
}

/// Dequantized values computed one by one from the layout.
pub fn dequantized_by_rule(tensor: &Nf4Tensor) -> Vec<f32> {
    let p = tensor.parts();
    let absmax = |block: usize| match &p.absmax {
        OwnedAbsmax::F32(absmax) => absmax[block],
        OwnedAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
            let (value, scale) = (table[codes[block] as usize], nested[block / nested_blocksize]);
            value * scale + offset
        }
    };
    (0..p.n * p.k)
        .map(|i| round_to(p.dtype, p.code[nibble(&p.packed, i)] * absmax(i / p.blocksize)))
        .collect()
}

pub fn dequantize(tensor: &Nf4Tensor) -> Vec<f32> {
    let run = |device: &Device| tensor.dequantize::<f32>(device).unwrap();
    on_all(run, |name, cpu, gpu| assert_eq!(bits(cpu), bits(gpu), "{name}"))
}

pub fn quantize(x: &[f32], k: usize, options: &Nf4Options) -> Nf4Tensor {
    let run = |device: &Device| {
        Nf4Tensor::quantize(device, View::rows_of(x, k).unwrap(), options).unwrap()
    };
    on_all(run, |name, cpu, gpu| same_parts(name, cpu.parts(), gpu.parts()))
}

pub fn options(quant_type: QuantType, blocksize: usize) -> Nf4Options {
    Nf4Options { quant_type, blocksize, double_quant: false }
}
