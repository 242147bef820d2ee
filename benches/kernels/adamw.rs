//! adamw: bound by bytes, 32 per element; adamw_8bit: 16 per element, bound by the search of codes.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::Device;
use gradus::ops::{
    AdamW, AdamW8bit, AdamW8bitTensor, AdamWOutcome, AdamWSettings, AdamWTensor, adamw, adamw_8bit,
};

pub fn bench(c: &mut Criterion) {
    for n in [1 << 16, 1 << 22] {
        let grad: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
        let (mut param, mut outcome) = (vec![1f32; n], AdamWOutcome::default());

        let mut group = c.benchmark_group("adamw");
        group.throughput(Throughput::Bytes(32 * n as u64));
        let (mut m, mut v) = (vec![0f32; n], vec![0f32; n]);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                let tensor = AdamWTensor {
                    param: (&mut param).into(),
                    grad: (&grad).into(),
                    m: (&mut m).into(),
                    v: (&mut v).into(),
                    mask: None,
                };
                let settings = AdamWSettings::default();
                let args = AdamW { tensors: vec![tensor], settings, outcome: &mut outcome };
                adamw(&Device::Cpu, args).unwrap();
            })
        });
        group.finish();

        let mut group = c.benchmark_group("adamw_8bit");
        group.throughput(Throughput::Bytes(16 * n as u64));
        let (mut m, mut v) = (vec![0u8; n], vec![0u8; n]);
        let (mut m_absmax, mut v_absmax) = (vec![0f32; n / 256], vec![0f32; n / 256]);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                let tensor = AdamW8bitTensor {
                    param: (&mut param).into(),
                    grad: (&grad).into(),
                    m: (&mut m).into(),
                    v: (&mut v).into(),
                    m_absmax: (&mut m_absmax).into(),
                    v_absmax: (&mut v_absmax).into(),
                    mask: None,
                };
                let settings = AdamWSettings::default();
                let args = AdamW8bit { tensors: vec![tensor], settings, outcome: &mut outcome };
                adamw_8bit(&Device::Cpu, args).unwrap();
            })
        });
        group.finish();
    }
}
