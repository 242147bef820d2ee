//! A NaN among the inputs of a loss of pairs or groups is in every output that it reaches, and nowhere else. NaN in
//! host memory is refused, in device memory it must show.

use crate::common::devices::{gpu_of, placed, shared_gpus, vector};
use crate::policy::columns::*;
use gradus::ops::*;
use gradus::{Device, View};

fn kinds() -> Vec<PreferenceKind> {
    vec![
        PreferenceKind::Sigmoid { label_smoothing: 0.1, margin: 0.2 },
        PreferenceKind::Hinge,
        PreferenceKind::Ipo,
        PreferenceKind::Robust { label_smoothing: 0.1 },
        PreferenceKind::Exo { label_smoothing: 0.1 },
        PreferenceKind::Nca,
        PreferenceKind::Bco { reference_point: 0.1 },
        PreferenceKind::SppoHard,
        PreferenceKind::ApoZero,
        PreferenceKind::ApoDown,
        PreferenceKind::Discopop { temperature: 0.5 },
        PreferenceKind::Orpo,
    ]
}

fn run_preference(device: &Device, columns: &Columns, kind: PreferenceKind) -> Outputs {
    let gpu = gpu_of(device);
    let n = columns.get("logp_chosen").len();
    let held = |name: &str| placed(gpu, columns.get(name));
    let (chosen, rejected) = (held("logp_chosen"), held("logp_rejected"));
    let (ref_chosen, ref_rejected) = (held("reference_chosen"), held("reference_rejected"));
    let [mut loss, mut d_chosen, mut d_rejected] = [(); 3].map(|_| vec![0.0; n]);
    let mut total = vec![0.0];
    let (orpo, length) = (matches!(kind, PreferenceKind::Orpo), vec![1i64; n]);
    let args = PreferenceLoss {
        logp: Pair { chosen: vector(&chosen), rejected: vector(&rejected) },
        reference: (!orpo)
            .then(|| Pair { chosen: vector(&ref_chosen), rejected: vector(&ref_rejected) }),
        length: Some(Pair { chosen: (&length[..]).into(), rejected: (&length[..]).into() }),
        kind,
        score: PreferenceScore::ReverseKl,
        beta: 0.5,
        likelihood: 0.0,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
        reward: None,
        total: Some((&mut total).into()),
    };
    preference_loss(device, args).unwrap();
    vec![("loss", loss), ("chosen", d_chosen), ("rejected", d_rejected), ("total", total)]
}

#[test]
fn nan_stays_in_preference_losses() {
    let columns = Columns(vec![
        ("logp_chosen", around(-1.0, 4, 1)),
        ("logp_rejected", around(-1.5, 4, 2)),
        ("reference_chosen", around(-1.1, 4, 3)),
        ("reference_rejected", around(-1.2, 4, 4)),
    ]);
    for executor in shared_gpus() {
        for kind in kinds() {
            let orpo = matches!(kind, PreferenceKind::Orpo);
            // Losses whose two slopes each depend on their own side.
            let apart = matches!(
                kind,
                PreferenceKind::Nca
                    | PreferenceKind::Bco { .. }
                    | PreferenceKind::SppoHard
                    | PreferenceKind::ApoZero
            );
            let clean = run_preference(&executor.device, &columns, kind);
            for (column, _) in &columns.0 {
                let what = format!("{} {kind:?}: NaN in {column}", executor.name);
                let dirty = run_preference(&executor.device, &columns.poisoned(column, 2), kind);
                check(&what, &clean, &dirty, |out, i| {
                    let here = i == 2 && !(orpo && column.starts_with("reference"));
                    let side = column.ends_with(out);
                    // APO-down's rejected side sees the margin, its chosen side as well.
                    match out {
                        "loss" => here,
                        "total" => !(orpo && column.starts_with("reference")),
                        _ => here && (side || !apart),
                    }
                });
            }
        }
    }
}

#[test]
fn nan_stays_in_group_losses() {
    let columns = Columns(vec![
        ("logp", around(-1.0, TOKENS, 1)),
        ("reference", around(-1.1, TOKENS, 2)),
        ("reward", around(0.5, TOKENS, 3)),
    ]);
    let groups = OFFSETS.len() - 1;
    let run = |device: &Device, columns: &Columns, copg: bool| -> Outputs {
        let gpu = gpu_of(device);
        let held = |name: &str| placed(gpu, columns.get(name));
        let (logp, reference, reward) = (held("logp"), held("reference"), held("reward"));
        let (offsets, mut loss) = (OFFSETS, vec![0.0; groups]);
        let (mut dlogp, mut total) = (vec![0.0; TOKENS], vec![0.0]);
        if copg {
            let args = CopgLoss {
                logp: vector(&logp),
                reference: Some(vector(&reference)),
                reward: vector(&reward),
                offsets: (&offsets[..]).into(),
                beta: 0.3,
                weight: None,
                loss: (&mut loss).into(),
                dlogp: (&mut dlogp).into(),
                total: Some((&mut total).into()),
            };
            copg_loss(device, args).unwrap();
        } else {
            let args = BetaMmlLoss {
                logp: vector(&logp),
                offsets: (&offsets[..]).into(),
                beta: 0.3,
                weight: None,
                loss: (&mut loss).into(),
                dlogp: (&mut dlogp).into(),
                total: Some((&mut total).into()),
            };
            beta_mml_loss(device, args).unwrap();
        }
        vec![("loss", loss), ("dlogp", dlogp), ("total", total)]
    };
    for executor in shared_gpus() {
        for (copg, column) in [(true, "logp"), (true, "reference"), (false, "logp")] {
            let what = format!("{} copg {copg}: NaN in {column}", executor.name);
            let clean = run(&executor.device, &columns, copg);
            let dirty = run(&executor.device, &columns.poisoned(column, POISONED), copg);
            check(&what, &clean, &dirty, |out, i| match out {
                "loss" => i == 1,
                "dlogp" => SECOND.contains(&i),
                _ => true,
            });
        }
    }
}

#[test]
fn nan_stays_in_prdp() {
    let columns = policy_columns(1.0);
    let columns = Columns(vec![
        ("logp", columns.get("logp").to_vec()),
        ("old", columns.get("old_logp").to_vec()),
        ("reference", columns.get("ref_logp").to_vec()),
    ]);
    let run = |device: &Device, columns: &Columns, clip: f64| -> Outputs {
        let gpu = gpu_of(device);
        let held = |name: &str| placed(gpu, columns.get(name));
        let (logp, old, reference) = (held("logp"), held("old"), held("reference"));
        let (offsets, mask, reward) = (OFFSETS, mask(), [1.0, 0.0, 0.5]);
        let pairs = [0i64, 1, 1, 2, 2, 0];
        let (mut loss, mut dlogp, mut total) = (vec![0.0; 3], vec![0.0; TOKENS], vec![0.0]);
        let args = PrdpLoss {
            logp: vector(&logp),
            old: vector(&old),
            reference: vector(&reference),
            mask: Some((&mask).into()),
            cu_seqlens: (&offsets[..]).into(),
            reward: (&reward[..]).into(),
            pairs: View::rows_of(&pairs, 2).unwrap(),
            beta: 0.5,
            clip,
            weight: None,
            loss: (&mut loss).into(),
            dlogp: (&mut dlogp).into(),
            total: Some((&mut total).into()),
        };
        prdp_loss(device, args).unwrap();
        vec![("loss", loss), ("dlogp", dlogp), ("total", total)]
    };
    for executor in shared_gpus() {
        for clip in [0.01, 10.0] {
            let clean = run(&executor.device, &columns, clip);
            for (column, _) in &columns.0 {
                let what = format!("{} prdp clip {clip}: NaN in {column}", executor.name);
                let dirty = run(&executor.device, &columns.poisoned(column, POISONED), clip);
                check(&what, &clean, &dirty, |out, i| match out {
                    // The third pair is without the second sequence.
                    "loss" => i != 2,
                    "dlogp" => i != MASKED,
                    _ => true,
                });
                let masked = run(&executor.device, &columns.poisoned(column, MASKED), clip);
                check(&what, &clean, &masked, |_, _| false);
            }
        }
    }
}
