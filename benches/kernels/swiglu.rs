//! swiglu: bound by the exponential in f64 while it fits in cache, then by bytes, `3·T·F` elements.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Swiglu, swiglu};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("swiglu");
    for (rows, width) in [(256, 256), (512, 11008)] {
        let gate: Vec<f32> = (0..rows * width).map(|i| (i % 97) as f32 / 12.0 - 4.0).collect();
        let (up, mut y) = (vec![0.5f32; rows * width], vec![0f32; rows * width]);
        group.throughput(Throughput::Bytes((3 * rows * width * 4) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{width}")), |b| {
            b.iter(|| {
                let args = Swiglu {
                    gate: View::rows_of(&gate, width).unwrap(),
                    up: View::rows_of(&up, width).unwrap(),
                    y: ViewMut::rows_of(&mut y, width).unwrap(),
                };
                swiglu(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
