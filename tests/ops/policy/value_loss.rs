//! The critic's loss on every executor, with NaN.

use crate::common::devices::{close, executors, shared_gpus};
use crate::policy::batch::*;
use crate::policy::columns::*;
use gradus::Device;
use gradus::dtype::Real;
use gradus::ops::*;

fn value_loss_on<R: Real>(device: &Device, batch: &Batch, clip: f64) -> (f64, Vec<f64>) {
    let (v, target, old): (Vec<R>, Vec<R>, Vec<R>) =
        (batch.typed(0), batch.typed(5), batch.typed(1));
    let (mut loss, mut dvalue) = (f64::NAN, vec![R::from_f64(f64::NAN); v.len()]);
    let args = ValueLoss {
        value: (&v).into(),
        returns: (&target).into(),
        old_value: Some((&old).into()),
        mask: Some((&batch.mask).into()),
        clip,
        weight: 0.25,
        loss: &mut loss,
        dvalue: (&mut dvalue).into(),
    };
    value_loss(device, args).unwrap();
    (loss, dvalue.iter().map(|v| v.to_f64()).collect())
}

#[test]
fn value_losses() {
    for lengths in LATTICE.iter().chain([&[4095usize, 1, 4097, 5000][..]].iter()) {
        let batch = Batch::new(11, lengths);
        for executor in shared_gpus() {
            for clip in [f64::INFINITY, 0.1, 0.0] {
                let (want, got) = (
                    value_loss_on::<f64>(&Device::Cpu, &batch, clip),
                    value_loss_on::<f64>(&executor.device, &batch, clip),
                );
                close(&executor.name, &[want.0], &[got.0], 1e-12, 1e-3);
                assert_eq!(want.1, got.1, "{}", executor.name);
                let (want, got) = (
                    value_loss_on::<f32>(&Device::Cpu, &batch, clip),
                    value_loss_on::<f32>(&executor.device, &batch, clip),
                );
                close(&executor.name, &[want.0], &[got.0], 1e-12, 1e-3);
                assert_eq!(want.1, got.1, "{}", executor.name);
            }
        }
    }
}

#[test]
fn nan_stays_in_the_critic_s_loss() {
    let columns = Columns(vec![
        ("value", around(0.0, TOKENS, 1)),
        ("returns", around(1.0, TOKENS, 2)),
        ("old_value", around(0.1, TOKENS, 3)),
    ]);
    let run = |device: &Device, columns: &Columns| -> Outputs {
        let (mut loss, mut dvalue, mask) = (0.0, vec![0.0; TOKENS], mask());
        let args = ValueLoss {
            value: columns.view("value"),
            returns: columns.view("returns"),
            old_value: Some(columns.view("old_value")),
            mask: Some((&mask).into()),
            clip: 0.2,
            weight: 0.5,
            loss: &mut loss,
            dvalue: (&mut dvalue).into(),
        };
        value_loss(device, args).unwrap();
        vec![("loss", vec![loss]), ("dvalue", dvalue)]
    };
    for executor in executors() {
        let clean = run(&executor.device, &columns);
        for (column, _) in &columns.0 {
            let what = format!("{} value_loss: NaN in {column}", executor.name);
            let dirty = run(&executor.device, &columns.poisoned(column, POISONED));
            check(&what, &clean, &dirty, |out, i| out == "loss" || i == POISONED);
            let masked = run(&executor.device, &columns.poisoned(column, MASKED));
            check(&what, &clean, &masked, |_, _| false);
        }
    }
}
