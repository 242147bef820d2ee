//! Generalized advantages: their definition, verl, strides, refusals, every executor.

use crate::common::devices::{executors, shared_gpus};
use crate::common::{max_rel, normals, refused};
use crate::policy::arguments::*;
use crate::policy::packed;
use crate::policy::seq_reduce::reduce;
use crate::policy::sequences::{LENGTHS, MASKS, Packed, agree, counted};
use crate::policy::verl::*;
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result, View, ViewMut};

fn scans_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let packed = Packed::<R>::new(&LENGTHS, keep);
        let cpu = &Device::Cpu;
        for executor in shared_gpus() {
            let (device, name) = (&executor.device, &format!("{} mask {i}", executor.name));
            for (c, g) in packed.gae(cpu).iter().zip(&packed.gae(device)) {
                agree(name, c, g);
            }
        }
    }
}

#[test]
fn scans_of_any_length_agree_with_the_cpu() {
    scans_agree::<f32>();
    scans_agree::<f64>();
}

/// The forward double sum A_t = Σ_l (γλ)^l δ_{t+l} over actions, δ written out.
#[test]
fn gae_is_the_sum_of_discounted_errors() {
    let packed = packed::Packed::new();
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
    let packed = packed::Packed::new();
    let (reward, value) = (packed.values(3), packed.values(4));
    let monte_carlo = packed.gae(&reward, &value, None, (0.9, 1.0));
    let returns = packed.returns(&reward, 0.9, MaskedReturn::Skip);
    assert!(max_rel(&monte_carlo.1, &returns, 1e-6) < 1e-12, "λ = 1: the target is the return");
    let td = packed.gae(&reward, &value, None, (0.9, 0.0)).0;
    let last = *packed.actions(3).last().unwrap();
    assert_eq!(td[last], reward[last] - value[last]);
}

/// A sequence has the same bits alone, anywhere in a batch, and for any number of threads.
#[test]
fn sequences_do_not_depend_on_batch_or_threads() {
    let (sequences, length) = (300usize, 211usize);
    let n = sequences * length;
    let pack = |count: usize| packed::Packed {
        cu_seqlens: (0..=count).map(|i| (i * length) as i64).collect(),
        mask: (0..count * length).map(|t| (t % length % 7 != 3) as u8).collect(),
    };
    let (x, value) = (normals(12, n, 5.0), normals(13, n, 1.0));
    let packed = pack(sequences);
    let all = |packed: &packed::Packed, x: &[f64], value: &[f64]| {
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
    let packed = packed::Packed::new();
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
    let packed = packed::Packed::new();
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

fn token(edit: impl FnOnce(&mut Gae<'_, f64>)) -> Result<()> {
    let (mut advantage, mut returns) = (vec![HELD; 3], vec![HELD; 3]);
    let mut args = Gae {
        reward: view(&[1.0, 0.0, 2.0]),
        value: view(&[1.0, 0.0, 2.0]),
        mask: Some(view(&[1, 0, 1])),
        cu_seqlens: view(&[0, 2, 3]),
        bootstrap: Some(view(&[0.0, 1.0])),
        gamma: 1.0,
        gae_lambda: 0.95,
        advantage: (&mut advantage).into(),
        returns: Some((&mut returns).into()),
    };
    edit(&mut args);
    let result = gae(&Device::Cpu, args);
    if result.is_err() {
        held(&[&advantage, &returns]);
    }
    result
}

#[test]
fn gae_refuses() {
    token(|_| ()).unwrap();
    token(|a| a.value = view(&[1.0, f64::NAN, 2.0])).unwrap();
    refused(token(|a| a.reward = view(&[1.0, 0.0, f64::NAN])), "reward");
    refused(token(|a| a.reward = matrix(&[0.0; 3], [3, 1])), "reward");
    refused(token(|a| a.value = view(&[1.0])), "value");
    refused(token(|a| a.value = view(&[f64::INFINITY, 0.0, 0.0])), "value");
    refused(token(|a| a.mask = Some(view(&[1]))), "mask");
    refused(token(|a| a.cu_seqlens = view(&[0, 3, 2, 3])), "cu_seqlens");
    refused(token(|a| a.bootstrap = Some(view(&[0.0]))), "bootstrap");
    refused(token(|a| a.bootstrap = Some(view(&[0.0, f64::NAN]))), "bootstrap");
    refused(token(|a| a.gamma = 1.1), "gamma");
    refused(token(|a| a.gae_lambda = f64::NAN), "gae_lambda");
    refused(token(|a| a.advantage = output(2)), "advantage");
    refused(token(|a| a.returns = Some(output(5))), "returns");
}

#[test]
fn gae_matches_verl() {
    for batch in Batch::open("gae") {
        let (reward, value) = (batch.file.f64("token_reward"), batch.file.f64("value"));
        let (mut advantage, mut returns) =
            (vec![f64::NAN; reward.len()], vec![f64::NAN; reward.len()]);
        let args = Gae {
            reward: (&reward).into(),
            value: (&value).into(),
            mask: batch.mask(),
            cu_seqlens: (&batch.cu_seqlens).into(),
            bootstrap: None,
            gamma: batch.file.number("gamma").unwrap(),
            gae_lambda: batch.file.number("lam").unwrap(),
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(&batch.device, args).unwrap();
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&advantage));
    }
}

/// One launch. Read are reward, value and mask; advantage and return are written.
#[test]
fn gae_reads_once() {
    for (launches, bytes) in counted(|d, p| drop(p.gae(d))) {
        assert!(launches == 1 && bytes <= 17.0 * 1.01, "{bytes}");
    }
}
