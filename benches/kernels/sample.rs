//! sample: rows per second, open and filtered.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{LogitTransform, Sample, sample};
use gradus::{Device, View, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("sample");
    for (t, v) in [(512, 32), (32, 32_000)] {
        let logits: Vec<f32> = (0..t * v).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect();
        let uniform = vec![0.5f64; t];
        let (mut token, mut logp) = (vec![0i32; t], vec![0f32; t]);
        for (name, top_k, top_p) in [("open", 0, 1.0), ("top_k_50_top_p_0.9", 50, 0.9)] {
            group.throughput(Throughput::Bytes((t * v * 4) as u64));
            group.bench_function(BenchmarkId::new(name, format!("{t}x{v}")), |b| {
                b.iter(|| {
                    let args = Sample {
                        logits: View::rows_of(&logits, v).unwrap(),
                        vocab: v as i64,
                        transform: LogitTransform::default(),
                        top_k,
                        top_p,
                        min_p: 0.0,
                        greedy: false,
                        uniform: (&uniform).into(),
                        token: ViewMut::from(&mut token),
                        logp: ViewMut::from(&mut logp),
                        logp_kept: None,
                        kept_mass: None,
                        entropy: None,
                    };
                    sample(&Device::Cpu, args).unwrap();
                })
            });
        }
    }
    group.finish();
}
