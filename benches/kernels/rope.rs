//! rope: bound by bytes, `2·T·H·D` elements.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Rope, rope};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("rope");
    for (t, h, d) in [(256, 4, 16), (2048, 32, 128)] {
        let positions: Vec<i32> = (0..t as i32).map(|i| i % 64).collect();
        let (cos, sin) = (vec![0.8f32; 64 * d / 2], vec![0.6f32; 64 * d / 2]);
        let mut x = vec![0.5f32; t * h * d];
        group.throughput(Throughput::Bytes((2 * x.len() * 4) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{t}x{h}x{d}")), |b| {
            b.iter(|| {
                let args = Rope {
                    x: ViewMut::new(&mut x, &[t as i64, h as i64, d as i64]).unwrap(),
                    positions: (&positions).into(),
                    cos: View::rows_of(&cos, d / 2).unwrap(),
                    sin: View::rows_of(&sin, d / 2).unwrap(),
                    inverse: false,
                };
                rope(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
