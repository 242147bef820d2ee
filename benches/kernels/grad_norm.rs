//! grad_norm: bound by bytes, 4 per element.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{GlobalNorm, GradNorm, grad_norm};
use gradus::{Device, View};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("grad_norm");
    for n in [1 << 16, 1 << 22] {
        let grad = vec![0.5f32; n];
        group.throughput(Throughput::Bytes(4 * n as u64));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                let mut norm = GlobalNorm::default();
                let grads = &[View::from(&grad)];
                grad_norm(&Device::Cpu, GradNorm { grads, norm: &mut norm }).unwrap();
                norm
            })
        });
    }
    group.finish();
}
