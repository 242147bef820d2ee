//! logprob and its gradient, linear_logprob, gather_k: bound by the logits' bytes (one read; the
//! gradient one read and one write) and by an exponential per logit.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{
    GatherK, Head, LinearLogProb, LogProb, LogProbBwd, LogitTransform, gather_k, linear_logprob,
    logprob, logprob_bwd,
};
use gradus::{Device, View, ViewMut};

fn row(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect()
}

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("logprob");
    for (t, v) in [(512, 32), (64, 32_000), (16, 151_936)] {
        let (logits, targets, g) = (row(t * v), vec![3i32; t], vec![1f32; t]);
        let (mut logp, mut dlogits) = (vec![0f32; t], vec![0f32; t * v]);
        group.throughput(Throughput::Bytes((t * v * 4) as u64));
        group.bench_function(BenchmarkId::new("forward", format!("{t}x{v}")), |b| {
            b.iter(|| {
                let x = View::rows_of(&logits, v).unwrap();
                let args = LogProb::new(x, (&targets).into(), (&mut logp).into());
                logprob(&Device::Cpu, args).unwrap();
            })
        });
        group.throughput(Throughput::Bytes((2 * t * v * 4) as u64));
        group.bench_function(BenchmarkId::new("backward", format!("{t}x{v}")), |b| {
            b.iter(|| {
                let x = View::rows_of(&logits, v).unwrap();
                let out = ViewMut::rows_of(&mut dlogits, v).unwrap();
                let args = LogProbBwd::new(x, (&targets).into(), (&g).into(), out);
                logprob_bwd(&Device::Cpu, args).unwrap();
            })
        });
        let ids: Vec<i32> = (0..8 * t as i32).map(|i| i % 8).collect();
        let mut kept = vec![0f32; 8 * t];
        group.throughput(Throughput::Bytes((t * v * 4) as u64));
        group.bench_function(BenchmarkId::new("gather_8", format!("{t}x{v}")), |b| {
            b.iter(|| {
                let args = GatherK {
                    logits: View::rows_of(&logits, v).unwrap(),
                    ids: View::rows_of(&ids, 8).unwrap(),
                    vocab: v as i64,
                    transform: LogitTransform::default(),
                    renormalize: false,
                    logp: ViewMut::rows_of(&mut kept, 8).unwrap(),
                    mass: None,
                };
                gather_k(&Device::Cpu, args).unwrap();
            })
        });
    }
    let (t, h, v) = (256, 256, 8192);
    let (hidden, w, targets) = (row(t * h), row(v * h), vec![3i32; t]);
    let (mut logp, mut score) = (vec![0f32; t], vec![0f32; t * h]);
    group.throughput(Throughput::Elements((4 * t * h * v) as u64));
    group.bench_function(BenchmarkId::new("linear_with_score", format!("{t}x{h}x{v}")), |b| {
        b.iter(|| {
            let args = LinearLogProb {
                score: Some(ViewMut::rows_of(&mut score, h).unwrap()),
                ..LinearLogProb::new(
                    View::rows_of(&hidden, h).unwrap(),
                    Head::Dense(View::rows_of(&w, h).unwrap()),
                    (&targets).into(),
                    (&mut logp).into(),
                )
            };
            linear_logprob(&Device::Cpu, args).unwrap();
        })
    });
    group.finish();
}
