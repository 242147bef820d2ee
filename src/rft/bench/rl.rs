//! Vocabulary rows, losses, optimiser and weights.

use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::ops::*;

use super::case::{Case, Work, shape, table, wave};

/// Rows of logits, vocabulary, hidden size.
const T: usize = 32;
const VOCAB: usize = 151_936;
const HIDDEN: usize = 1536;
/// Sequences of an update and tokens of each; samples of a group.
const SEQUENCES: usize = 256;
const LENGTH: usize = 256;
const GROUP: usize = 8;
/// Trainable parameters.
const PARAMETERS: usize = 1 << 22;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![sampler(), norm(), interpolate()];
    cases.extend(of::<f32>());
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>());
    cases.extend([policy([SEQUENCES, LENGTH], false), advantages(), adam(), adam_8bit()]);
    cases
}

fn of<F: Float>() -> Vec<Case> {
    vec![logprobs::<F>(T), logprobs_gradient::<F>(), scores::<F>()]
}

fn logits(rows: usize) -> String {
    format!("{rows} x {VOCAB}")
}

/// Every logit read once; an exponential is about 15 flops.
pub fn logprobs<F: Float>(rows: usize) -> Case {
    let n = rows * VOCAB;
    let costs = [size_of::<F>() * n, 15 * n];
    Case::new::<F>("logprob", logits(rows), costs, Work::F32, move |device| {
        let (x, mut logp) = (wave::<F>(device, n, 1)?, Buffer::<f32>::new(device, rows)?);
        let targets = table(device, rows, |i| (i * 4001 % VOCAB) as i32)?;
        let all = [rows as i64];
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(rows, VOCAB))?, targets.view(&all)?);
            logprob(device, LogProb::new(x, targets, logp.view_mut(&all)?))
        }))
    })
}

/// Log-probs, then the gradient of the logits: what one backward pass of a library does.
pub fn logprobs_train<F: Float>(rows: usize) -> Case {
    let n = rows * VOCAB;
    let costs = [size_of::<F>() * 3 * n, 45 * n];
    let name = logits(rows) + " train";
    Case::new::<F>("logprob", name, costs, Work::F32, move |device| {
        let (x, mut dx) = (wave::<F>(device, n, 1)?, Buffer::<F>::new(device, n)?);
        let targets = table(device, rows, |i| (i * 4001 % VOCAB) as i32)?;
        let (dlogp, all) = (wave::<f32>(device, rows, 2)?, [rows as i64]);
        let mut logp = Buffer::<f32>::new(device, rows)?;
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(rows, VOCAB))?, targets.view(&all)?);
            logprob(device, LogProb::new(x, targets, logp.view_mut(&all)?))?;
            let (dlogp, dx) = (dlogp.view(&all)?, dx.view_mut(&shape(rows, VOCAB))?);
            logprob_bwd(device, LogProbBwd::new(x, targets, dlogp, dx))
        }))
    })
}

/// Every logit read once, its gradient written.
fn logprobs_gradient<F: Float>() -> Case {
    let n = T * VOCAB;
    let costs = [size_of::<F>() * 2 * n, 30 * n];
    Case::new::<F>("logprob_bwd", logits(T), costs, Work::F32, move |device| {
        let (x, mut dx) = (wave::<F>(device, n, 1)?, Buffer::<F>::new(device, n)?);
        let targets = table(device, T, |i| (i * 4001 % VOCAB) as i32)?;
        let dlogp = wave::<f32>(device, T, 2)?;
        Ok(Box::new(move |device| {
            let (x, targets) = (x.view(&shape(T, VOCAB))?, targets.view(&[T as i64])?);
            let (dlogp, dx) = (dlogp.view(&[T as i64])?, dx.view_mut(&shape(T, VOCAB))?);
            logprob_bwd(device, LogProbBwd::new(x, targets, dlogp, dx))
        }))
    })
}

/// Every logit read once.
fn sampler() -> Case {
    let n = T * VOCAB;
    Case::new::<f32>("sample", logits(T), [4 * n, 15 * n], Work::F32, move |device| {
        let x = wave::<f32>(device, n, 1)?;
        let uniform = table(device, T, |i| (i as f64 + 0.5) / T as f64)?;
        let (mut token, mut logp) =
            (Buffer::<i32>::new(device, T)?, Buffer::<f32>::new(device, T)?);
        Ok(Box::new(move |device| {
            let args = Sample {
                logits: x.view(&shape(T, VOCAB))?,
                vocab: VOCAB as i64,
                transform: LogitTransform::default(),
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                greedy: false,
                uniform: uniform.view(&[T as i64])?,
                token: token.view_mut(&[T as i64])?,
                logp: logp.view_mut(&[T as i64])?,
                logp_kept: None,
                kept_mass: None,
                entropy: None,
            };
            sample(device, args)
        }))
    })
}

/// `2·T·H` elements, a product each.
fn scores<F: Float>() -> Case {
    let rows = 512;
    let n = rows * HIDDEN;
    let costs = [size_of::<F>() * 2 * n + 4 * rows, n];
    let name = format!("{rows} x {HIDDEN}");
    Case::new::<F>("score_scale", name, costs, Work::F64, move |device| {
        let (score, dlogp) = (wave::<F>(device, n, 1)?, wave::<f32>(device, rows, 2)?);
        let mut dhidden = Buffer::<F>::new(device, n)?;
        Ok(Box::new(move |device| {
            let args = ScoreScale {
                score: score.view(&shape(rows, HIDDEN))?,
                dlogp: dlogp.view(&[rows as i64])?,
                dhidden: dhidden.view_mut(&shape(rows, HIDDEN))?,
            };
            score_scale(device, args)
        }))
    })
}

/// Every gradient read once.
fn norm() -> Case {
    let n = PARAMETERS;
    let costs = [4 * n, 2 * n];
    Case::new::<f32>("grad_norm", format!("{n}"), costs, Work::F64, move |device| {
        let (grads, mut norm) = (wave::<f32>(device, n, 1)?, GlobalNorm::default());
        Ok(Box::new(move |device| {
            let grads = [grads.view(&[n as i64])?];
            grad_norm(device, GradNorm { grads: &grads, norm: &mut norm })
        }))
    })
}

/// 3 elements and 3 flops each.
fn interpolate() -> Case {
    let n = PARAMETERS;
    let costs = [12 * n, 3 * n];
    Case::new::<f32>("lerp", format!("{n}"), costs, Work::F64, move |device| {
        let (a, b) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
        let mut y = Buffer::<f32>::new(device, n)?;
        Ok(Box::new(move |device| {
            let (a, b) = (a.view(&[n as i64])?, b.view(&[n as i64])?);
            lerp(device, Lerp { a, b, weight: 0.25, y: y.view_mut(&[n as i64])? })
        }))
    })
}

/// Log-probs of policy and sampler read, and of the reference for a KL; the gradient written; about 60
/// flops a token in f64.
pub fn policy([sequences, length]: [usize; 2], kl: bool) -> Case {
    let n = sequences * length;
    let name = format!("{sequences} x {length}") + if kl { " kl" } else { "" };
    let costs = [(12 + 4 * kl as usize) * n, 60 * n];
    Case::new::<f32>("policy_loss", name, costs, Work::F64, move |device| {
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
    Case::new::<f32>("group_advantage", name, costs, Work::F64, move |device| {
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

/// 4 elements read, 3 written, and the gradients once more for the check.
fn adam() -> Case {
    let n = PARAMETERS;
    Case::new::<f32>("adamw", format!("{n}"), [32 * n, 14 * n], Work::F32, move |device| {
        let (mut param, grad) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
        let (mut m, mut v) = (table(device, n, |_| 0f32)?, table(device, n, |_| 0f32)?);
        let (mut outcome, all) = (AdamWOutcome::default(), [n as i64]);
        Ok(Box::new(move |device| {
            let tensors = vec![AdamWTensor {
                param: param.view_mut(&all)?,
                grad: grad.view(&all)?,
                m: m.view_mut(&all)?,
                v: v.view_mut(&all)?,
                mask: None,
            }];
            let settings = AdamWSettings::default();
            adamw(device, AdamW { tensors, settings, outcome: &mut outcome })
        }))
    })
}

/// 18 bytes a parameter.
fn adam_8bit() -> Case {
    let (n, blocks) = (PARAMETERS, PARAMETERS / 256);
    Case::new::<f32>("adamw_8bit", format!("{n}"), [18 * n, 30 * n], Work::F32, move |device| {
        let (mut param, grad) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
        let (mut m, mut v) = (table(device, n, |_| 0u8)?, table(device, n, |_| 0u8)?);
        let (mut m_absmax, mut v_absmax) =
            (table(device, blocks, |_| 0f32)?, table(device, blocks, |_| 0f32)?);
        let (mut outcome, all, of_blocks) = (AdamWOutcome::default(), [n as i64], [blocks as i64]);
        Ok(Box::new(move |device| {
            let tensors = vec![AdamW8bitTensor {
                param: param.view_mut(&all)?,
                grad: grad.view(&all)?,
                m: m.view_mut(&all)?,
                v: v.view_mut(&all)?,
                m_absmax: m_absmax.view_mut(&of_blocks)?,
                v_absmax: v_absmax.view_mut(&of_blocks)?,
                mask: None,
            }];
            let settings = AdamWSettings::default();
            adamw_8bit(device, AdamW8bit { tensors, settings, outcome: &mut outcome })
        }))
    })
}
