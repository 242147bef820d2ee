//! rmsnorm: bound by bytes, `2·T·D` elements.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{RmsNorm, rmsnorm};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("rmsnorm");
    for (rows, d) in [(256, 128), (512, 4096)] {
        let (x, weight, mut y) = (vec![0.5f32; rows * d], vec![1f32; d], vec![0f32; rows * d]);
        group.throughput(Throughput::Bytes((2 * rows * d * 4) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{d}")), |b| {
            b.iter(|| {
                let args = RmsNorm {
                    x: View::rows_of(&x, d).unwrap(),
                    weight: (&weight).into(),
                    eps: 1e-5,
                    y: ViewMut::rows_of(&mut y, d).unwrap(),
                    rstd: None,
                };
                rmsnorm(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
