//! Quantiles and top fractions: definitions, refusals, every executor.

use crate::common::devices::{close, emulated, gpu_of, on_all, placed, shared_gpus, vector};
use crate::common::{bits_of, refused};
use crate::policy::arguments::*;
use crate::policy::sequences::*;
use gradus::device::KernelSet;
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result, ViewMut};
use proptest::prelude::*;

fn ranked(edit: impl FnOnce(&mut Quantile<'_, f64>)) -> Result<()> {
    let mut args = Quantile {
        x: view(&[1.0, f64::NAN]),
        mask: None,
        scope: QuantileScope::All,
        q: 0.5,
        method: QuantileMethod::Linear,
        on_nan: OnNan::Skip,
        y: output(1),
    };
    edit(&mut args);
    quantile(&Device::Cpu, args)
}

fn top(edit: impl FnOnce(&mut TopFraction<'_, f64>)) -> Result<()> {
    let keep = ViewMut::from(Box::leak(vec![9u8; 2].into_boxed_slice()));
    let (x, scope) = (view(&[1.0, 2.0]), QuantileScope::All);
    let mut args = TopFraction { x, class: None, scope, fraction: 0.2, keep, threshold: None };
    edit(&mut args);
    top_fraction(&Device::Cpu, args)
}

#[test]
fn quantiles_refuse() {
    ranked(|_| ()).unwrap();
    refused(ranked(|a| a.x = matrix(&[1.0, 2.0], [1, 2])), "x");
    refused(ranked(|a| a.on_nan = OnNan::Error), "x");
    refused(ranked(|a| a.mask = Some(view(&[1]))), "mask");
    refused(ranked(|a| a.scope = QuantileScope::PerSequence(view(&[0, 1]))), "scope");
    refused(ranked(|a| a.q = 1.5), "q");
    refused(ranked(|a| a.q = f64::NAN), "q");
    refused(ranked(|a| a.y = output(2)), "y");
    top(|_| ()).unwrap();
    refused(top(|a| a.x = view(&[1.0, f64::NAN])), "x");
    let class = RankedClass { class_ids: view(&[1]), ranked: 1, others: true };
    refused(top(|a| a.class = Some(class)), "class.class_ids");
    refused(top(|a| a.scope = QuantileScope::PerSequence(view(&[]))), "scope");
    refused(top(|a| a.fraction = -0.2), "fraction");
    refused(top(|a| a.threshold = Some(output(2))), "threshold");
    refused(top(|a| a.keep = ViewMut::from(Box::leak(vec![9u8; 3].into_boxed_slice()))), "keep");
}

fn quantiles(x: &[f64], scope: QuantileScope<'_>, q: f64, method: QuantileMethod) -> Vec<f64> {
    let outputs = match scope {
        QuantileScope::All => 1,
        QuantileScope::PerSequence(offsets) => offsets.extent(0) - 1,
    };
    let on = |device: &Device| {
        let mut y = vec![-1.0; outputs];
        let args = Quantile {
            x: x.into(),
            mask: None,
            scope,
            q,
            method,
            on_nan: OnNan::Skip,
            y: (&mut y).into(),
        };
        quantile(device, args).unwrap();
        y
    };
    on_all(on, |name, cpu, gpu| close(name, cpu, gpu, 0.0, 0.0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// torch.quantile's definition on the sorted values, in any order of the input.
    #[test]
    fn quantiles_match_a_sort(
        mut x in prop::collection::vec(-9i32..9, 1..40).prop_map(|v| {
            v.into_iter().map(|k| k as f64 / 3.0).collect::<Vec<f64>>()
        }),
        q in prop::sample::select(vec![0.0, 0.2, 0.25, 0.5, 0.8, 0.99, 1.0]),
    ) {
        let rank = q * (x.len() - 1) as f64;
        let got = [QuantileMethod::Linear, QuantileMethod::Lower, QuantileMethod::Higher]
            .map(|method| quantiles(&x, QuantileScope::All, q, method)[0]);
        x.sort_by(f64::total_cmp);
        let (lower, upper) = (x[rank.floor() as usize], x[rank.ceil() as usize]);
        prop_assert!((got[0] - (lower + (upper - lower) * rank.fract())).abs() < 1e-14);
        prop_assert_eq!([got[1], got[2]], [lower, upper]);
    }
}

#[test]
fn quantiles_per_sequence_and_of_odd_values() {
    let x = vec![3.0, f64::NAN, 1.0, 7.0, f64::NEG_INFINITY, 2.0];
    let offsets = vec![0i64, 3, 3, 4, 6];
    let scope = QuantileScope::PerSequence((&offsets).into());
    let y = quantiles(&x, scope, 0.5, QuantileMethod::Linear);
    assert_eq!([y[0], y[2], y[3]], [2.0, 7.0, f64::NEG_INFINITY]);
    assert!(y[1].is_nan(), "nothing has no quantile");
    assert_eq!(quantiles(&x, scope, 1.0, QuantileMethod::Lower)[3], 2.0);
}

/// The share ρ of n values keeps 1 + ρ·(n − 1) of them whenever that is an integer, although 1 − ρ
/// and its product with n − 1 are rounded.
#[test]
fn the_top_fraction_keeps_the_element_at_its_rank() {
    for steps in 1..60usize {
        for tenths in 0..=10usize {
            if steps * tenths % 10 != 0 || tenths == 0 {
                continue;
            }
            let x: Vec<f64> = (0..=steps).map(|i| ((i * 37) % (steps + 1)) as f64 * 0.1).collect();
            let mut sorted = x.clone();
            sorted.sort_by(f64::total_cmp);
            let on = |device: &Device| {
                let mut keep = vec![9u8; x.len()];
                let args = TopFraction {
                    x: (&x).into(),
                    class: None,
                    scope: QuantileScope::All,
                    fraction: tenths as f64 / 10.0,
                    keep: (&mut keep).into(),
                    threshold: None,
                };
                top_fraction(device, args).unwrap();
                keep
            };
            let keep = on_all(on, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"));
            let threshold = sorted[steps - steps * tenths / 10];
            let want: Vec<u8> = x.iter().map(|&v| (v >= threshold) as u8).collect();
            assert_eq!(keep, want, "{tenths}/10 of {}", steps + 1);
        }
    }
}

#[test]
fn the_top_fraction_ranks_one_class_in_its_scope() {
    let x = vec![0.9, 0.1, 0.5, 0.8, 0.2, 0.3, 0.4, 0.7];
    let class = vec![2u8, 2, 2, 1, 2, 2, 1, 2];
    let cu_seqlens = vec![0i64, 4, 8];
    type Class<'a> = Option<RankedClass<'a>>;
    let run_on =
        |device: &Device, class: Class<'_>, scope: QuantileScope<'_>, fraction, outputs: usize| {
            let (mut keep, mut threshold) = (vec![9u8; 8], vec![f64::NAN; outputs]);
            let args = TopFraction {
                x: (&x).into(),
                class,
                scope,
                fraction,
                keep: (&mut keep).into(),
                threshold: Some((&mut threshold).into()),
            };
            top_fraction(device, args).unwrap();
            (keep, threshold)
        };
    let run = |class: Option<RankedClass<'_>>, scope, fraction, outputs| {
        on_all(
            |device| run_on(device, class, scope, fraction, outputs),
            |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"),
        )
    };
    let prefix = |others| Some(RankedClass { class_ids: (&class).into(), ranked: 2, others });
    let (keep, threshold) = run(prefix(true), QuantileScope::All, 0.4, 1);
    // Ranked: 0.9 0.1 0.5 0.2 0.3 0.7; the quantile 0.6 stands at rank 3 of 0 to 5.
    assert!((threshold[0] - 0.5).abs() < 1e-15);
    assert_eq!(keep, [1, 0, 1, 1, 0, 0, 1, 1]);
    assert_eq!(run(prefix(false), QuantileScope::All, 0.4, 1).0, [1, 0, 1, 0, 0, 0, 0, 1]);
    let per_sequence = QuantileScope::PerSequence((&cu_seqlens).into());
    assert_eq!(run(prefix(false), per_sequence, 0.0, 2).0, [0; 8]);
    assert_eq!(run(None, per_sequence, 1.0, 2).0, [1; 8]);
    assert_eq!(run(None, per_sequence, 0.25, 2).0, [1, 0, 0, 0, 0, 0, 0, 1]);
}

const METHODS: [QuantileMethod; 3] =
    [QuantileMethod::Linear, QuantileMethod::Lower, QuantileMethod::Higher];

fn quantiles_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let lengths = if i == 1 { &LENGTHS[..] } else { &LENGTHS[..13] };
        let mut packed = Packed::<R>::new(lengths, keep);
        // Ties, zeros of both signs, infinities, and NaN where it is skipped.
        for (t, x) in packed.reward.iter_mut().enumerate().filter(|(t, _)| t % 3 == 0) {
            let odd = [0.0, -0.0, 0.5, 0.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-42];
            *x = R::from_f64(odd[t / 3 % 8]);
        }
        for executor in shared_gpus() {
            for q in [0.0, 0.1, 0.8, 1.0] {
                for (method, whole) in METHODS.into_iter().flat_map(|m| [(m, true), (m, false)]) {
                    let run = |device| bits_of(&packed.quantile(device, q, method, whole));
                    let name = format!("{} mask {i} q {q} {method:?}", executor.name);
                    assert_eq!(run(&executor.device), run(&Device::Cpu), "{name}");
                }
            }
        }
        let packed = Packed::<R>::new(lengths, keep);
        for executor in shared_gpus() {
            for (fraction, whole) in [(0.0, true), (0.2, true), (0.2, false), (1.0, false)] {
                let (keep, threshold) = packed.top(&executor.device, fraction, whole);
                let want = packed.top(&Device::Cpu, fraction, whole);
                assert_eq!(keep, want.0, "{} mask {i} top {fraction}", executor.name);
                assert_eq!(bits_of(&threshold), bits_of(&want.1));
            }
        }
    }
}

#[test]
fn quantiles_have_the_bits_of_the_cpu() {
    quantiles_agree::<f32>();
    quantiles_agree::<f64>();
}

/// A scope of so many tokens that several blocks share it, its remainder unequal among them.
#[test]
fn a_large_scope_has_the_bits_of_the_cpu() {
    fn check<R: Real>(n: usize, keep: fn(usize) -> bool) {
        let packed = Packed::<R>::new(&[n], keep);
        let devices = [emulated(KernelSet::Sm80, 0), emulated(KernelSet::Sm90a, 0)];
        for device in devices.iter().chain([&emulated(KernelSet::Sm90a, 5)]) {
            for (q, method) in [0.0, 0.317, 0.8, 1.0].into_iter().zip(METHODS.into_iter().cycle()) {
                let run = |device| bits_of(&packed.quantile(device, q, method, true));
                assert_eq!(run(device), run(&Device::Cpu), "{n} q {q} {method:?}");
            }
            let ((keep, threshold), want) =
                (packed.top(device, 0.2, true), packed.top(&Device::Cpu, 0.2, true));
            assert!(keep == want.0 && bits_of(&threshold) == bits_of(&want.1), "{n}");
        }
    }
    check::<f32>(16_384, |_| true);
    check::<f32>(20_011, |t| t % 7 != 3);
    check::<f64>(30_000, |t| t > 25_000);
    check::<f32>(17_000, |_| false);
}

/// A NaN in device memory makes a quantile that does not skip NaN a NaN.
#[test]
fn a_nan_on_the_device_is_a_result() {
    for executor in shared_gpus() {
        let x = placed(gpu_of(&executor.device), &[1f32, f32::NAN, 3.0]);
        let mut y = [0f32];
        let args = Quantile {
            x: vector(&x),
            mask: None,
            scope: QuantileScope::All,
            q: 0.5,
            method: QuantileMethod::Linear,
            on_nan: OnNan::Error,
            y: (&mut y[..]).into(),
        };
        quantile(&executor.device, args).unwrap();
        assert!(y[0].is_nan(), "{}", executor.name);
    }
}

/// One launch. A count and four digits read all values; the mask each time.
#[test]
fn quantiles_take_one_launch() {
    let run = |d: &Device, p: &Packed<f32>| drop(p.quantile(d, 0.5, QuantileMethod::Lower, false));
    for (launches, bytes) in counted(run) {
        assert!(launches == 1 && bytes <= 5.0 * 5.0 * 1.01, "{bytes}");
    }
    let top = counted(|d, p| drop(p.top(d, 0.2, true)));
    assert!(top.iter().all(|&(launches, _)| launches == 1), "{top:?}");
}
