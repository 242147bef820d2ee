//! Pair losses: values against the papers' formulas written out, gradients by central differences,
//! the identities between losses, extreme inputs, bad input.

use crate::common::devices::{close, on_all};
use crate::common::{check_gradient, max_rel, normals};
use gradus::ops::PreferenceKind as Kind;
use gradus::ops::PreferenceScore as Score;
use gradus::ops::{KtoLoss, Pair, PreferenceLoss, kto_loss, preference_loss};
use gradus::{Device, View};

const KINDS: [Kind; 13] = [
    Kind::Sigmoid { label_smoothing: 0.0, margin: 0.0 },
    Kind::Sigmoid { label_smoothing: 0.1, margin: 0.0 },
    Kind::Sigmoid { label_smoothing: 0.0, margin: 0.5 },
    Kind::Hinge,
    Kind::Ipo,
    Kind::Robust { label_smoothing: 0.2 },
    Kind::Exo { label_smoothing: 0.05 },
    Kind::Nca,
    Kind::Bco { reference_point: 0.3 },
    Kind::SppoHard,
    Kind::ApoZero,
    Kind::ApoDown,
    Kind::Discopop { temperature: 0.05 },
];

const SCORES: [Score; 4] =
    [Score::ReverseKl, Score::ForwardKl, Score::JensenShannon, Score::Alpha(0.5)];

/// Everything `preference_loss` reads, owned.
#[derive(Clone)]
struct Pairs {
    logp: Pair<Vec<f64>>,
    reference: Option<Pair<Vec<f64>>>,
    length: Option<Pair<Vec<i64>>>,
    weight: Option<Vec<f64>>,
    kind: Kind,
    score: Score,
    beta: f64,
    likelihood: f64,
}

struct Output {
    loss: Vec<f64>,
    dlogp: Pair<Vec<f64>>,
    reward: Pair<Vec<f64>>,
    total: f64,
}

impl Pairs {
    fn random(seed: u64, n: usize, kind: Kind, score: Score) -> Pairs {
        let negative = |seed, size: f64| -> Vec<f64> {
            normals(seed, n, size).iter().map(|x| -x.abs() - 0.2).collect()
        };
        let near = |x: &[f64], seed| -> Vec<f64> {
            x.iter().zip(normals(seed, n, 1.0)).map(|(x, e)| x + e).collect()
        };
        let logp = Pair { chosen: negative(seed, 6.0), rejected: negative(seed + 1, 6.0) };
        let reference =
            Pair { chosen: near(&logp.chosen, seed + 2), rejected: near(&logp.rejected, seed + 3) };
        Pairs {
            logp,
            reference: Some(reference),
            length: None,
            weight: Some(normals(seed + 4, n, 1.0)),
            kind,
            score,
            beta: 0.4,
            likelihood: 0.0,
        }
    }

    fn try_run(&self, device: &Device) -> gradus::Result<Output> {
        let nan = || vec![f64::NAN; self.logp.chosen.len()];
        let (mut loss, mut total) = (nan(), vec![f64::NAN]);
        let (mut d_chosen, mut d_rejected) = (nan(), nan());
        let (mut r_chosen, mut r_rejected) = (nan(), nan());
        let args = PreferenceLoss {
            logp: view(&self.logp),
            reference: self.reference.as_ref().map(view),
            length: self.length.as_ref().map(view),
            kind: self.kind,
            score: self.score,
            beta: self.beta,
            likelihood: self.likelihood,
            weight: self.weight.as_ref().map(View::from),
            loss: (&mut loss).into(),
            dlogp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
            reward: Some(Pair {
                chosen: (&mut r_chosen).into(),
                rejected: (&mut r_rejected).into(),
            }),
            total: Some((&mut total).into()),
        };
        preference_loss(device, args)?;
        let dlogp = Pair { chosen: d_chosen, rejected: d_rejected };
        let reward = Pair { chosen: r_chosen, rejected: r_rejected };
        Ok(Output { loss, dlogp, reward, total: total[0] })
    }

    /// On every executor; the CPU's result is returned.
    fn run(&self) -> Output {
        on_all(
            |device| self.try_run(device).unwrap(),
            |name, cpu, gpu| {
                let name = format!("{name} {:?} {:?}", self.kind, self.score);
                close(&name, &cpu.loss, &gpu.loss, 1e-12, 1.0);
                close(&name, &[cpu.total], &[gpu.total], 1e-12, 1.0);
                let pairs = [(&cpu.dlogp, &gpu.dlogp), (&cpu.reward, &gpu.reward)];
                for (want, got) in pairs {
                    close(&name, &want.chosen, &got.chosen, 1e-12, 0.1);
                    close(&name, &want.rejected, &got.rejected, 1e-12, 0.1);
                }
            },
        )
    }

    /// Chosen and rejected log-probs as one vector, for the gradient check.
    fn flat(&self) -> Vec<f64> {
        [self.logp.chosen.clone(), self.logp.rejected.clone()].concat()
    }

    fn at(&self, flat: &[f64]) -> Pairs {
        let (chosen, rejected) = flat.split_at(flat.len() / 2);
        let logp = Pair { chosen: chosen.to_vec(), rejected: rejected.to_vec() };
        Pairs { logp, ..self.clone() }
    }

    fn gradient_error(&self) -> f64 {
        let out = self.run();
        let gradient = [out.dlogp.chosen, out.dlogp.rejected].concat();
        check_gradient(|x| self.at(x).run().total, &self.flat(), &gradient, 1e-5)
    }
}

fn view<T: gradus::dtype::Element>(pair: &Pair<Vec<T>>) -> Pair<View<'_, T>> {
    Pair { chosen: (&pair.chosen).into(), rejected: (&pair.rejected).into() }
}

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A score as the paper prints it.
fn naive_score(score: Score, a: f64) -> f64 {
    match score {
        Score::ReverseKl => a,
        Score::ForwardKl => 1.0 - (-a).exp(),
        Score::JensenShannon => 2f64.ln() + sigma(a).ln(),
        Score::Alpha(alpha) => (((alpha - 1.0) * a).exp() - 1.0) / (alpha - 1.0),
    }
}

/// A loss as the paper prints it.
fn naive_loss(kind: Kind, beta: f64, w: f64, l: f64) -> f64 {
    let d = beta * (w - l);
    match kind {
        Kind::Sigmoid { label_smoothing: e, margin } => {
            -(1.0 - e) * sigma(d - margin).ln() - e * sigma(margin - d).ln()
        }
        Kind::Hinge => (1.0 - d).max(0.0),
        Kind::Ipo => (w - l - 1.0 / (2.0 * beta)).powi(2),
        Kind::Robust { label_smoothing: e } => {
            (-(1.0 - e) * sigma(d).ln() + e * sigma(-d).ln()) / (1.0 - 2.0 * e)
        }
        Kind::Exo { label_smoothing: e } => {
            sigma(d) * (sigma(d) / (1.0 - e)).ln() + sigma(-d) * (sigma(-d) / e).ln()
        }
        Kind::Nca => {
            -sigma(beta * w).ln() - 0.5 * sigma(-beta * w).ln() - 0.5 * sigma(-beta * l).ln()
        }
        Kind::Bco { reference_point: p } => -sigma(beta * w - p).ln() - sigma(-(beta * l - p)).ln(),
        Kind::SppoHard => (w - 0.5 / beta).powi(2) + (l + 0.5 / beta).powi(2),
        Kind::ApoZero => 1.0 - sigma(beta * w) + sigma(beta * l),
        Kind::ApoDown => sigma(beta * w) + 1.0 - sigma(d),
        Kind::Discopop { temperature } => {
            let m = sigma(d / temperature);
            -(1.0 - m) * sigma(d).ln() + m * (-d).exp()
        }
        Kind::Orpo => {
            let odds = |x: f64| x - (1.0 - x.exp()).ln();
            -beta * sigma(odds(w) - odds(l)).ln()
        }
    }
}

#[test]
fn preference_values_match_the_formulas() {
    for kind in KINDS {
        for score in SCORES {
            let pairs = Pairs::random(10, 9, kind, score);
            let out = pairs.run();
            let reference = pairs.reference.as_ref().unwrap();
            let mut total = 0.0;
            for p in 0..9 {
                let w = naive_score(score, pairs.logp.chosen[p] - reference.chosen[p]);
                let l = naive_score(score, pairs.logp.rejected[p] - reference.rejected[p]);
                let want = naive_loss(kind, pairs.beta, w, l);
                let error = (out.loss[p] - want).abs() / want.abs().max(1.0);
                assert!(error < 1e-12, "{kind:?} {score:?}: {} against {want}", out.loss[p]);
                let rewards = [out.reward.chosen[p], out.reward.rejected[p]];
                assert!(max_rel(&rewards, &[pairs.beta * w, pairs.beta * l], 1.0) < 1e-12);
                total += pairs.weight.as_ref().unwrap()[p] * want;
            }
            assert!((out.total - total).abs() < 1e-10 * total.abs().max(1.0), "{kind:?}");
        }
    }
}

#[test]
fn preference_gradients_match_central_differences() {
    for kind in KINDS {
        for score in SCORES {
            let worst = Pairs::random(20, 9, kind, score).gradient_error();
            assert!(worst < 1e-6, "{kind:?} {score:?}: {worst:e}");
        }
        let mut means = Pairs::random(30, 5, kind, Score::ReverseKl);
        means.length = Some(Pair { chosen: vec![3, 1, 7, 2, 4], rejected: vec![1, 5, 2, 2, 9] });
        means.likelihood = 0.3;
        let worst = means.gradient_error();
        assert!(worst < 1e-6, "{kind:?} with lengths and likelihood: {worst:e}");
    }
}

#[test]
fn orpo_matches_the_formula_and_survives_certainty() {
    let mut pairs = Pairs::random(40, 4, Kind::Orpo, Score::ReverseKl);
    pairs.reference = None;
    pairs.length = Some(Pair { chosen: vec![3, 1, 7, 2], rejected: vec![1, 5, 2, 9] });
    pairs.likelihood = 1.0;
    let out = pairs.run();
    for p in 0..4 {
        let length = pairs.length.as_ref().unwrap();
        let w = pairs.logp.chosen[p] / length.chosen[p] as f64;
        let l = pairs.logp.rejected[p] / length.rejected[p] as f64;
        let want = naive_loss(Kind::Orpo, pairs.beta, w, l) - w;
        assert!((out.loss[p] - want).abs() < 1e-12, "{} against {want}", out.loss[p]);
    }
    let worst = pairs.gradient_error();
    assert!(worst < 1e-6, "{worst:e}");

    pairs.logp = Pair { chosen: vec![0.0; 4], rejected: vec![0.0, -1e4, -1e-12, -3.0] };
    let out = pairs.run();
    let values = [out.loss, out.dlogp.chosen, out.dlogp.rejected].concat();
    assert!(values.iter().all(|x| x.is_finite()), "{values:?}");
}

#[test]
fn preference_losses_reduce_to_each_other() {
    let base = Pairs::random(50, 6, KINDS[0], Score::ReverseKl);
    let dpo = base.run();
    let same = |other: Pairs, name: &str| {
        let out = other.run();
        assert!(max_rel(&out.loss, &dpo.loss, 1e-9) < 1e-13, "{name}");
        assert!(max_rel(&out.dlogp.chosen, &dpo.dlogp.chosen, 1e-9) < 1e-13, "{name}");
    };
    same(Pairs { kind: Kind::Robust { label_smoothing: 0.0 }, ..base.clone() }, "robust, 0");
    same(Pairs { score: Score::Alpha(1.0), ..base.clone() }, "alpha = 1");
    let ones = Pair { chosen: vec![1; 6], rejected: vec![1; 6] };
    same(Pairs { length: Some(ones), ..base.clone() }, "lengths of 1");

    let forward = Pairs { score: Score::ForwardKl, ..base.clone() }.run();
    let alpha = Pairs { score: Score::Alpha(0.0), ..base.clone() }.run();
    assert_eq!(forward.loss, alpha.loss);
    let near = Pairs { score: Score::Alpha(1.0 + 1e-9), ..base.clone() }.run();
    assert!(max_rel(&near.loss, &dpo.loss, 1e-9) < 1e-6, "alpha goes to 1 without a jump");

    // At π = π_ref every score is 0: log 2 and slopes ∓β/2, times the score's own slope there.
    let start = Pairs { reference: Some(base.logp.clone()), weight: None, ..base.clone() };
    for score in SCORES {
        let out = Pairs { score, ..start.clone() }.run();
        assert!(out.loss.iter().all(|&l| (l - 2f64.ln()).abs() < 1e-15));
        let slope = if score == Score::JensenShannon { 0.5 } else { 1.0 };
        assert!(out.dlogp.chosen.iter().all(|&d| (d + slope * 0.2 / 6.0).abs() < 1e-15));
    }
}

#[test]
fn preference_losses_stay_finite_far_out() {
    for kind in KINDS {
        for score in SCORES {
            let mut pairs = Pairs::random(60, 4, kind, score);
            let far = vec![-9e3, 1e4, -1e4, 0.0];
            pairs.logp = Pair { chosen: far.clone(), rejected: far.iter().map(|x| -x).collect() };
            pairs.reference = None;
            let out = pairs.run();
            let values = [out.loss, out.dlogp.chosen, out.dlogp.rejected].concat();
            assert!(values.iter().all(|x| x.is_finite()), "{kind:?} {score:?}: {values:?}");
        }
    }
}

#[test]
fn an_empty_completion_has_mean_and_gradient_zero() {
    let mut pairs = Pairs::random(70, 1, KINDS[0], Score::ReverseKl);
    pairs.length = Some(Pair { chosen: vec![0], rejected: vec![4] });
    let out = pairs.run();
    assert_eq!(out.dlogp.chosen, [0.0]);
    assert_eq!(out.reward.chosen, [0.0]);
    assert!(out.dlogp.rejected[0].abs() > 0.0);
}

#[test]
fn kto_matches_the_formula_and_its_gradient() {
    let (logp, reference) = (normals(80, 8, 3.0), normals(81, 8, 3.0));
    let desirable = vec![1u8, 0, 1, 1, 0, 0, 1, 0];
    let weight = normals(82, 8, 1.0);
    let run_on = |device: &Device, logp: &[f64]| {
        let (mut loss, mut dlogp) = (vec![f64::NAN; 8], vec![f64::NAN; 8]);
        let mut total = vec![f64::NAN];
        let args = KtoLoss {
            logp: logp.into(),
            reference: (&reference).into(),
            desirable: (&desirable).into(),
            beta: 0.3,
            kl: 0.7,
            desirable_weight: 1.0,
            undesirable_weight: 1.33,
            weight: Some((&weight).into()),
            loss: (&mut loss).into(),
            dlogp: (&mut dlogp).into(),
            total: Some((&mut total).into()),
        };
        kto_loss(device, args).unwrap();
        (loss, dlogp, total[0])
    };
    let run = |logp: &[f64]| {
        on_all(
            |device| run_on(device, logp),
            |name, cpu, gpu| {
                close(name, &cpu.0, &gpu.0, 1e-13, 1e-3);
                close(name, &cpu.1, &gpu.1, 1e-13, 1e-3);
                close(name, &[cpu.2], &[gpu.2], 1e-13, 1.0);
            },
        )
    };
    let (loss, dlogp, _) = run(&logp);
    for i in 0..8 {
        let z = 0.3 * (logp[i] - reference[i] - 0.7);
        let want = if desirable[i] == 1 { 1.0 - sigma(z) } else { 1.33 * (1.0 - sigma(-z)) };
        assert!((loss[i] - want).abs() < 1e-14);
    }
    let worst = check_gradient(|x| run(x).2, &logp, &dlogp, 1e-5);
    assert!(worst < 1e-7, "{worst:e}");
}
