//! The losses of pairs and groups in f32: the f64 form rounded once, on every executor.

use crate::policy::rounding::*;
use gradus::dtype::Real;
use gradus::ops::{
    BetaMmlLoss, CopgLoss, InfoNceLoss, KtoLoss, Pair, PrdpLoss, PreferenceKind, PreferenceLoss,
    PreferenceScore, beta_mml_loss, copg_loss, info_nce_loss, kto_loss, prdp_loss, preference_loss,
};
use gradus::{Device, View, ViewMut};

fn preference<R: Real>(device: &Device) -> Vec<f64> {
    let n = 37;
    let [a, b, c, d, weight] = [1, 2, 3, 4, 5].map(|seed| values::<R>(seed, n, 2.0));
    let (mut loss, mut total) = (nan::<R>(n), [f64::NAN]);
    let (mut chosen, mut rejected) = (nan::<R>(n), nan::<R>(n));
    let args = PreferenceLoss {
        logp: Pair { chosen: (&a).into(), rejected: (&b).into() },
        reference: Some(Pair { chosen: (&c).into(), rejected: (&d).into() }),
        length: None,
        kind: PreferenceKind::Sigmoid { label_smoothing: 0.1, margin: 0.0 },
        score: PreferenceScore::ReverseKl,
        beta: 0.3,
        likelihood: 0.25,
        weight: Some((&weight).into()),
        loss: (&mut loss).into(),
        dlogp: Pair { chosen: (&mut chosen).into(), rejected: (&mut rejected).into() },
        reward: None,
        total: Some((&mut total[..]).into()),
    };
    preference_loss(device, args).unwrap();
    wide(&[&loss, &chosen, &rejected])
}

fn kto<R: Real>(device: &Device) -> Vec<f64> {
    let n = 37;
    let (logp, reference) = (values::<R>(6, n, 2.0), values::<R>(7, n, 2.0));
    let desirable: Vec<u8> = (0..n).map(|i| (i % 3 == 0) as u8).collect();
    let (mut loss, mut dlogp) = (nan::<R>(n), nan::<R>(n));
    let args = KtoLoss {
        logp: (&logp).into(),
        reference: (&reference).into(),
        desirable: (&desirable).into(),
        beta: 0.3,
        kl: 0.1,
        desirable_weight: 1.0,
        undesirable_weight: 1.5,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: None,
    };
    kto_loss(device, args).unwrap();
    wide(&[&loss, &dlogp])
}

fn prdp<R: Real>(device: &Device) -> Vec<f64> {
    let cu = [0i64, 5, 5, 17, 18, 51];
    let [logp, old, reference] = [8, 9, 10].map(|seed| values::<R>(seed, 51, 0.1));
    let reward = values::<R>(11, 5, 1.0);
    let pairs = [0i64, 2, 2, 4, 3, 0];
    let (mut loss, mut dlogp) = (nan::<R>(3), nan::<R>(51));
    let args = PrdpLoss {
        logp: (&logp).into(),
        old: (&old).into(),
        reference: (&reference).into(),
        mask: None,
        cu_seqlens: cu[..].into(),
        reward: (&reward).into(),
        pairs: View::rows_of(&pairs, 2).unwrap(),
        beta: 0.3,
        clip: 10.0,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: None,
    };
    prdp_loss(device, args).unwrap();
    wide(&[&loss, &dlogp])
}

const GROUPS: [i64; 6] = [0, 4, 4, 5, 11, 40];

fn copg<R: Real>(device: &Device) -> Vec<f64> {
    let [logp, reference, reward] = [12, 13, 14].map(|seed| values::<R>(seed, 40, 1.0));
    let (mut loss, mut dlogp) = (nan::<R>(5), nan::<R>(40));
    let args = CopgLoss {
        logp: (&logp).into(),
        reference: Some((&reference).into()),
        reward: (&reward).into(),
        offsets: GROUPS[..].into(),
        beta: 0.4,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: None,
    };
    copg_loss(device, args).unwrap();
    wide(&[&loss, &dlogp])
}

fn beta_mml<R: Real>(device: &Device) -> Vec<f64> {
    let logp = values::<R>(15, 40, 2.0);
    let (mut loss, mut dlogp) = (nan::<R>(5), nan::<R>(40));
    let args = BetaMmlLoss {
        logp: (&logp).into(),
        offsets: GROUPS[..].into(),
        beta: 0.5,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: None,
    };
    beta_mml_loss(device, args).unwrap();
    wide(&[&loss, &dlogp])
}

fn info_nce<R: Real>(device: &Device) -> Vec<f64> {
    let n = 23;
    let logp = values::<R>(16, n * n, 2.0);
    let (mut loss, mut dlogp) = (nan::<R>(1), nan::<R>(n * n));
    let args = InfoNceLoss {
        logp: View::rows_of(&logp, n).unwrap(),
        length: None,
        loss: (&mut loss).into(),
        dlogp: ViewMut::rows_of(&mut dlogp, n).unwrap(),
    };
    info_nce_loss(device, args).unwrap();
    wide(&[&loss, &dlogp])
}

#[test]
fn f32_is_f64_rounded_once() {
    rounds_once("preference_loss", preference::<f32>, preference::<f64>);
    rounds_once("kto_loss", kto::<f32>, kto::<f64>);
    rounds_once("prdp_loss", prdp::<f32>, prdp::<f64>);
    rounds_once("copg_loss", copg::<f32>, copg::<f64>);
    rounds_once("beta_mml_loss", beta_mml::<f32>, beta_mml::<f64>);
    rounds_once("info_nce_loss", info_nce::<f32>, info_nce::<f64>);
}
