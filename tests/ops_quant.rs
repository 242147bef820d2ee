//! 4-bit quantisation: golden files of bitsandbytes.

mod common;

use common::Golden;
use gradus::dtype::Float;
use gradus::ops::{
    Nf4Dequantize, Nf4Quantize, Nf4QuantizeAbsmax, nf4_dequantize, nf4_quantize,
    nf4_quantize_absmax,
};
use gradus::quant::{
    Absmax, FP4_CODE, NF4_CODE, Nf4Options, Nf4Parts, Nf4Tensor, Nf4View, OwnedAbsmax, QuantType,
    dynamic_map,
};
use gradus::{DType, Device, Error, View, ViewMut, bf16, f16};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn golden_options(golden: &Golden) -> Nf4Options {
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

/// Codes, maxima, nested maxima, nested codes, tables and offset: all equal bit for bit.
fn check_golden<T: Float>(golden: &Golden) {
    let (name, shape) = (&golden.name, golden.shape("weight"));
    let weight: Vec<T> = golden.get("weight");
    let x = View::rows_of(&weight, shape[1]).unwrap();
    let tensor = Nf4Tensor::quantize(&Device::Cpu, x, &golden_options(golden)).unwrap();
    let parts = tensor.parts();
    assert_eq!(parts.packed, golden.raw("packed"), "{name}: packed");
    assert_eq!(bits(&parts.code), bits(&golden.get::<f32>("code")), "{name}: code");
    match &parts.absmax {
        OwnedAbsmax::F32(absmax) => {
            assert_eq!(bits(absmax), bits(&golden.get("absmax")), "{name}: absmax");
        }
        OwnedAbsmax::Nested { codes, nested, table, offset, .. } => {
            assert_eq!(bits(&[*offset]), bits(&golden.get("offset")), "{name}: offset");
            assert_eq!(bits(nested), bits(&golden.get("nested_absmax")), "{name}: nested");
            assert_eq!(bits(table), bits(&golden.get("nested_code")), "{name}: table");
            assert_eq!(codes, &golden.raw("absmax"), "{name}: absmax codes");
        }
    }
    let y: Vec<T> = tensor.dequantize(&Device::Cpu).unwrap();
    let expected: Vec<T> = golden.get("dequantized");
    let differ = y.iter().zip(&expected).filter(|(a, b)| a != b).count();
    eprintln!("{name}: {differ} of {}", y.len());
}

#[test]
fn nf4_quantize_equals_bitsandbytes_bit_for_bit() {
    for golden in Golden::family("nf4") {
        match golden.dtype("weight") {
            safetensors::Dtype::F32 => check_golden::<f32>(&golden),
            safetensors::Dtype::F16 => check_golden::<f16>(&golden),
            safetensors::Dtype::BF16 => check_golden::<bf16>(&golden),
            other => panic!("{other:?}"),
        }
    }
}
