//! Every argument of the ops of tokens wrong once: the error names it, and the outputs keep what they held.

use crate::common::refused;
use crate::policy::arguments::*;
use gradus::ops::*;
use gradus::{Device, Result};

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

fn discounted(edit: impl FnOnce(&mut DiscountedReturn<'_, f64>)) -> Result<()> {
    let mut args = DiscountedReturn {
        reward: view(&[1.0, 0.0, 2.0]),
        mask: None,
        cu_seqlens: view(&[0, 3]),
        gamma: 1.0,
        masked: MaskedReturn::Skip,
        baseline: None,
        returns: output(3),
    };
    edit(&mut args);
    discounted_return(&Device::Cpu, args)
}

fn white(edit: impl FnOnce(&mut Whiten<'_, f64>)) -> Result<()> {
    let mut args = Whiten {
        x: view(&[1.0, 0.0, 2.0]),
        mask: None,
        settings: WhitenSettings::VERL,
        y: output(3),
        stats: None,
    };
    edit(&mut args);
    whiten(&Device::Cpu, args)
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
fn token_ops_refuse() {
    discounted(|_| ()).unwrap();
    refused(discounted(|a| a.reward = view(&[f64::NAN, 0.0, 0.0])), "reward");
    refused(discounted(|a| a.mask = Some(view(&[1; 4]))), "mask");
    refused(discounted(|a| a.cu_seqlens = view(&[0, 2])), "cu_seqlens");
    refused(discounted(|a| a.gamma = -0.1), "gamma");
    refused(discounted(|a| a.baseline = Some(view(&[1.0, 2.0]))), "baseline");
    refused(discounted(|a| a.baseline = Some(view(&[f64::NAN]))), "baseline");
    refused(discounted(|a| a.returns = output(1)), "returns");
    white(|_| ()).unwrap();
    refused(white(|a| a.x = view(&[1.0, 0.0, f64::INFINITY])), "x");
    refused(white(|a| a.mask = Some(view(&[0, 1, 0]))), "mask");
    refused(white(|a| a.mask = Some(view(&[1, 1]))), "mask");
    refused(white(|a| a.settings.ddof = 3), "settings.ddof");
    refused(white(|a| a.settings.eps = f64::INFINITY), "settings.eps");
    refused(white(|a| a.settings.count_eps = -1.0), "settings.count_eps");
    refused(white(|a| a.y = output(2)), "y");
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
