//! policy_loss and offpolicy_weight: tokens per second.

use criterion::{BenchmarkId, Criterion, Throughput};
use gradus::ops::{
    Advantage, Kl, OffPolicySettings, OffPolicyWeight, PolicyLoss, PolicySettings,
    offpolicy_weight, policy_loss,
};
use gradus::{Device, ViewMut};

pub fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("policy_loss");
    for (sequences, length) in [(512, 8), (64, 2048)] {
        let n = sequences * length;
        let logp: Vec<f32> = (0..n).map(|i| -0.1 - (i % 97) as f32 * 0.01).collect();
        let old: Vec<f32> = logp.iter().map(|l| l - 0.01).collect();
        let advantage: Vec<f32> = (0..sequences).map(|i| (i % 5) as f32 - 2.0).collect();
        let offsets: Vec<i64> = (0..=sequences).map(|i| (i * length) as i64).collect();
        let weight = vec![1.0 / n as f32; sequences];
        let settings = PolicySettings { kl: Some(Kl::k3(0.04)), ..PolicySettings::default() };
        let (mut loss, mut dlogp) = (0.0, vec![0f32; n]);
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(BenchmarkId::new("grpo", format!("{sequences}x{length}")), |b| {
            b.iter(|| {
                let args = PolicyLoss {
                    old_logp: Some((&old).into()),
                    ref_logp: Some((&old).into()),
                    ..PolicyLoss::new(
                        (&logp).into(),
                        Advantage::PerSequence((&advantage).into()),
                        (&offsets).into(),
                        (&weight).into(),
                        &settings,
                        &mut loss,
                        ViewMut::from(&mut dlogp),
                    )
                };
                policy_loss(&Device::Cpu, args).unwrap();
            })
        });
        let id = BenchmarkId::new("offpolicy_weight", format!("{sequences}x{length}"));
        group.bench_function(id, |b| {
            b.iter(|| {
                let args = OffPolicyWeight {
                    old_logp: (&logp).into(),
                    sampler_logp: (&old).into(),
                    mask: None,
                    cu_seqlens: (&offsets).into(),
                    settings: OffPolicySettings::default(),
                    weight: ViewMut::from(&mut dlogp),
                    stats: None,
                };
                offpolicy_weight(&Device::Cpu, args).unwrap();
            })
        });
    }
    group.finish();
}
