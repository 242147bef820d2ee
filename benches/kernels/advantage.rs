//! Per-sequence and per-token advantage ops: bound by bytes, `O(B)` or `O(T)` scalars.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{
    CopgLoss, Gae, GroupAdvantage, GroupSettings, OnNan, Quantile, QuantileMethod, QuantileScope,
    SeqReduce, SeqReduction, copg_loss, gae, group_advantage, quantile, seq_reduce,
};
use gradus::rng::{Purpose, Rng};
use gradus::{Device, View};

fn values(n: usize) -> Vec<f32> {
    let mut rng = Rng::new(1, Purpose::User, [0; 3]);
    (0..n).map(|_| rng.uniform() as f32).collect()
}

fn offsets(parts: usize, size: usize) -> Vec<i64> {
    (0..=parts).map(|i| (i * size) as i64).collect()
}

pub fn bench(c: &mut Criterion) {
    groups(c);
    tokens(c);
    order(c);
}

fn groups(c: &mut Criterion) {
    let mut group = c.benchmark_group("group_advantage");
    for (count, size) in [(64, 8), (4096, 16)] {
        let (reward, offsets) = (values(count * size), offsets(count, size));
        let mut advantage = vec![0f32; count * size];
        group.throughput(Throughput::Elements((count * size) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{count}x{size}")), |b| {
            b.iter(|| {
                let args = GroupAdvantage {
                    reward: (&reward).into(),
                    offsets: (&offsets).into(),
                    length: None,
                    settings: GroupSettings::default(),
                    advantage: (&mut advantage).into(),
                    groups: None,
                };
                group_advantage(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
    let mut group = c.benchmark_group("pair_loss");
    let (count, size) = (4096, 16);
    let (logp, reward, offsets) =
        (values(count * size), values(count * size), offsets(count, size));
    let (mut loss, mut dlogp) = (vec![0f32; count], vec![0f32; count * size]);
    group.throughput(Throughput::Elements((count * size) as u64));
    group.bench_function(BenchmarkId::new("copg", format!("{count}x{size}")), |b| {
        b.iter(|| {
            let args = CopgLoss {
                logp: (&logp).into(),
                reference: Some((&logp).into()),
                reward: (&reward).into(),
                offsets: (&offsets).into(),
                beta: 0.1,
                weight: None,
                loss: (&mut loss).into(),
                dlogp: (&mut dlogp).into(),
                total: None,
            };
            copg_loss(&Device::Cpu, args).unwrap();
        })
    });
    group.finish();
}

fn tokens(c: &mut Criterion) {
    let (count, length) = (512, 2048);
    let tokens = count * length;
    let (reward, value, cu_seqlens) = (values(tokens), values(tokens), offsets(count, length));
    let (mut advantage, mut sums) = (vec![0f32; tokens], vec![0f32; count]);
    let mask = vec![1u8; tokens];
    let mut group = c.benchmark_group("gae");
    group.throughput(Throughput::Bytes((13 * tokens) as u64));
    group.bench_function(BenchmarkId::from_parameter(format!("{count}x{length}")), |b| {
        b.iter(|| {
            let args = Gae {
                reward: (&reward).into(),
                value: (&value).into(),
                mask: Some((&mask).into()),
                cu_seqlens: (&cu_seqlens).into(),
                bootstrap: None,
                gamma: 1.0,
                gae_lambda: 0.95,
                advantage: (&mut advantage).into(),
                returns: None,
            };
            gae(&Device::Cpu, args).unwrap();
        })
    });
    group.finish();
    let mut group = c.benchmark_group("seq_reduce");
    group.throughput(Throughput::Bytes((5 * tokens) as u64));
    group.bench_function(BenchmarkId::new("sum", format!("{count}x{length}")), |b| {
        b.iter(|| {
            let args = SeqReduce {
                x: (&reward).into(),
                mask: Some((&mask).into()),
                cu_seqlens: (&cu_seqlens).into(),
                reduction: SeqReduction::Sum,
                y: (&mut sums).into(),
                count: None,
            };
            seq_reduce(&Device::Cpu, args).unwrap();
        })
    });
    group.finish();
}

fn order(c: &mut Criterion) {
    let mut group = c.benchmark_group("quantile");
    for tokens in [1 << 12, 1 << 20] {
        let (x, mut y) = (values(tokens), vec![0f32]);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(BenchmarkId::new("all", tokens), |b| {
            b.iter(|| {
                let args = Quantile {
                    x: View::from(&x),
                    mask: None,
                    scope: QuantileScope::All,
                    q: 0.8,
                    method: QuantileMethod::Linear,
                    on_nan: OnNan::Error,
                    y: (&mut y).into(),
                };
                quantile(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
