//! Losses over groups: CoPG, PRDP, β-MML and InfoNCE against their definitions, gradients by central
//! differences, the identities between them, and invariances.

use crate::common::devices::{close, on_all};
use crate::common::{check_gradient, max_rel, normals};
use gradus::ops::{
    BetaMmlLoss, CopgLoss, GroupAdvantage, GroupBaseline, GroupScale, GroupSettings, InfoNceLoss,
    Pair, PrdpLoss, PreferenceKind, PreferenceLoss, PreferenceScore, beta_mml_loss, copg_loss,
    group_advantage, info_nce_loss, pairs_by_reward, prdp_loss, preference_loss,
};
use gradus::{Device, View, ViewMut};

const BETA: f64 = 0.4;

/// Losses, gradient and total of a loss over groups.
type Terms = (Vec<f64>, Vec<f64>, f64);

/// Two executors gave the same up to a few roundings of sums.
fn agree(name: &str, cpu: &Terms, gpu: &Terms) {
    let size = cpu.1.iter().fold(1e-3f64, |m, d| m.max(d.abs()));
    close(name, &cpu.0, &gpu.0, 1e-12, 1.0);
    close(name, &cpu.1, &gpu.1, 1e-11, size);
    close(name, &[cpu.2], &[gpu.2], 1e-12, 1.0);
}

fn copg(logp: &[f64], reference: &[f64], reward: &[f64], offsets: &[i64]) -> Terms {
    on_all(|device| copg_on(device, logp, reference, reward, offsets), agree)
}

fn copg_on(
    device: &Device,
    logp: &[f64],
    reference: &[f64],
    reward: &[f64],
    offsets: &[i64],
) -> Terms {
    let (mut loss, mut dlogp) = (vec![f64::NAN; offsets.len() - 1], vec![f64::NAN; logp.len()]);
    let mut total = vec![f64::NAN];
    let weight = vec![1.0; loss.len()];
    let args = CopgLoss {
        logp: logp.into(),
        reference: Some(reference.into()),
        reward: reward.into(),
        offsets: offsets.into(),
        beta: BETA,
        weight: Some((&weight).into()),
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: Some((&mut total).into()),
    };
    copg_loss(device, args).unwrap();
    (loss, dlogp, total[0])
}

#[test]
fn copg_is_the_mean_over_ordered_pairs() {
    let offsets = [0i64, 4, 4, 5, 11];
    let (logp, reference) = (normals(1, 11, 3.0), normals(2, 11, 3.0));
    let reward = normals(3, 11, 2.0);
    let (loss, dlogp, total) = copg(&logp, &reference, &reward, &offsets);
    let r: Vec<f64> = (0..11).map(|i| reward[i] - BETA * (logp[i] - reference[i])).collect();
    for (g, ends) in offsets.windows(2).enumerate() {
        let members: Vec<usize> = (ends[0] as usize..ends[1] as usize).collect();
        let (mut sum, mut pairs) = (0.0, 0.0f64);
        for &i in &members {
            for &j in members.iter().filter(|&&j| j != i) {
                sum += (r[i] - r[j]).powi(2) / (2.0 * BETA);
                pairs += 1.0;
            }
        }
        let want = sum / pairs.max(1.0);
        assert!((loss[g] - want).abs() < 1e-12 * want.max(1.0), "{} against {want}", loss[g]);
        let slopes: f64 = members.iter().map(|&i| dlogp[i]).sum();
        assert!(slopes.abs() < 1e-12, "the gradient of a group sums to {slopes}");
    }
    assert!((total - loss.iter().sum::<f64>()).abs() < 1e-12);
    assert_eq!(dlogp[4], 0.0, "a group of one compares nothing");
    let total = |x: &[f64]| copg(x, &reference, &reward, &offsets).2;
    assert!(check_gradient(total, &logp, &dlogp, 1e-4) < 1e-7);
}

/// The gradient is −2/K times the leave-one-out advantage (RLOO) of the regularized reward; for a pair
/// that is minus the difference of the two.
#[test]
fn copg_is_leave_one_out_on_the_regularized_reward() {
    let offsets = vec![0i64, 2, 7];
    let (logp, reference) = (normals(4, 7, 3.0), normals(5, 7, 3.0));
    let reward = normals(6, 7, 2.0);
    let dlogp = copg(&logp, &reference, &reward, &offsets).1;
    let regularized: Vec<f64> =
        (0..7).map(|i| reward[i] - BETA * (logp[i] - reference[i])).collect();
    let mut advantage = vec![0.0; 7];
    let settings = GroupSettings {
        baseline: GroupBaseline::LeaveOneOut,
        scale: GroupScale::None,
        ..GroupSettings::default()
    };
    let args = GroupAdvantage {
        reward: (&regularized).into(),
        offsets: (&offsets).into(),
        length: None,
        settings,
        advantage: (&mut advantage).into(),
        groups: None,
    };
    group_advantage(&Device::Cpu, args).unwrap();
    let want: Vec<f64> =
        (0..7).map(|i| -2.0 / if i < 2 { 2.0 } else { 5.0 } * advantage[i]).collect();
    assert!(max_rel(&dlogp, &want, 1e-3) < 1e-13);
    let pair = regularized[0] - regularized[1];
    assert!((dlogp[0] + pair).abs() < 1e-13 && (dlogp[1] - pair).abs() < 1e-13);
}

#[test]
fn copg_vanishes_at_its_optimum_for_any_samples() {
    let (reward, reference) = (normals(7, 6, 2.0), normals(8, 6, 1.0));
    // log π = log π_ref + R/β − log Z
    let logp: Vec<f64> = (0..6).map(|i| reference[i] + reward[i] / BETA - 3.7).collect();
    let (loss, dlogp, _) = copg(&logp, &reference, &reward, &[0, 6]);
    assert!(loss[0] < 1e-28, "{}", loss[0]);
    assert!(dlogp.iter().all(|d| d.abs() < 1e-14), "{dlogp:?}");
}

#[test]
fn copg_ignores_a_shift_of_rewards_and_abstaining_samples() {
    // Multiples of 1/8 with β·logp exact, so that the shift is exact and so must be the result.
    let dyadic =
        |seed| -> Vec<f64> { normals(seed, 5, 16.0).iter().map(|x| x.round() / 8.0).collect() };
    let (logp, reference) = (vec![0.0; 5], vec![0.0; 5]);
    let reward = dyadic(9);
    let shifted: Vec<f64> = reward.iter().map(|r| r + 1024.0).collect();
    let base = copg(&logp, &reference, &reward, &[0, 5]);
    assert_eq!(base, copg(&logp, &reference, &shifted, &[0, 5]));

    let with_nan = [&reward[..2], &[f64::NAN], &reward[2..]].concat();
    let (loss, dlogp, _) = copg(&[0.0; 6], &[0.0; 6], &with_nan, &[0, 6]);
    assert_eq!(loss, base.0);
    assert_eq!([&dlogp[..2], &dlogp[3..]].concat(), base.1);
    assert_eq!(dlogp[2], 0.0);
}

/// With rewards ±¼ a pair's CoPG loss is β/2 times IPO's, gradient included.
#[test]
fn copg_with_a_half_reward_gap_is_ipo() {
    let (logp, reference) = (normals(10, 2, 3.0), normals(11, 2, 3.0));
    let (loss, dlogp, _) = copg(&logp, &reference, &[0.25, -0.25], &[0, 2]);
    let one = |x: f64| vec![x];
    let (w, l) = (one(logp[0]), one(logp[1]));
    let (ref_w, ref_l) = (one(reference[0]), one(reference[1]));
    let (mut ipo, mut d_w, mut d_l) = (one(0.0), one(0.0), one(0.0));
    let args = PreferenceLoss {
        logp: Pair { chosen: (&w).into(), rejected: (&l).into() },
        reference: Some(Pair { chosen: (&ref_w).into(), rejected: (&ref_l).into() }),
        length: None,
        kind: PreferenceKind::Ipo,
        score: PreferenceScore::ReverseKl,
        beta: BETA,
        likelihood: 0.0,
        weight: None,
        loss: (&mut ipo).into(),
        dlogp: Pair { chosen: (&mut d_w).into(), rejected: (&mut d_l).into() },
        reward: None,
        total: None,
    };
    preference_loss(&Device::Cpu, args).unwrap();
    assert!((loss[0] - BETA / 2.0 * ipo[0]).abs() < 1e-12 * loss[0]);
    let want = [BETA / 2.0 * d_w[0], BETA / 2.0 * d_l[0]];
    assert!(max_rel(&dlogp, &want, 1e-6) < 1e-12);
}

/// Packed tokens with a mask for PRDP.
struct Packed {
    cu_seqlens: Vec<i64>,
    mask: Vec<u8>,
    old: Vec<f64>,
    reference: Vec<f64>,
    reward: Vec<f64>,
    pairs: Vec<i64>,
    clip: f64,
}

impl Packed {
    fn random(clip: f64) -> (Packed, Vec<f64>) {
        let cu_seqlens = vec![0i64, 3, 3, 8, 10, 14];
        let old = normals(20, 14, 1.0);
        let logp = old.iter().zip(normals(21, 14, 0.3)).map(|(o, e)| o + e).collect();
        let reward = normals(23, 5, 1.0);
        let pairs = pairs_by_reward(&reward, &[0, 3, 5]).unwrap();
        assert_eq!(pairs.len(), 2 * (3 + 1));
        let mut mask = vec![1u8; 14];
        (mask[1], mask[9]) = (0, 0);
        let reference = normals(22, 14, 1.0);
        (Packed { cu_seqlens, mask, old, reference, reward, pairs, clip }, logp)
    }

    fn run(&self, logp: &[f64]) -> Terms {
        on_all(|device| self.run_on(device, logp), agree)
    }

    fn run_on(&self, device: &Device, logp: &[f64]) -> Terms {
        let pairs = self.pairs.len() / 2;
        let (mut loss, mut dlogp) = (vec![f64::NAN; pairs], vec![f64::NAN; logp.len()]);
        let mut total = vec![f64::NAN];
        let weight = vec![1.0; pairs];
        let args = PrdpLoss {
            logp: logp.into(),
            old: (&self.old).into(),
            reference: (&self.reference).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            reward: (&self.reward).into(),
            pairs: View::rows_of(&self.pairs, 2).unwrap(),
            beta: BETA,
            clip: self.clip,
            weight: Some((&weight).into()),
            loss: (&mut loss).into(),
            dlogp: (&mut dlogp).into(),
            total: Some((&mut total).into()),
        };
        prdp_loss(device, args).unwrap();
        (loss, dlogp, total[0])
    }

    /// Σ_t f(t) over the counted tokens of sequence i.
    fn sum(&self, i: usize, f: impl Fn(usize) -> f64) -> f64 {
        let range = self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize;
        range.filter(|&t| self.mask[t] != 0).map(f).sum()
    }
}

#[test]
fn prdp_matches_its_definition_and_gradient() {
    for clip in [0.1, 0.35, f64::INFINITY] {
        let (packed, logp) = Packed::random(clip);
        let (loss, dlogp, _) = packed.run(&logp);
        let mut clamped_branch = 0;
        for (p, pair) in packed.pairs.chunks(2).enumerate() {
            let (i, j) = (pair[0] as usize, pair[1] as usize);
            let ratio = |t: usize| logp[t] - packed.reference[t];
            let bounded = |t: usize| {
                let center = packed.old[t] - packed.reference[t];
                ratio(t).clamp(center - clip, center + clip)
            };
            let target = (packed.reward[i] - packed.reward[j]) / BETA;
            let free = packed.sum(i, ratio) - packed.sum(j, ratio) - target;
            let held = packed.sum(i, bounded) - packed.sum(j, bounded) - target;
            clamped_branch += (held * held > free * free + 1e-9) as usize;
            let want = (free * free).max(held * held);
            assert!((loss[p] - want).abs() < 1e-12 * want.max(1.0), "{} against {want}", loss[p]);
        }
        assert_eq!(clamped_branch > 0, clip.is_finite(), "both branches must be exercised");
        assert_eq!([dlogp[1], dlogp[9]], [0.0, 0.0]);
        let (mask, keep) = (&packed.mask, |x: &[f64]| packed.run(x).2);
        assert!(mask.iter().filter(|&&m| m == 0).count() == 2);
        let worst = check_gradient(keep, &logp, &dlogp, 1e-6);
        assert!(worst < 1e-6, "clip {clip}: {worst:e}");
    }
}

/// Without a bound a pair's PRDP loss is 2/β times its CoPG loss on sequence sums.
#[test]
fn prdp_without_a_bound_is_copg() {
    let (packed, logp) = Packed::random(f64::INFINITY);
    let (loss, _, _) = packed.run(&logp);
    for (p, pair) in packed.pairs.chunks(2).enumerate() {
        let pair = [pair[0] as usize, pair[1] as usize];
        let sums = pair.map(|i| packed.sum(i, |t| logp[t]));
        let reference = pair.map(|i| packed.sum(i, |t| packed.reference[t]));
        let reward = pair.map(|i| packed.reward[i]);
        let want = 2.0 / BETA * copg(&sums, &reference, &reward, &[0, 2]).0[0];
        assert!((loss[p] - want).abs() < 1e-12 * want.max(1.0));
    }
}

fn mml(logp: &[f64], offsets: &[i64], beta: f64) -> Terms {
    on_all(|device| mml_on(device, logp, offsets, beta), agree)
}

fn mml_on(device: &Device, logp: &[f64], offsets: &[i64], beta: f64) -> Terms {
    let (mut loss, mut dlogp) = (vec![f64::NAN; offsets.len() - 1], vec![f64::NAN; logp.len()]);
    let mut total = vec![f64::NAN];
    let args = BetaMmlLoss {
        logp: logp.into(),
        offsets: offsets.into(),
        beta,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: Some((&mut total).into()),
    };
    beta_mml_loss(device, args).unwrap();
    (loss, dlogp, total[0])
}

#[test]
fn beta_mml_matches_its_definition_and_limits() {
    let offsets = [0i64, 3, 3, 4, 8];
    let logp = normals(30, 8, 2.0);
    let (loss, dlogp, _) = mml(&logp, &offsets, 0.25);
    for (g, ends) in offsets.windows(2).enumerate() {
        let group = &logp[ends[0] as usize..ends[1] as usize];
        let sum: f64 = group.iter().map(|x| (0.25 * x).exp()).sum();
        let want = if group.is_empty() { 0.0 } else { -sum.ln() / 0.25 };
        assert!((loss[g] - want).abs() < 1e-12, "{} against {want}", loss[g]);
        let slopes: f64 = dlogp[ends[0] as usize..ends[1] as usize].iter().sum();
        let want = if group.is_empty() { 0.0 } else { -0.25 }; // −1 over four groups
        assert!((slopes - want).abs() < 1e-15);
    }
    assert!(check_gradient(|x| mml(x, &offsets, 0.25).2, &logp, &dlogp, 1e-5) < 1e-8);

    let (loss, dlogp, _) = mml(&[-12.5], &[0, 1], 0.7);
    assert_eq!((loss[0], dlogp[0]), (12.5, -1.0), "one solution is cross-entropy");
    let dlogp = mml(&logp[..4], &[0, 4], 1e-9).1;
    assert!(dlogp.iter().all(|d| (d + 0.25).abs() < 1e-8), "towards β = 0 all weigh the same");
    let (loss, dlogp, _) = mml(&[-20_000.0, -20_001.0], &[0, 2], 1.0);
    assert!((loss[0] - (20_000.0 - (1.0 + (-1f64).exp()).ln())).abs() < 1e-10);
    assert!((dlogp[0] + 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-15);
}

fn nce(logp: &[f64], length: Option<&Vec<i64>>, n: usize) -> (f64, Vec<f64>) {
    on_all(
        |device| nce_on(device, logp, length, n),
        |name, cpu, gpu| {
            close(name, &[cpu.0], &[gpu.0], 1e-13, 1.0);
            close(name, &cpu.1, &gpu.1, 1e-12, 1e-2);
        },
    )
}

fn nce_on(device: &Device, logp: &[f64], length: Option<&Vec<i64>>, n: usize) -> (f64, Vec<f64>) {
    let (mut loss, mut dlogp) = (vec![f64::NAN], vec![f64::NAN; n * n]);
    let args = InfoNceLoss {
        logp: View::new(logp, &[n as i64; 2]).unwrap(),
        length: length.map(View::from),
        loss: (&mut loss).into(),
        dlogp: ViewMut::new(&mut dlogp, &[n as i64; 2]).unwrap(),
    };
    info_nce_loss(device, args).unwrap();
    (loss[0], dlogp)
}

#[test]
fn info_nce_matches_its_definition_and_gradient() {
    let n = 5;
    let logp = normals(40, n * n, 6.0);
    let length = vec![3i64, 1, 4, 2, 7];
    let (loss, dlogp) = nce(&logp, Some(&length), n);
    let score = |i: usize, j: usize| logp[i * n + j] / length[j] as f64;
    let mut want = 0.0;
    for i in 0..n {
        let row: f64 = (0..n).map(|j| score(i, j).exp()).sum();
        let col: f64 = (0..n).map(|j| score(j, i).exp()).sum();
        want -= ((score(i, i).exp() / row).ln() + (score(i, i).exp() / col).ln()) / (2 * n) as f64;
    }
    assert!((loss - want).abs() < 1e-13, "{loss} against {want}");
    assert!(check_gradient(|x| nce(x, Some(&length), n).0, &logp, &dlogp, 1e-5) < 1e-7);

    let sum: f64 = nce(&logp, None, n).1.iter().sum();
    assert!(sum.abs() < 1e-15, "the gradient's entries sum to {sum}");
    assert_eq!(nce(&[-7.0], None, 1), (0.0, vec![0.0]));
    assert_eq!(nce(&[], None, 0), (0.0, vec![]));
    let uniform = nce(&[-1.0; 4], None, 2).0;
    assert!((uniform - 2f64.ln()).abs() < 1e-15, "nothing told apart is log n");
}

/// A group's loss and gradient have the same bits alone, in a batch, and for any number of threads.
#[test]
fn group_losses_do_not_depend_on_batch_or_threads() {
    let (groups, size) = (3000, 7);
    let n = groups * size;
    let (logp, reference) = (normals(50, n, 9.0), normals(51, n, 9.0));
    let reward = normals(52, n, 1.0);
    let offsets: Vec<i64> = (0..=groups).map(|g| (g * size) as i64).collect();
    let whole = copg(&logp, &reference, &reward, &offsets);
    for threads in [1, 2, 4, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| copg(&logp, &reference, &reward, &offsets));
        assert_eq!(again, whole, "{threads} threads");
    }
    for g in [0, 17, groups - 1] {
        let range = g * size..(g + 1) * size;
        let alone = copg(
            &logp[range.clone()],
            &reference[range.clone()],
            &reward[range.clone()],
            &[0, size as i64],
        );
        assert_eq!(alone.0[0], whole.0[g]);
        assert_eq!(alone.1, whole.1[range]);
    }
}
