//! vocab_kl: bound by two rows read (and one written by the gradient).

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{Divergence, LogitTransform, VocabKl, VocabKlBwd, vocab_kl, vocab_kl_bwd};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("vocab_kl");
    let (t, v) = (32, 32_000);
    let p: Vec<f32> = (0..t * v).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect();
    let r: Vec<f32> = (0..t * v).map(|i| ((i * 104_729) % 1000) as f32 * 0.01).collect();
    let (mut value, mut dpolicy, g) = (vec![0f32; t], vec![0f32; t * v], vec![1f32; t]);
    let (transform, vocab) = (LogitTransform::default(), v as i64);
    for divergence in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.5 }] {
        group.throughput(Throughput::Bytes((2 * t * v * 4) as u64));
        group.bench_function(BenchmarkId::new("forward", format!("{divergence:?}")), |b| {
            b.iter(|| {
                let args = VocabKl {
                    policy: View::rows_of(&p, v).unwrap(),
                    reference: View::rows_of(&r, v).unwrap(),
                    guidance: None,
                    vocab,
                    transform,
                    divergence,
                    value: (&mut value).into(),
                };
                vocab_kl(&Device::Cpu, args).unwrap();
            })
        });
        group.throughput(Throughput::Bytes((3 * t * v * 4) as u64));
        group.bench_function(BenchmarkId::new("backward", format!("{divergence:?}")), |b| {
            b.iter(|| {
                let args = VocabKlBwd {
                    policy: View::rows_of(&p, v).unwrap(),
                    reference: View::rows_of(&r, v).unwrap(),
                    guidance: None,
                    vocab,
                    transform,
                    divergence,
                    dvalue: (&g).into(),
                    dpolicy: ViewMut::rows_of(&mut dpolicy, v).unwrap(),
                };
                vocab_kl_bwd(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
