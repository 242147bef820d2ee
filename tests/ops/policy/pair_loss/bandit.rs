//! The off-policy bandit of contrastive policy gradient (Flet-Berliac et al. 2024, arXiv:2406.19185,
//! §5.1): three arms, two samples a pair, each from its own fixed distribution, never from the
//! policy. Only CoPG finds the optimum of E[R] − β·KL(π‖uniform). IPO sees preferences drawn from
//! the rewards by Bradley-Terry.

use gradus::Device;
use gradus::ops::{
    CopgLoss, Pair, PreferenceKind, PreferenceLoss, PreferenceScore, copg_loss, preference_loss,
};
use gradus::rng::{Purpose, Rng};

const REWARD: [f64; 3] = [2.5, 2.0, 1.0];
const FIRST: [f64; 3] = [0.1, 0.2, 0.7];
const SECOND: [f64; 3] = [0.05, 0.05, 0.9];
const BETA: f64 = 0.5;
const BATCH: usize = 512;
const EPOCHS: usize = 400;
const BATCHES: usize = 20;
const REFERENCE: f64 = 1.0 / 3.0;

/// Gradient with respect to log π of both arms of every pair, mean over the batch.
type Loss = fn(pairs: &[Sample], logp: [f64; 3]) -> Vec<[f64; 2]>;

/// Two arms, and which of them was preferred.
#[derive(Clone, Copy)]
struct Sample {
    arms: [usize; 2],
    preferred: usize,
}

fn copg(pairs: &[Sample], logp: [f64; 3]) -> Vec<[f64; 2]> {
    let flat = |f: fn(usize, [f64; 3]) -> f64| -> Vec<f64> {
        pairs.iter().flat_map(|pair| pair.arms).map(|arm| f(arm, logp)).collect()
    };
    let (of_policy, of_reward) = (flat(|arm, logp| logp[arm]), flat(|arm, _| REWARD[arm]));
    let of_reference = flat(|_, _| REFERENCE.ln());
    let offsets: Vec<i64> = (0..=pairs.len()).map(|p| 2 * p as i64).collect();
    let (mut loss, mut dlogp) = (vec![0.0; pairs.len()], vec![0.0; 2 * pairs.len()]);
    let args = CopgLoss {
        logp: (&of_policy).into(),
        reference: Some((&of_reference).into()),
        reward: (&of_reward).into(),
        offsets: (&offsets).into(),
        beta: BETA,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: (&mut dlogp).into(),
        total: None,
    };
    copg_loss(&Device::Cpu, args).unwrap();
    dlogp.chunks(2).map(|d| [d[0], d[1]]).collect()
}

fn ipo(pairs: &[Sample], logp: [f64; 3]) -> Vec<[f64; 2]> {
    let pick = |other: usize| -> Vec<f64> {
        pairs.iter().map(|pair| logp[pair.arms[pair.preferred ^ other]]).collect()
    };
    let (chosen, rejected) = (pick(0), pick(1));
    let reference = vec![REFERENCE.ln(); pairs.len()];
    let zeros = || vec![0.0; pairs.len()];
    let (mut loss, mut d_chosen, mut d_rejected) = (zeros(), zeros(), zeros());
    let args = PreferenceLoss {
        logp: Pair { chosen: (&chosen).into(), rejected: (&rejected).into() },
        reference: Some(Pair { chosen: (&reference).into(), rejected: (&reference).into() }),
        length: None,
        kind: PreferenceKind::Ipo,
        score: PreferenceScore::ReverseKl,
        beta: BETA,
        likelihood: 0.0,
        weight: None,
        loss: (&mut loss).into(),
        dlogp: Pair { chosen: (&mut d_chosen).into(), rejected: (&mut d_rejected).into() },
        reward: None,
        total: None,
    };
    preference_loss(&Device::Cpu, args).unwrap();
    let place = |(p, pair): (usize, &Sample)| match pair.preferred {
        0 => [d_chosen[p], d_rejected[p]],
        _ => [d_rejected[p], d_chosen[p]],
    };
    pairs.iter().enumerate().map(place).collect()
}

/// Policy gradient on the same off-policy samples without baseline or correction: −R_β / B.
fn policy_gradient(pairs: &[Sample], logp: [f64; 3]) -> Vec<[f64; 2]> {
    let slope =
        |arm: usize| -(REWARD[arm] - BETA * (logp[arm] - REFERENCE.ln())) / pairs.len() as f64;
    pairs.iter().map(|pair| pair.arms.map(slope)).collect()
}

fn log_softmax(logits: [f64; 3]) -> [f64; 3] {
    let lse = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
    logits.map(|x| x - lse)
}

/// β·log Σ π_ref·e^{R/β} − (E[R] − β·KL): how far the policy is from the best possible objective.
fn regret(logp: [f64; 3]) -> f64 {
    let best = BETA * REWARD.iter().map(|r| REFERENCE * (r / BETA).exp()).sum::<f64>().ln();
    let terms = (0..3).map(|a| logp[a].exp() * (REWARD[a] - BETA * (logp[a] - REFERENCE.ln())));
    best - terms.sum::<f64>()
}

fn draw(rng: &mut Rng, law: [f64; 3]) -> usize {
    let u = rng.uniform();
    if u < law[0] {
        0
    } else if u < law[0] + law[1] {
        1
    } else {
        2
    }
}

/// Trains a softmax policy from uniform with Adam and returns its log-probs.
fn train(loss: Loss, seed: u64) -> [f64; 3] {
    let mut rng = Rng::new(seed, Purpose::User, [0; 3]);
    let mut sample = || {
        let arms = [draw(&mut rng, FIRST), draw(&mut rng, SECOND)];
        let first_wins = 1.0 / (1.0 + (REWARD[arms[1]] - REWARD[arms[0]]).exp());
        Sample { arms, preferred: (rng.uniform() >= first_wins) as usize }
    };
    let data: Vec<Sample> = (0..BATCH * BATCHES).map(|_| sample()).collect();
    let (mut logits, mut m, mut v) = ([0.0; 3], [0.0; 3], [0.0f64; 3]);
    let mut step = 0;
    for _ in 0..EPOCHS {
        for batch in data.chunks(BATCH) {
            let logp = log_softmax(logits);
            let mut gradient = [0.0; 3];
            for (pair, slopes) in batch.iter().zip(loss(batch, logp)) {
                for (arm, slope) in pair.arms.into_iter().zip(slopes) {
                    for k in 0..3 {
                        gradient[k] += slope * ((k == arm) as u8 as f64 - logp[k].exp());
                    }
                }
            }
            step += 1;
            for k in 0..3 {
                m[k] = 0.9 * m[k] + 0.1 * gradient[k];
                v[k] = 0.999 * v[k] + 0.001 * gradient[k] * gradient[k];
                let m_hat = m[k] / (1.0 - 0.9f64.powi(step));
                let v_hat = v[k] / (1.0 - 0.999f64.powi(step));
                logits[k] -= 1e-3 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
    }
    log_softmax(logits)
}

#[test]
fn only_copg_reaches_the_optimum_off_policy() {
    let start = regret([REFERENCE.ln(); 3]);
    assert!((start - 0.2919).abs() < 1e-3, "regret of the uniform policy: {start}");

    let logp = train(copg, 1);
    let policy = logp.map(f64::exp);
    assert!(regret(logp) < 1e-3, "CoPG: regret {} of {policy:?}", regret(logp));
    for (got, want) in policy.iter().zip([0.705, 0.259, 0.035]) {
        assert!((got - want).abs() < 1e-2, "CoPG: {policy:?}");
    }

    let stalled = regret(train(ipo, 1));
    assert!(stalled > 0.1, "IPO regresses on preferences, not on rewards: regret {stalled}");
    let worse = regret(train(policy_gradient, 1));
    assert!(worse > start, "policy gradient follows the sampling law: regret {worse}");
    println!("regret: start {start:.4}, CoPG {:.6}, IPO {stalled:.4}, PG {worse:.4}", regret(logp));
}
