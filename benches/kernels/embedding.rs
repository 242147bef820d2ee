//! embedding: bound by bytes, `2·T·D` elements forward and `3·T·D` backward.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Embedding, EmbeddingBwd, embedding, embedding_bwd};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("embedding");
    for (t, v, d) in [(6144, 64, 64), (4096, 32000, 1024)] {
        let ids: Vec<i32> = (0..t).map(|i| (i * 7919 % v) as i32).collect();
        let mut table = vec![0.5f32; v * d];
        let mut y = vec![0.25f32; t * d];
        let name = format!("{t}x{v}x{d}");
        group.throughput(Throughput::Bytes((2 * t * d * 4) as u64));
        group.bench_function(BenchmarkId::new("forward", &name), |b| {
            b.iter(|| {
                let args = Embedding {
                    ids: (&ids).into(),
                    table: View::rows_of(&table, d).unwrap(),
                    y: ViewMut::rows_of(&mut y, d).unwrap(),
                };
                embedding(&Device::Cpu, args).unwrap();
            })
        });
        group.throughput(Throughput::Bytes((3 * t * d * 4) as u64));
        group.bench_function(BenchmarkId::new("backward", &name), |b| {
            b.iter(|| {
                let args = EmbeddingBwd {
                    ids: (&ids).into(),
                    dy: View::rows_of(&y, d).unwrap(),
                    dtable: ViewMut::rows_of(&mut table, d).unwrap(),
                };
                embedding_bwd(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
