//! Group advantages: definitions, exact properties, identities, invariances.

use crate::common::devices::{close, executors, on_all};
use crate::common::{max_rel, normals};
use crate::policy::sequences::{Packed, counted};
use gradus::ops::GroupBaseline as Baseline;
use gradus::ops::GroupScale as Scale;
use gradus::ops::{
    EpsForm, GroupAdvantage, GroupSettings, GroupStats, Grouping, OnSingle, group_advantage,
};
use gradus::{Device, View, ViewMut};
use proptest::prelude::*;

const BASELINES: [Baseline; 5] = [
    Baseline::None,
    Baseline::Mean,
    Baseline::LeaveOneOut,
    Baseline::LengthWeighted,
    Baseline::Max2,
];

const SCALES: [Scale; 5] =
    [Scale::None, Scale::GroupStd, Scale::BatchStd, Scale::LooStd, Scale::NonzeroShare];

fn settings(baseline: Baseline, scale: Scale) -> GroupSettings {
    GroupSettings { baseline, scale, ..GroupSettings::default() }
}

fn run(
    reward: &[f64],
    offsets: &[i64],
    length: &[i64],
    settings: GroupSettings,
) -> (Vec<f64>, Vec<GroupStats>) {
    let on = |device: &Device| {
        let (mut advantage, mut groups) = (vec![f64::NAN; reward.len()], Vec::new());
        let args = GroupAdvantage {
            reward: reward.into(),
            offsets: offsets.into(),
            length: Some(length.into()),
            settings,
            advantage: (&mut advantage).into(),
            groups: Some(&mut groups),
        };
        group_advantage(device, args).unwrap();
        assert!(advantage.iter().all(|a| a.is_finite()), "{settings:?}: {advantage:?}");
        (advantage, groups)
    };
    on_all(on, |name, cpu, gpu| {
        close(name, &cpu.0, &gpu.0, 1e-11, 1e-3);
        for (c, g) in cpu.1.iter().zip(&gpu.1) {
            assert_eq!((c.size, c.scorable, c.degenerate), (g.size, g.scorable, g.degenerate));
            close(name, &[c.mean, c.std], &[g.mean, g.std], 1e-12, 1.0);
        }
        assert_eq!(cpu.1.len(), gpu.1.len());
    })
}

/// Plain textbook statistics of the rewards that are not NaN, none shared with the library.
fn naive(reward: &[f64], offsets: &[i64], length: &[i64], s: GroupSettings) -> Vec<f64> {
    let std = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let free = x.len() as f64 - s.ddof as f64;
        let squares: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
        if free > 0.0 { (squares / free).sqrt() } else { 0.0 }
    };
    let scorable =
        |range: &[f64]| -> Vec<f64> { range.iter().copied().filter(|r| !r.is_nan()).collect() };
    let all = scorable(reward);
    let mut out = Vec::new();
    for ends in offsets.windows(2) {
        let range = ends[0] as usize..ends[1] as usize;
        let group = scorable(&reward[range.clone()]);
        let mut sorted = group.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for i in range.clone() {
            let mut others = group.clone();
            if let Some(at) = others.iter().position(|&r| r == reward[i]) {
                others.remove(at);
            }
            let used = |j: &usize| !reward[*j].is_nan();
            let tokens: f64 = range.clone().filter(used).map(|j| length[j] as f64).sum();
            let weighted: f64 =
                range.clone().filter(used).map(|j| length[j] as f64 * reward[j]).sum();
            let difference = match s.baseline {
                Baseline::None => reward[i],
                Baseline::Mean => reward[i] - group.iter().sum::<f64>() / group.len() as f64,
                Baseline::LeaveOneOut => {
                    reward[i] - others.iter().sum::<f64>() / others.len() as f64
                }
                Baseline::LengthWeighted => reward[i] - weighted / tokens,
                Baseline::Max2 if reward[i] == sorted[0] => sorted[0] - sorted[1],
                Baseline::Max2 => 0.0,
            };
            let divisor = match s.scale {
                Scale::None => 1.0,
                Scale::GroupStd => std(&group) + s.eps,
                Scale::BatchStd => std(&all) + s.eps,
                Scale::LooStd if std(&others) == 0.0 => 1.0,
                Scale::LooStd => std(&others) + s.eps,
                Scale::NonzeroShare => {
                    all.iter().filter(|&&r| r != 0.0).count() as f64 / all.len() as f64
                }
            };
            out.push(if reward[i].is_nan() { 0.0 } else { difference / divisor });
        }
    }
    out
}

#[test]
fn group_advantages_match_their_definitions() {
    let mut reward = normals(1, 17, 1.5);
    (reward[3], reward[9], reward[12]) = (f64::NAN, 0.0, 0.0);
    let length: Vec<i64> = (0..17).map(|i| 1 + (i * 7) % 11).collect();
    let offsets = [0i64, 5, 5, 7, 17];
    for baseline in BASELINES {
        for scale in SCALES {
            for ddof in [0, 1] {
                let s = GroupSettings { ddof, eps: 1e-3, ..settings(baseline, scale) };
                let (got, groups) = run(&reward, &offsets, &length, s);
                let want = naive(&reward, &offsets, &length, s);
                let error = max_rel(&got, &want, 1e-3);
                assert!(error < 1e-11, "{s:?}: {error:e}");
                assert_eq!(groups.iter().map(|g| g.size).collect::<Vec<_>>(), [5, 0, 2, 10]);
                assert_eq!(groups.iter().map(|g| g.scorable).collect::<Vec<_>>(), [4, 0, 2, 10]);
                let degenerate: Vec<bool> = groups.iter().map(|g| g.degenerate).collect();
                assert_eq!(degenerate, [false, true, false, false]);
            }
        }
    }
}

#[test]
fn eps_forms_are_what_they_say() {
    let divide = |eps_form, eps| {
        let s = GroupSettings { eps_form, eps, ..GroupSettings::default() };
        1.0 / run(&[-1.0, 0.0, 1.0], &[0, 3], &[1; 3], s).0[2]
    };
    assert_eq!(divide(EpsForm::AddToStd, 0.5), 1.5);
    assert_eq!(divide(EpsForm::AddToVariance, 1.25), 1.5);
    assert_eq!(divide(EpsForm::FloorVariance, 2.25), 1.5);
    assert_eq!(divide(EpsForm::FloorVariance, 0.25), 1.0);
}

/// TRL's f32 formula gives |A| = 0.37 for eight rewards of 1000.1; here it is 0 to the bit, in f32
/// as in f64, whatever the size of the group.
#[test]
fn identical_rewards_give_exactly_zero() {
    for executor in executors() {
        identical_rewards_on(&executor.device);
    }
}

fn identical_rewards_on(device: &Device) {
    for value in [1000.1f32, 100.1, 12345.678, -0.3, 1e-30, 3e38, 0.0] {
        for size in 3..=64usize {
            for scale in SCALES {
                for baseline in BASELINES {
                    let std = matches!(scale, Scale::GroupStd | Scale::LooStd | Scale::BatchStd);
                    if baseline == Baseline::None && !std {
                        continue; // A = R, by definition
                    }
                    let (reward, mut advantage) = (vec![value; size], vec![f32::NAN; size]);
                    let (offsets, length) = (vec![0, size as i64], vec![3i64; size]);
                    let mut groups = Vec::new();
                    let args = GroupAdvantage {
                        reward: (&reward).into(),
                        offsets: (&offsets).into(),
                        length: Some((&length).into()),
                        settings: GroupSettings { eps: 0.0, ..settings(baseline, scale) },
                        advantage: (&mut advantage).into(),
                        groups: Some(&mut groups),
                    };
                    group_advantage(device, args).unwrap();
                    assert!(advantage.iter().all(|a| a.to_bits() == 0), "{value} × {size}");
                    assert!(groups[0].degenerate && groups[0].std == 0.0);
                    assert_eq!(groups[0].mean, value as f64);
                }
            }
        }
    }
}

#[test]
fn degenerate_groups_are_flagged_and_harmless() {
    let nan = f64::NAN;
    let reward = [nan, nan, nan, 4.0, nan, 7.0];
    let (advantage, groups) =
        run(&reward, &[0, 2, 4, 6], &[1; 6], settings(Baseline::Mean, Scale::GroupStd));
    assert_eq!(advantage, [0.0; 6]);
    assert_eq!(groups.iter().map(|g| g.scorable).collect::<Vec<_>>(), [0, 1, 1]);
    assert!(groups.iter().all(|g| g.degenerate));
    assert_eq!([groups[0].mean, groups[1].mean, groups[2].mean], [0.0, 4.0, 7.0]);

    // Without a baseline and a group scale the group does not matter, not even a group of one.
    let (advantage, _) =
        run(&[4.0, 2.0], &[0, 1, 2], &[1; 2], settings(Baseline::None, Scale::None));
    assert_eq!(advantage, [4.0, 2.0]);
    let raw = GroupSettings { on_single: OnSingle::Raw, eps: 0.0, ..GroupSettings::default() };
    assert_eq!(run(&reward, &[0, 2, 4, 6], &[1; 6], raw).0, [0.0, 0.0, 0.0, 4.0, 0.0, 7.0]);
    // A group whose completions hold no token has no length-weighted mean.
    let weighted = settings(Baseline::LengthWeighted, Scale::None);
    assert_eq!(run(&[1.0, 2.0], &[0, 2], &[0, 0], weighted).0, [0.0, 0.0]);
    assert_eq!(run(&[], &[0], &[], weighted).0, [0.0; 0]);
}

/// Outliers do not leak: two-pass statistics keep a variance of 1/4 beside an offset of 1e9.
#[test]
fn large_offsets_do_not_cancel() {
    let reward: Vec<f64> = (0..8).map(|i| 1e9 + (i % 2) as f64).collect();
    let (_, groups) = run(&reward, &[0, 8], &[1; 8], settings(Baseline::Mean, Scale::GroupStd));
    assert_eq!(groups[0].std, (2.0f64 / 7.0).sqrt());
    let loo = GroupSettings { eps: 0.0, ..settings(Baseline::LeaveOneOut, Scale::LooStd) };
    let spread = run(&[1e9, 1e9, 1e9, 5.0], &[0, 4], &[1; 4], loo).0;
    assert_eq!(spread[3], 5.0 - 1e9, "the others are equal: their deviation is exactly 0");
}

/// GDPO: every reward normalized by itself, weighted sum, then one pass over the batch as one group.
#[test]
fn gdpo_is_a_composition() {
    let (a, b) = (normals(2, 12, 1.0), normals(3, 12, 40.0));
    let offsets = [0i64, 4, 8, 12];
    let grpo = settings(Baseline::Mean, Scale::GroupStd);
    let (first, second) =
        (run(&a, &offsets, &[1; 12], grpo).0, run(&b, &offsets, &[1; 12], grpo).0);
    let sum: Vec<f64> = first.iter().zip(&second).map(|(x, y)| 0.7 * x + 0.3 * y).collect();
    let (whole, stats) = run(&sum, &[0, 12], &[1; 12], grpo);
    let mean = sum.iter().sum::<f64>() / 12.0;
    let std = (sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 11.0).sqrt();
    let want: Vec<f64> = sum.iter().map(|x| (x - mean) / (std + 1e-4)).collect();
    assert!(max_rel(&whole, &want, 1e-6) < 1e-12 && (stats[0].std - std).abs() < 1e-14);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// With rewards on a grid of 1/8: shifting all rewards changes no bit; scaling by a power of
    /// two scales the unnormalized advantage and leaves the normalized one (eps 0) to the bit.
    #[test]
    fn shift_and_scale(
        grid in prop::collection::vec(-64i32..64, 2..20),
        shift in -1000i32..1000,
        power in -3i32..4,
    ) {
        let n = grid.len();
        let reward: Vec<f64> = grid.iter().map(|&k| k as f64 / 8.0).collect();
        let (offsets, length) = ([0, n as i64], vec![1; n]);
        let factor = 2f64.powi(power);
        let shifted: Vec<f64> = reward.iter().map(|r| r + shift as f64).collect();
        let scaled: Vec<f64> = reward.iter().map(|r| r * factor).collect();
        for baseline in [Baseline::Mean, Baseline::LeaveOneOut, Baseline::LengthWeighted, Baseline::Max2] {
            for scale in [Scale::None, Scale::GroupStd, Scale::BatchStd, Scale::LooStd] {
                let s = GroupSettings { eps: 0.0, ..settings(baseline, scale) };
                let base = run(&reward, &offsets, &length, s).0;
                prop_assert_eq!(&run(&shifted, &offsets, &length, s).0, &base);
                let homogeneous = run(&scaled, &offsets, &length, s).0;
                if scale == Scale::None {
                    let want: Vec<f64> = base.iter().map(|a| a * factor).collect();
                    prop_assert_eq!(homogeneous, want);
                } else if scale != Scale::LooStd {
                    prop_assert_eq!(homogeneous, base);
                }
            }
        }
        let centered = run(&reward, &offsets, &length, settings(Baseline::Mean, Scale::None)).0;
        prop_assert!(centered.iter().sum::<f64>().abs() < 1e-11);
    }

    /// The order of samples does not matter beyond rounding, and ids in any order are groups.
    #[test]
    fn permutation_of_samples(ids in prop::collection::vec(0i64..4, 1..30), seed in 0u64..1000) {
        let reward = normals(seed, ids.len(), 1.0);
        let grouping = Grouping::by_id(&ids);
        let s = settings(Baseline::Mean, Scale::GroupStd);
        let grouped = grouping.gather(&reward).unwrap();
        let length = vec![1; ids.len()];
        let got = grouping
            .scatter(&run(&grouped, grouping.offsets(), &length, s).0)
            .unwrap();
        for i in 0..ids.len() {
            let members: Vec<f64> =
                (0..ids.len()).filter(|&j| ids[j] == ids[i]).map(|j| reward[j]).collect();
            let n = members.len() as f64;
            let mean = members.iter().sum::<f64>() / n;
            let var = members.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let want = if n < 2.0 { 0.0 } else { (reward[i] - mean) / (var.sqrt() + 1e-4) };
            prop_assert!((got[i] - want).abs() < 1e-11, "{} against {}", got[i], want);
        }
    }
}

/// A group's advantages have the same bits alone, anywhere in a batch, and for any thread count.
#[test]
fn group_advantage_does_not_depend_on_batch_or_threads() {
    let (groups, size) = (2000usize, 9usize);
    let reward = normals(4, groups * size, 3.0);
    let length = vec![1; reward.len()];
    let offsets: Vec<i64> = (0..=groups).map(|g| (g * size) as i64).collect();
    for scale in [Scale::GroupStd, Scale::LooStd] {
        let s = settings(Baseline::LeaveOneOut, scale);
        let whole = run(&reward, &offsets, &length, s);
        for threads in [1, 2, 4, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| run(&reward, &offsets, &length, s)), whole);
        }
        for g in [0, 3, groups - 1] {
            let range = g * size..(g + 1) * size;
            let alone = run(&reward[range.clone()], &[0, size as i64], &length[..size], s);
            assert_eq!(alone, (whole.0[range].to_vec(), vec![whole.1[g]]));
        }
    }
}

/// Strided inputs and outputs are read and written where they are, and nothing between them.
#[test]
fn group_advantage_respects_strides() {
    for executor in executors() {
        strides_on(&executor.device);
    }
}

fn strides_on(device: &Device) {
    let data = normals(5, 12, 1.0);
    let picked: Vec<f64> = data.iter().step_by(3).copied().collect();
    let offsets = vec![0i64, 4];
    let mut out = vec![-7.5; 12];
    let args = GroupAdvantage {
        reward: View::strided(&data, &[4], &[3]).unwrap(),
        offsets: (&offsets).into(),
        length: None,
        settings: GroupSettings::default(),
        advantage: ViewMut::strided(&mut out, &[4], &[3]).unwrap(),
        groups: None,
    };
    group_advantage(device, args).unwrap();
    let want = run(&picked, &offsets, &[1; 4], GroupSettings::default()).0;
    assert_eq!(out.iter().step_by(3).copied().collect::<Vec<_>>(), want);
    assert!((0..12).filter(|i| i % 3 != 0).all(|i| out[i] == -7.5));
}

/// f32 results are the f64 results on the same inputs, rounded once.
#[test]
fn f32_rounds_once() {
    for executor in executors() {
        f32_on(&executor.device);
    }
}

fn f32_on(device: &Device) {
    let reward: Vec<f32> = normals(6, 40, 2.0).iter().map(|&r| r as f32).collect();
    let wide: Vec<f64> = reward.iter().map(|&r| r as f64).collect();
    let offsets = vec![0i64, 7, 40];
    for scale in SCALES {
        let s = settings(Baseline::LeaveOneOut, scale);
        let mut advantage = vec![f32::NAN; 40];
        let args = GroupAdvantage {
            reward: (&reward).into(),
            offsets: (&offsets).into(),
            length: None,
            settings: s,
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(device, args).unwrap();
        let want: Vec<f32> =
            run(&wide, &offsets, &[1; 40], s).0.iter().map(|&a| a as f32).collect();
        assert_eq!(advantage, want, "{scale:?}");
    }
}

#[test]
fn group_advantage_is_one_launch() {
    let driver = std::sync::Arc::new(gradus::device::EmuDriver::new());
    let device = Device::gpu(driver.clone()).unwrap();
    for scale in SCALES {
        let (reward, offsets, mut advantage) = ([1.0f32, 0.0, 2.0], [0i64, 2, 3], [0f32; 3]);
        group_advantage(
            &device,
            GroupAdvantage {
                reward: reward[..].into(),
                offsets: offsets[..].into(),
                length: None,
                settings: settings(Baseline::Mean, scale),
                advantage: advantage[..].as_mut().into(),
                groups: None,
            },
        )
        .unwrap();
        assert_eq!(driver.take_launches().len(), 1, "{scale:?}");
    }
}

#[test]
fn the_spread_of_a_batch_takes_one_launch() {
    let run = |device: &Device, packed: &Packed<f32>| {
        let mut advantage = vec![f32::NAN; packed.mask.len()];
        let args = GroupAdvantage {
            reward: (&packed.reward).into(),
            offsets: (&packed.cu_seqlens).into(),
            length: None,
            settings: GroupSettings { scale: Scale::BatchStd, ..GroupSettings::default() },
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(device, args).unwrap();
    };
    assert!(counted(run).iter().all(|&(launches, _)| launches == 1));
}
