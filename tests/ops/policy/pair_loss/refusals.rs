//! Every argument of the losses of pairs and groups wrong once: the error names it, and the outputs keep what they held.

use crate::common::refused;
use crate::policy::arguments::*;
use gradus::ops::*;
use gradus::{Device, Result, ViewMut};

fn preference(edit: impl FnOnce(&mut PreferenceLoss<'_, f64>)) -> Result<()> {
    let held_vec = || vec![HELD; 2];
    let (mut loss, mut d_chosen, mut d_rejected) = (held_vec(), held_vec(), held_vec());
    let mut args = PreferenceLoss {
        logp: Pair { chosen: view(&[-1.0, -2.0]), rejected: view(&[-3.0, -4.0]) },
        reference: Some(Pair { chosen: view(&[-1.0; 2]), rejected: view(&[-2.0; 2]) }),
        length: Some(Pair { chosen: view(&[1; 2]), rejected: view(&[2; 2]) }),
        kind: PreferenceKind::Ipo,
        score: PreferenceScore::ReverseKl,
        beta: 0.1,
        likelihood: 0.0,
        weight: Some(view(&[1.0; 2])),
        loss: (&mut loss).into(),
        dlogp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
        reward: Some(Pair { chosen: output(2), rejected: output(2) }),
        total: Some(output(1)),
    };
    edit(&mut args);
    let result = preference_loss(&Device::Cpu, args);
    if result.is_err() {
        held(&[&loss, &d_chosen, &d_rejected]);
    }
    result
}

#[test]
fn preference_loss_refuses() {
    use PreferenceKind as Kind;
    preference(|_| ()).unwrap();
    let (short, nan) = (|| view(&[-1.0]), || view(&[-1.0, f64::NAN]));
    refused(preference(|a| a.logp.chosen = nan()), "logp.chosen");
    refused(preference(|a| a.logp.rejected = short()), "logp.rejected");
    refused(preference(|a| a.logp.rejected = nan()), "logp.rejected");
    let reference = |chosen, rejected| Some(Pair { chosen, rejected });
    refused(preference(|a| a.reference = reference(short(), nan())), "reference.chosen");
    refused(preference(|a| a.reference = reference(view(&[0.0; 2]), nan())), "reference.rejected");
    let length = |chosen: &[i64], rejected: &[i64]| {
        Some(Pair { chosen: view(chosen), rejected: view(rejected) })
    };
    refused(preference(|a| a.length = length(&[1, -1], &[1, 1])), "length.chosen");
    refused(preference(|a| a.length = length(&[1, 1], &[1])), "length.rejected");
    refused(preference(|a| a.weight = Some(short())), "weight");
    refused(preference(|a| a.weight = Some(nan())), "weight");
    refused(preference(|a| a.loss = output(3)), "loss");
    refused(preference(|a| a.total = Some(output(2))), "total");
    refused(preference(|a| a.dlogp.chosen = output(3)), "dlogp.chosen");
    refused(preference(|a| a.dlogp.rejected = output(1)), "dlogp.rejected");
    let reward =
        |chosen, rejected| Some(Pair { chosen: output(chosen), rejected: output(rejected) });
    refused(preference(|a| a.reward = reward(1, 2)), "reward.chosen");
    refused(preference(|a| a.reward = reward(2, 1)), "reward.rejected");
    refused(preference(|a| a.beta = 0.0), "beta");
    refused(preference(|a| a.likelihood = -1.0), "likelihood");
    let smoothing = "kind.label_smoothing";
    let sigmoid = |label_smoothing, margin| Kind::Sigmoid { label_smoothing, margin };
    refused(preference(|a| a.kind = sigmoid(0.6, 0.0)), smoothing);
    refused(preference(|a| a.kind = sigmoid(0.0, f64::NAN)), "kind.margin");
    refused(preference(|a| a.kind = Kind::Robust { label_smoothing: 0.5 }), smoothing);
    refused(preference(|a| a.kind = Kind::Exo { label_smoothing: 0.0 }), smoothing);
    let bco = Kind::Bco { reference_point: f64::INFINITY };
    refused(preference(|a| a.kind = bco), "kind.reference_point");
    refused(preference(|a| a.kind = Kind::Discopop { temperature: 0.0 }), "kind.temperature");
    refused(preference(|a| a.score = PreferenceScore::Alpha(f64::NAN)), "score.alpha");
    refused(preference(|a| a.kind = Kind::Orpo), "reference");
    let orpo = |a: &mut PreferenceLoss<'_, f64>| (a.kind, a.reference) = (Kind::Orpo, None);
    preference(orpo).unwrap();
    let without_lengths = |a: &mut PreferenceLoss<'_, f64>| {
        orpo(a);
        a.length = None;
    };
    refused(preference(without_lengths), "length");
    let scored = |a: &mut PreferenceLoss<'_, f64>| {
        orpo(a);
        a.score = PreferenceScore::ForwardKl;
    };
    refused(preference(scored), "score");
}

fn kto(edit: impl FnOnce(&mut KtoLoss<'_, f64>)) -> Result<()> {
    let mut args = KtoLoss {
        logp: view(&[-1.0, -2.0]),
        reference: view(&[-1.0, -2.0]),
        desirable: view(&[1, 0]),
        beta: 0.1,
        kl: 0.0,
        desirable_weight: 1.0,
        undesirable_weight: 1.0,
        weight: None,
        loss: output(2),
        dlogp: output(2),
        total: None,
    };
    edit(&mut args);
    kto_loss(&Device::Cpu, args)
}

fn contrast(edit: impl FnOnce(&mut CopgLoss<'_, f64>)) -> Result<()> {
    let mut args = CopgLoss {
        logp: view(&[-1.0, -2.0]),
        reference: Some(view(&[-1.0, -2.0])),
        reward: view(&[1.0, f64::NAN]),
        offsets: view(&[0, 2]),
        beta: 0.1,
        weight: None,
        loss: output(1),
        dlogp: output(2),
        total: None,
    };
    edit(&mut args);
    copg_loss(&Device::Cpu, args)
}

fn proximal(edit: impl FnOnce(&mut PrdpLoss<'_, f64>)) -> Result<()> {
    let mut args = PrdpLoss {
        logp: view(&[-1.0, -2.0]),
        old: view(&[-1.0, -2.0]),
        reference: view(&[-1.0, -2.0]),
        mask: None,
        cu_seqlens: view(&[0, 1, 2]),
        reward: view(&[1.0, 0.0]),
        pairs: matrix(&[0, 1], [1, 2]),
        beta: 0.1,
        clip: 0.1,
        weight: None,
        loss: output(1),
        dlogp: output(2),
        total: None,
    };
    edit(&mut args);
    prdp_loss(&Device::Cpu, args)
}

#[test]
fn sequence_losses_refuse() {
    kto(|_| ()).unwrap();
    refused(kto(|a| a.logp = view(&[f64::NAN, 0.0])), "logp");
    refused(kto(|a| a.reference = view(&[0.0])), "reference");
    refused(kto(|a| a.desirable = view(&[1])), "desirable");
    refused(kto(|a| a.beta = f64::NAN), "beta");
    refused(kto(|a| a.kl = -0.1), "kl");
    refused(kto(|a| a.desirable_weight = -1.0), "desirable_weight");
    refused(kto(|a| a.undesirable_weight = f64::INFINITY), "undesirable_weight");
    refused(kto(|a| a.weight = Some(view(&[1.0]))), "weight");
    refused(kto(|a| a.loss = output(1)), "loss");
    refused(kto(|a| a.dlogp = output(1)), "dlogp");
    contrast(|_| ()).unwrap();
    refused(contrast(|a| a.logp = view(&[f64::NEG_INFINITY, 0.0])), "logp");
    refused(contrast(|a| a.reference = Some(view(&[0.0]))), "reference");
    refused(contrast(|a| a.reward = view(&[f64::INFINITY, 0.0])), "reward");
    refused(contrast(|a| a.reward = view(&[0.0])), "reward");
    refused(contrast(|a| a.offsets = view(&[0, 1])), "offsets");
    refused(contrast(|a| a.beta = -1.0), "beta");
    refused(contrast(|a| a.weight = Some(view(&[1.0; 2]))), "weight");
    refused(contrast(|a| a.loss = output(2)), "loss");
    refused(contrast(|a| a.dlogp = output(1)), "dlogp");
    proximal(|_| ()).unwrap();
    refused(proximal(|a| a.logp = view(&[f64::NAN, 0.0])), "logp");
    refused(proximal(|a| a.old = view(&[0.0])), "old");
    refused(proximal(|a| a.reference = view(&[0.0, f64::NAN])), "reference");
    refused(proximal(|a| a.mask = Some(view(&[1]))), "mask");
    refused(proximal(|a| a.cu_seqlens = view(&[0, 2, 1, 2])), "cu_seqlens");
    refused(proximal(|a| a.reward = view(&[f64::NAN, 0.0])), "reward");
    for pair in [[0, 2], [-1, 0], [1, 1]] {
        refused(proximal(|a| a.pairs = matrix(&pair, [1, 2])), "pairs");
    }
    refused(proximal(|a| a.pairs = matrix(&[0, 1, 0], [1, 3])), "pairs");
    refused(proximal(|a| a.beta = 0.0), "beta");
    refused(proximal(|a| a.clip = -0.1), "clip");
    refused(proximal(|a| a.loss = output(2)), "loss");
    refused(proximal(|a| a.dlogp = output(1)), "dlogp");
    refused(pairs_by_reward(&[1.0f64], &[0, 2]).map(|_| ()), "offsets");
}

fn mml(edit: impl FnOnce(&mut BetaMmlLoss<'_, f64>)) -> Result<()> {
    let mut args = BetaMmlLoss {
        logp: view(&[-1.0, -2.0]),
        offsets: view(&[0, 2]),
        beta: 0.1,
        weight: None,
        loss: output(1),
        dlogp: output(2),
        total: None,
    };
    edit(&mut args);
    beta_mml_loss(&Device::Cpu, args)
}

fn nce(edit: impl FnOnce(&mut InfoNceLoss<'_, f64>)) -> Result<()> {
    let dlogp = ViewMut::rows_of(Box::leak(vec![HELD; 4].into_boxed_slice()), 2).unwrap();
    let (logp, loss) = (matrix(&[-1.0; 4], [2, 2]), output(1));
    let mut args = InfoNceLoss { logp, length: None, loss, dlogp };
    edit(&mut args);
    info_nce_loss(&Device::Cpu, args)
}

#[test]
fn soft_maxima_refuse() {
    mml(|_| ()).unwrap();
    refused(mml(|a| a.logp = view(&[f64::NEG_INFINITY, 0.0])), "logp");
    refused(mml(|a| a.offsets = view(&[0, 3])), "offsets");
    refused(mml(|a| a.beta = 0.0), "beta");
    refused(mml(|a| a.weight = Some(view(&[f64::NAN]))), "weight");
    refused(mml(|a| a.loss = output(2)), "loss");
    refused(mml(|a| a.dlogp = output(1)), "dlogp");
    refused(mml(|a| a.total = Some(output(0))), "total");
    nce(|_| ()).unwrap();
    refused(nce(|a| a.logp = matrix(&[-1.0; 6], [2, 3])), "logp");
    refused(nce(|a| a.logp = matrix(&[-1.0, 0.0, f64::NAN, 0.0], [2, 2])), "logp");
    refused(nce(|a| a.length = Some(view(&[1]))), "length");
    refused(nce(|a| a.length = Some(view(&[1, -4]))), "length");
    refused(nce(|a| a.loss = output(2)), "loss");
    let wide = ViewMut::rows_of(Box::leak(vec![HELD; 6].into_boxed_slice()), 3).unwrap();
    refused(nce(|a| a.dlogp = wide), "dlogp");
}
