//! GAE, returns, whitening, KL in the reward, reductions over sequences, quantiles: definitions,
//! identities, masks, invariances.

use crate::common::devices::{close, executors, on_all};
use crate::common::{max_rel, normals};
use crate::policy::packed::Packed;
use crate::policy::seq_reduce::reduce;
use gradus::ops::{
    EpsForm, Gae, KlReward, MaskedReturn, RewardKl, SeqReduction, Whiten, WhitenSettings,
    WhitenStats, gae, kl_reward, whiten,
};
use gradus::{Device, View, ViewMut};

/// The forward double sum A_t = Σ_l (γλ)^l δ_{t+l} over actions, δ written out.
#[test]
fn gae_is_the_sum_of_discounted_errors() {
    let packed = Packed::new();
    let (reward, value) = (packed.values(1), packed.values(2));
    let bootstrap = vec![0.3, -1.0, 2.0, 0.7];
    let (gamma, lambda) = (0.97, 0.9);
    let (advantage, returns) = packed.gae(&reward, &value, Some(&bootstrap), (gamma, lambda));
    let mut want = vec![0.0; 12];
    for (i, &end) in bootstrap.iter().enumerate() {
        let actions = packed.actions(i);
        let delta = |k: usize| {
            let next = actions.get(k + 1).map_or(end, |&t| value[t]);
            reward[actions[k]] + gamma * next - value[actions[k]]
        };
        for k in 0..actions.len() {
            let terms =
                (k..actions.len()).map(|l| (gamma * lambda).powi((l - k) as i32) * delta(l));
            want[actions[k]] = terms.sum();
        }
    }
    assert!(max_rel(&advantage, &want, 1e-6) < 1e-12);
    for t in 0..12 {
        let target = if packed.mask[t] != 0 { want[t] + value[t] } else { 0.0 };
        assert!((returns[t] - target).abs() < 1e-13, "returns[{t}] = {}", returns[t]);
    }
}

#[test]
fn gae_reduces_to_td_and_to_returns() {
    let packed = Packed::new();
    let (reward, value) = (packed.values(3), packed.values(4));
    let monte_carlo = packed.gae(&reward, &value, None, (0.9, 1.0));
    let returns = packed.returns(&reward, 0.9, MaskedReturn::Skip);
    assert!(max_rel(&monte_carlo.1, &returns, 1e-6) < 1e-12, "λ = 1: the target is the return");
    let td = packed.gae(&reward, &value, None, (0.9, 0.0)).0;
    let last = *packed.actions(3).last().unwrap();
    assert_eq!(td[last], reward[last] - value[last]);
}

#[test]
fn a_masked_token_skips_or_resets_a_return() {
    let packed = Packed { cu_seqlens: vec![0, 4], mask: vec![1, 1, 0, 1] };
    let reward = [1.0, 2.0, f64::NAN, 8.0];
    assert_eq!(packed.returns(&reward, 0.5, MaskedReturn::Skip), [4.0, 6.0, 0.0, 8.0]);
    assert_eq!(packed.returns(&reward, 0.5, MaskedReturn::Reset), [2.0, 2.0, 0.0, 8.0]);
}

/// With γ = λ = 1 the shaped rewards of a sequence sum to R − β·(log π − log π_ref) and the
/// advantage is what is left of that sum minus the value.
#[test]
fn kl_in_the_reward_telescopes() {
    let packed = Packed::new();
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

#[test]
fn whitening_has_unit_variance_and_every_guard() {
    let packed = Packed::new();
    let x = packed.values(8);
    let kept: Vec<f64> = x.iter().copied().filter(|v| !v.is_nan()).collect();
    let n = kept.len() as f64;
    let mean = kept.iter().sum::<f64>() / n;
    let squares: f64 = kept.iter().map(|v| (v - mean).powi(2)).sum();
    let run_on = |device: &Device, x: &[f64], settings| {
        let (mut y, mut stats) = (vec![f64::NAN; x.len()], WhitenStats::default());
        let args = Whiten {
            x: x.into(),
            mask: Some((&packed.mask).into()),
            settings,
            y: (&mut y).into(),
            stats: Some(&mut stats),
        };
        whiten(device, args).unwrap();
        (y, stats)
    };
    let run = |x: &[f64], settings| {
        on_all(
            |device| run_on(device, x, settings),
            |name, cpu, gpu| {
                close(name, &cpu.0, &gpu.0, 1e-13, 1.0);
                close(name, &[cpu.1.mean, cpu.1.std], &[gpu.1.mean, gpu.1.std], 1e-14, 1.0);
                assert_eq!(cpu.1.count, gpu.1.count, "{name}");
            },
        )
    };
    let plain = WhitenSettings { count_eps: 0.0, ..WhitenSettings::VERL };
    let cases = [
        (plain, (squares / (n - 1.0) + 1e-8).sqrt(), 0.0),
        (WhitenSettings::OPENRLHF, (squares / n).max(1e-8).sqrt(), 0.0),
        (
            WhitenSettings { eps_form: EpsForm::AddToStd, eps: 0.5, shift_mean: false, ..plain },
            (squares / (n - 1.0)).sqrt() + 0.5,
            mean,
        ),
    ];
    for (settings, divisor, back) in cases {
        let (y, stats) = run(&x, settings);
        for t in 0..12 {
            let used = packed.mask[t] != 0;
            let want = if used { (x[t] - mean) / divisor + back } else { 0.0 };
            assert!((y[t] - want).abs() < 1e-13, "{settings:?}");
        }
        assert_eq!(stats.count, kept.len());
        assert!((stats.mean - mean).abs() < 1e-15);
    }
    let equal = run(&[1000.1; 12], WhitenSettings { eps: 0.0, ..plain });
    assert_eq!(equal.0, [0.0; 12]);
}

/// A sequence has the same bits alone, anywhere in a batch, and for any number of threads.
#[test]
fn sequences_do_not_depend_on_batch_or_threads() {
    let (sequences, length) = (300usize, 211usize);
    let n = sequences * length;
    let pack = |count: usize| Packed {
        cu_seqlens: (0..=count).map(|i| (i * length) as i64).collect(),
        mask: (0..count * length).map(|t| (t % length % 7 != 3) as u8).collect(),
    };
    let (x, value) = (normals(12, n, 5.0), normals(13, n, 1.0));
    let packed = pack(sequences);
    let all = |packed: &Packed, x: &[f64], value: &[f64]| {
        (packed.gae(x, value, None, (0.99, 0.95)), reduce(packed, x, SeqReduction::Sum).0)
    };
    let whole = all(&packed, &x, &value);
    for threads in [1, 2, 4, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| all(&packed, &x, &value)), whole, "{threads} threads");
    }
    for i in [0, 150, sequences - 1] {
        let range = i * length..(i + 1) * length;
        let alone = all(&pack(1), &x[range.clone()], &value[range.clone()]);
        assert_eq!(alone.0.0, whole.0.0[range]);
        assert_eq!(alone.1[0], whole.1[i]);
    }
}

/// Strided inputs and outputs are read and written where they are, and nothing between them.
#[test]
fn token_ops_respect_strides() {
    executors().iter().for_each(|e| strides_on(&e.device));
}

fn strides_on(device: &Device) {
    let packed = Packed::new();
    let (reward, value) = (packed.values(20), packed.values(21));
    let spread = |x: &[f64]| -> Vec<f64> { x.iter().flat_map(|&v| [v, f64::NAN]).collect() };
    let (wide_reward, wide_value) = (spread(&reward), spread(&value));
    let (mut advantage, mut returns) = (vec![-7.5; 24], vec![-7.5; 24]);
    let (shape, stride) = ([12], [2]);
    let args = Gae {
        reward: View::strided(&wide_reward, &shape, &stride).unwrap(),
        value: View::strided(&wide_value, &shape, &stride).unwrap(),
        mask: Some((&packed.mask).into()),
        cu_seqlens: (&packed.cu_seqlens).into(),
        bootstrap: None,
        gamma: 0.9,
        gae_lambda: 0.8,
        advantage: ViewMut::strided(&mut advantage, &shape, &stride).unwrap(),
        returns: Some(ViewMut::strided(&mut returns, &shape, &stride).unwrap()),
    };
    gae(device, args).unwrap();
    let want = packed.gae_on(device, &reward, &value, None, (0.9, 0.8));
    for (out, want) in [(&advantage, want.0), (&returns, want.1)] {
        assert_eq!(out.iter().step_by(2).copied().collect::<Vec<_>>(), want);
        assert!(out.iter().skip(1).step_by(2).all(|&x| x == -7.5));
    }
}

/// f32 results are the f64 results on the same inputs, rounded once.
#[test]
fn f32_rounds_once() {
    executors().iter().for_each(|e| f32_on(&e.device));
}

fn f32_on(device: &Device) {
    let packed = Packed::new();
    let narrow = |x: &[f64]| -> Vec<f32> { x.iter().map(|&v| v as f32).collect() };
    let widen = |x: &[f32]| -> Vec<f64> { x.iter().map(|&v| v as f64).collect() };
    let (reward, value) = (narrow(&packed.values(22)), narrow(&packed.values(23)));
    let (mut advantage, mut returns) = (vec![f32::NAN; 12], vec![f32::NAN; 12]);
    let args = Gae {
        reward: (&reward).into(),
        value: (&value).into(),
        mask: Some((&packed.mask).into()),
        cu_seqlens: (&packed.cu_seqlens).into(),
        bootstrap: None,
        gamma: 0.97,
        gae_lambda: 0.95,
        advantage: (&mut advantage).into(),
        returns: Some((&mut returns).into()),
    };
    gae(device, args).unwrap();
    let want = packed.gae(&widen(&reward), &widen(&value), None, (0.97, 0.95));
    assert_eq!((advantage, returns), (narrow(&want.0), narrow(&want.1)));
}
