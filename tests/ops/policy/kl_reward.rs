//! KL in the reward: what it sums to, refusals, every executor.

use crate::common::devices::{close, on_all, shared_gpus};
use crate::common::refused;
use crate::policy::arguments::*;
use crate::policy::packed;
use crate::policy::sequences::{LENGTHS, MASKS, Packed, agree, counted};
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result};

/// With γ = λ = 1 the shaped rewards of a sequence sum to R − β·(log π − log π_ref) and the
/// advantage is what is left of that sum minus the value.
#[test]
fn kl_in_the_reward_telescopes() {
    let packed = packed::Packed::new();
    let (logp, reference, value) = (packed.values(5), packed.values(6), packed.values(7));
    let score = vec![1.0, 5.0, -2.0, 0.5];
    let shaped_on = |device: &Device, estimator, clamp| {
        let mut reward = vec![f64::NAN; 12];
        let args = KlReward {
            score: (&score).into(),
            logp: (&logp).into(),
            reference: (&reference).into(),
            mask: Some((&packed.mask).into()),
            cu_seqlens: (&packed.cu_seqlens).into(),
            beta: 0.1,
            estimator,
            clamp,
            reward: (&mut reward).into(),
        };
        kl_reward(device, args).unwrap();
        reward
    };
    let shaped = |estimator, clamp| {
        on_all(
            |device| shaped_on(device, estimator, clamp),
            |name, cpu, gpu| close(name, cpu, gpu, 1e-14, 1.0),
        )
    };
    let reward = shaped(RewardKl::K1, f64::INFINITY);
    let (advantage, _) = packed.gae(&reward, &value, None, (1.0, 1.0));
    for i in [0, 2, 3] {
        let actions = packed.actions(i);
        let sum: f64 = actions.iter().map(|&t| reward[t]).sum();
        let gap: f64 = actions.iter().map(|&t| logp[t] - reference[t]).sum();
        assert!((sum - (score[i] - 0.1 * gap)).abs() < 1e-13);
        for (k, &t) in actions.iter().enumerate() {
            let left: f64 = actions[k..].iter().map(|&u| reward[u]).sum();
            assert!((advantage[t] - (left - value[t])).abs() < 1e-12);
        }
    }
    let placed = |estimator: RewardKl, clamp: f64, f: &dyn Fn(f64) -> f64| {
        let reward = shaped(estimator, clamp);
        for i in [0, 2, 3] {
            let actions = packed.actions(i);
            for &t in &actions {
                let end = if Some(&t) == actions.last() { score[i] } else { 0.0 };
                let want = end - 0.1 * f((logp[t] - reference[t]).clamp(-clamp, clamp));
                assert!((reward[t] - want).abs() < 1e-14, "{estimator:?} {t}");
            }
        }
    };
    placed(RewardKl::K2, f64::INFINITY, &|d| d * d / 2.0);
    placed(RewardKl::K3, f64::INFINITY, &|d| (-d).exp() - 1.0 + d);
    placed(RewardKl::Abs, 0.25, &|d| d.abs());
}

fn shaped(edit: impl FnOnce(&mut KlReward<'_, f64>)) -> Result<()> {
    let mut args = KlReward {
        score: view(&[1.0]),
        logp: view(&[-1.0, -2.0, -3.0]),
        reference: view(&[-1.0, -2.0, -3.0]),
        mask: None,
        cu_seqlens: view(&[0, 3]),
        beta: 0.1,
        estimator: RewardKl::K3,
        clamp: f64::INFINITY,
        reward: output(3),
    };
    edit(&mut args);
    kl_reward(&Device::Cpu, args)
}

#[test]
fn kl_reward_refuses() {
    shaped(|_| ()).unwrap();
    refused(shaped(|a| a.score = view(&[1.0, 2.0])), "score");
    refused(shaped(|a| a.score = view(&[f64::NAN])), "score");
    refused(shaped(|a| a.logp = view(&[-1.0, f64::NEG_INFINITY, 0.0])), "logp");
    refused(shaped(|a| a.reference = view(&[-1.0; 2])), "reference");
    refused(shaped(|a| a.reference = view(&[f64::NAN; 3])), "reference");
    refused(shaped(|a| a.mask = Some(view(&[1]))), "mask");
    refused(shaped(|a| a.cu_seqlens = view(&[1, 3])), "cu_seqlens");
    refused(shaped(|a| a.beta = -1.0), "beta");
    refused(shaped(|a| a.clamp = 0.0), "clamp");
    refused(shaped(|a| a.reward = output(1)), "reward");
}

fn scans_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let packed = Packed::<R>::new(&LENGTHS, keep);
        let cpu = &Device::Cpu;
        for executor in shared_gpus() {
            let (device, name) = (&executor.device, &format!("{} mask {i}", executor.name));
            for estimator in [RewardKl::K1, RewardKl::K2, RewardKl::K3, RewardKl::Abs] {
                for beta in [0.0, 0.3] {
                    let run = |device| packed.kl_reward(device, estimator, beta);
                    agree(name, &run(cpu), &run(device));
                }
            }
        }
    }
}

#[test]
fn rewards_of_any_length_agree_with_the_cpu() {
    scans_agree::<f32>();
    scans_agree::<f64>();
}

/// One launch. Read are both log-probs and the mask, the reward is written.
#[test]
fn kl_reward_reads_once() {
    for (launches, bytes) in counted(|d, p| drop(p.kl_reward(d, RewardKl::K3, 0.1))) {
        assert!(launches == 1 && bytes <= 13.0 * 1.01, "{bytes}");
    }
}
