//! nf4_quantize and nf4_dequantize, bf16 weight, blocks of 64: bytes are one reading of the weight
//! (2 per element) and the 4-bit matrix (0.5 + 4/64).

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Nf4Dequantize, Nf4Quantize, nf4_dequantize, nf4_quantize};
use gradus::quant::{Nf4Options, Nf4Tensor, QuantType};
use gradus::{Device, View, ViewMut, bf16};

pub fn bench(c: &mut Criterion) {
    for (n, k) in [(256, 256), (2048, 2048)] {
        let weight: Vec<bf16> =
            (0..n * k).map(|i| bf16::from_f32((i as f32 * 0.7).sin())).collect();
        let x = View::rows_of(&weight, k).unwrap();
        let bytes = Throughput::Bytes((n * k * 41 / 16) as u64);
        let id = || BenchmarkId::from_parameter(format!("{n}x{k}"));

        let mut group = c.benchmark_group("nf4_quantize");
        group.throughput(bytes.clone());
        let (mut packed, mut absmax) = (vec![0u8; n * k / 2], vec![0f32; n * k / 64]);
        group.bench_function(id(), |b| {
            b.iter(|| {
                let args = Nf4Quantize {
                    x,
                    quant_type: QuantType::Nf4,
                    blocksize: 64,
                    packed: (&mut packed).into(),
                    absmax: (&mut absmax).into(),
                };
                nf4_quantize(&Device::Cpu, args).unwrap();
            })
        });
        group.finish();

        let mut group = c.benchmark_group("nf4_dequantize");
        group.throughput(bytes);
        let tensor = Nf4Tensor::quantize(&Device::Cpu, x, &Nf4Options::default()).unwrap();
        let mut y = vec![bf16::ZERO; n * k];
        group.bench_function(id(), |b| {
            b.iter(|| {
                let y = ViewMut::rows_of(&mut y, k).unwrap();
                nf4_dequantize(&Device::Cpu, Nf4Dequantize { w: tensor.view(), y }).unwrap();
            })
        });
        group.finish();
    }
}
