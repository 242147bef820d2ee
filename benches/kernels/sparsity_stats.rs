//! sparsity_stats (8 bytes per f32 element), delta_count (8) and lerp (12): bound by bytes.

use criterion::{Criterion, Throughput};
use gradus::ops::{Lerp, SparsityStats, UpdateSparsity, delta_count, lerp, sparsity_stats};
use gradus::{Device, View};

pub fn bench(c: &mut Criterion) {
    let (n, k) = (1024, 1024);
    let w0: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.7).sin()).collect();
    let w1: Vec<f32> = w0.iter().enumerate().map(|(i, w)| w + (i % 50 / 49) as f32).collect();
    let mut y = vec![0f32; n * k];
    let mut group = c.benchmark_group("sparsity_stats");
    group.throughput(Throughput::Bytes((8 * n * k) as u64));
    group.bench_function("stats", |b| {
        b.iter(|| {
            let mut stats = UpdateSparsity::default();
            let (w0, w1) = (View::rows_of(&w0, k).unwrap(), View::rows_of(&w1, k).unwrap());
            let args = SparsityStats { w0, w1, tol: 1e-5, row_nnz: None, stats: &mut stats };
            sparsity_stats(&Device::Cpu, args).unwrap();
            stats
        })
    });
    group.bench_function("delta_count", |b| {
        b.iter(|| delta_count::<f32>(&Device::Cpu, (&w0).into(), (&w1).into()).unwrap())
    });
    group.throughput(Throughput::Bytes((12 * n * k) as u64));
    group.bench_function("lerp", |b| {
        b.iter(|| {
            let (a, b) = ((&w0).into(), (&w1).into());
            lerp(&Device::Cpu, Lerp { a, b, weight: 0.3, y: (&mut y).into() }).unwrap();
        })
    });
    group.finish();
}
