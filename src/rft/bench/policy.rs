//! Advantages, weights and losses.

use gradus::device::Buffer;
use gradus::ops::*;
use gradus::{Device, Result};

use super::case::{Case, Work, table, wave};

/// Sequences of an update and tokens of each; samples of a group.
const SEQUENCES: usize = 256;
const LENGTH: usize = 256;
const GROUP: usize = 8;

pub fn cases() -> Vec<Case> {
    vec![
        policy([SEQUENCES, LENGTH], false),
        advantages(),
        generalized(),
        sums(),
        order(),
        ratios(),
        contrast(),
    ]
}

/// Log-probs of policy and sampler read, and of the reference for a KL; the gradient written; about 60
/// flops a token in f64.
pub fn policy([sequences, length]: [usize; 2], kl: bool) -> Case {
    let n = sequences * length;
    let name = format!("{sequences} x {length}") + if kl { " kl" } else { "" };
    let costs = [(12 + 4 * kl as usize) * n, 60 * n];
    Case::new::<f32>(["policy", "policy_loss"], name, costs, Work::F64, move |device| {
        let logp = table(device, n, |i| -((i % 13) as f32) * 0.1)?;
        let old = table(device, n, |i| -((i % 13) as f32) * 0.1 - 0.01)?;
        let reference = table(device, n, |i| -((i % 13) as f32) * 0.1 - (i % 7) as f32 * 0.02)?;
        let cu = table(device, sequences + 1, |i| (i * length) as i64)?;
        let weight = table(device, sequences, |_| 1.0 / n as f32)?;
        let advantage = wave::<f32>(device, sequences, 1)?;
        let mut dlogp = Buffer::<f32>::new(device, n)?;
        let penalty = kl.then(|| Kl::k3(0.04));
        let settings = PolicySettings { kl: penalty, ..PolicySettings::default() };
        let (all, each) = ([n as i64], [sequences as i64]);
        Ok(Box::new(move |device| {
            let mut loss = 0.0;
            let args = PolicyLoss {
                old_logp: Some(old.view(&all)?),
                ref_logp: kl.then(|| reference.view(&all)).transpose()?,
                ..PolicyLoss::new(
                    logp.view(&all)?,
                    Advantage::PerSequence(advantage.view(&each)?),
                    cu.view(&[sequences as i64 + 1])?,
                    weight.view(&each)?,
                    &settings,
                    &mut loss,
                    dlogp.view_mut(&all)?,
                )
            };
            policy_loss(device, args)
        }))
    })
}

/// Rewards and offsets read, advantages written.
fn advantages() -> Case {
    let n = SEQUENCES * GROUP;
    let name = format!("{SEQUENCES} groups of {GROUP}");
    let costs = [8 * n + 8 * SEQUENCES, 8 * n];
    Case::new::<f32>(["policy", "group_advantage"], name, costs, Work::F64, move |device| {
        let reward = table(device, n, |i| (i * 7 % 5) as f32)?;
        let offsets = table(device, SEQUENCES + 1, |i| (i * GROUP) as i64)?;
        let mut advantage = Buffer::<f32>::new(device, n)?;
        Ok(Box::new(move |device| {
            let args = GroupAdvantage {
                reward: reward.view(&[n as i64])?,
                offsets: offsets.view(&[SEQUENCES as i64 + 1])?,
                length: None,
                settings: GroupSettings::default(),
                advantage: advantage.view_mut(&[n as i64])?,
                groups: None,
            };
            group_advantage(device, args)
        }))
    })
}

fn sequences() -> String {
    format!("{SEQUENCES} x {LENGTH}")
}

/// Offsets of the sequences.
fn offsets(device: &Device) -> Result<Buffer<i64>> {
    table(device, SEQUENCES + 1, |i| (i * LENGTH) as i64)
}

/// Reward, value and mask read, the advantage written.
fn generalized() -> Case {
    let n = SEQUENCES * LENGTH;
    Case::new::<f32>(["policy", "gae"], sequences(), [13 * n, 6 * n], Work::F64, move |device| {
        let (reward, value) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
        let (mask, cu) = (table(device, n, |_| 1u8)?, offsets(device)?);
        let (mut advantage, all) = (Buffer::<f32>::new(device, n)?, [n as i64]);
        Ok(Box::new(move |device| {
            let args = Gae {
                reward: reward.view(&all)?,
                value: value.view(&all)?,
                mask: Some(mask.view(&all)?),
                cu_seqlens: cu.view(&[SEQUENCES as i64 + 1])?,
                bootstrap: None,
                gamma: 1.0,
                gae_lambda: 0.95,
                advantage: advantage.view_mut(&all)?,
                returns: None,
            };
            gae(device, args)
        }))
    })
}

/// Value and mask read.
fn sums() -> Case {
    let n = SEQUENCES * LENGTH;
    Case::new::<f32>(["policy", "seq_reduce"], sequences(), [5 * n, n], Work::F64, move |device| {
        let (x, mask) = (wave::<f32>(device, n, 1)?, table(device, n, |_| 1u8)?);
        let (cu, mut y) = (offsets(device)?, Buffer::<f32>::new(device, SEQUENCES)?);
        Ok(Box::new(move |device| {
            let args = SeqReduce {
                x: x.view(&[n as i64])?,
                mask: Some(mask.view(&[n as i64])?),
                cu_seqlens: cu.view(&[SEQUENCES as i64 + 1])?,
                reduction: SeqReduction::Sum,
                y: y.view_mut(&[SEQUENCES as i64])?,
                count: None,
            };
            seq_reduce(device, args)
        }))
    })
}

/// Every value read once at least.
fn order() -> Case {
    let n = SEQUENCES * LENGTH;
    Case::new::<f32>(["policy", "quantile"], format!("{n}"), [4 * n, 0], Work::F64, move |device| {
        let (x, mut y) = (wave::<f32>(device, n, 1)?, Buffer::<f32>::new(device, 1)?);
        Ok(Box::new(move |device| {
            let args = Quantile {
                x: x.view(&[n as i64])?,
                mask: None,
                scope: QuantileScope::All,
                q: 0.8,
                method: QuantileMethod::Linear,
                on_nan: OnNan::Error,
                y: y.view_mut(&[1])?,
            };
            quantile(device, args)
        }))
    })
}

/// Both log-probs read, the weight written; an exponential per token is about 20 flops.
fn ratios() -> Case {
    let n = SEQUENCES * LENGTH;
    Case::new::<f32>(
        ["policy", "offpolicy_weight"],
        sequences(),
        [12 * n, 20 * n],
        Work::F64,
        move |device| {
            let old = table(device, n, |i| -((i % 13) as f32) * 0.1)?;
            let sampler = table(device, n, |i| -((i % 13) as f32) * 0.1 - 0.01)?;
            let (cu, mut weight) = (offsets(device)?, Buffer::<f32>::new(device, n)?);
            Ok(Box::new(move |device| {
                let args = OffPolicyWeight {
                    old_logp: old.view(&[n as i64])?,
                    sampler_logp: sampler.view(&[n as i64])?,
                    mask: None,
                    cu_seqlens: cu.view(&[SEQUENCES as i64 + 1])?,
                    settings: OffPolicySettings::default(),
                    weight: weight.view_mut(&[n as i64])?,
                    stats: None,
                };
                offpolicy_weight(device, args)
            }))
        },
    )
}

/// Log-prob, reference and reward of each sample read, a gradient written.
fn contrast() -> Case {
    let n = SEQUENCES * GROUP;
    let name = format!("{SEQUENCES} groups of {GROUP}");
    let costs = [16 * n + 12 * SEQUENCES, 4 * n * GROUP];
    Case::new::<f32>(["policy", "copg_loss"], name, costs, Work::F64, move |device| {
        let [logp, reference] = [wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?];
        let reward = table(device, n, |i| (i * 7 % 5) as f32)?;
        let offsets = table(device, SEQUENCES + 1, |i| (i * GROUP) as i64)?;
        let (mut loss, mut dlogp) =
            (Buffer::<f32>::new(device, SEQUENCES)?, Buffer::<f32>::new(device, n)?);
        Ok(Box::new(move |device| {
            let args = CopgLoss {
                logp: logp.view(&[n as i64])?,
                reference: Some(reference.view(&[n as i64])?),
                reward: reward.view(&[n as i64])?,
                offsets: offsets.view(&[SEQUENCES as i64 + 1])?,
                beta: 0.1,
                weight: None,
                loss: loss.view_mut(&[SEQUENCES as i64])?,
                dlogp: dlogp.view_mut(&[n as i64])?,
                total: None,
            };
            copg_loss(device, args)
        }))
    })
}
