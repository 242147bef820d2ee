//! Whitening: unit variance and every guard, refusals, every executor.

use crate::common::devices::{close, on_all, shared_gpus};
use crate::common::refused;
use crate::policy::arguments::*;
use crate::policy::packed;
use crate::policy::sequences::{Packed, agree, counted};
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result};

fn whitening_agrees<R: Real>() {
    let back = WhitenSettings { shift_mean: false, count_eps: 0.5, ..WhitenSettings::OPENRLHF };
    for n in [2, 33, 4095, 4096, 4097, 50_021] {
        let packed = Packed::<R>::new(&[n], |t| t % 5 != 4);
        for settings in [WhitenSettings::VERL, WhitenSettings::OPENRLHF, back] {
            let (want, stats) = packed.whiten(&Device::Cpu, settings);
            for executor in shared_gpus() {
                let (got, other) = packed.whiten(&executor.device, settings);
                agree(&executor.name, &want, &got);
                let figures = |s: &WhitenStats| [s.count as f64, s.mean, s.std];
                close(&executor.name, &figures(&stats), &figures(&other), 1e-13, 1.0);
            }
        }
    }
    // Equal values in different chunks have no spread: exactly 0.
    let mut packed = Packed::<R>::new(&[9000], |_| true);
    packed.reward = vec![R::from_f64(1000.1); 9000];
    for executor in shared_gpus() {
        let (y, stats) = packed.whiten(&executor.device, WhitenSettings::VERL);
        assert!(y.iter().all(|v| v.to_f64() == 0.0) && stats.std == 0.0, "{}", executor.name);
    }
}

#[test]
fn whitening_agrees_with_the_cpu() {
    whitening_agrees::<f32>();
    whitening_agrees::<f64>();
}

#[test]
fn whitening_has_unit_variance_and_every_guard() {
    let packed = packed::Packed::new();
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

#[test]
fn whiten_refuses() {
    white(|_| ()).unwrap();
    refused(white(|a| a.x = view(&[1.0, 0.0, f64::INFINITY])), "x");
    refused(white(|a| a.mask = Some(view(&[0, 1, 0]))), "mask");
    refused(white(|a| a.mask = Some(view(&[1, 1]))), "mask");
    refused(white(|a| a.settings.ddof = 3), "settings.ddof");
    refused(white(|a| a.settings.eps = f64::INFINITY), "settings.eps");
    refused(white(|a| a.settings.count_eps = -1.0), "settings.count_eps");
    refused(white(|a| a.y = output(2)), "y");
}

#[test]
fn whitening_takes_two_launches() {
    let all = counted(|d, p| drop(p.whiten(d, WhitenSettings::VERL)));
    assert!(all.iter().all(|&(launches, _)| launches == 2), "{all:?}");
}
