//! Sequence objectives through the trainer: beside the oracle, and beside each other where papers say
//! that two are one.

use gradus_rft::train::Trainer;
use gradus_rft::train::record::Record;
use gradus_rft::train::sequence;
use gradus_rft::train::step::{Scoring, score_records};

use super::oracle;
use super::steps::{apart, head, moved, sequences, step};
use super::{records, sharpen, trainer, value};

/// The objectives that compare completions by their rewards.
fn of_rewards() -> impl Iterator<Item = &'static str> {
    sequence::NAMES.iter().copied().filter(|name| *name != "info_nce")
}

/// One step of every name from a policy that has left its reference: the loss, and the gradient of the
/// head, are those of the paper.
#[test]
fn a_step_of_every_sequence_objective_is_the_oracles() {
    for name in of_rewards() {
        for beta in [None, Some(0.3)] {
            let mut settings = vec![format!("rl.loss={name}"), "rl.temperature=0.8".into()];
            settings.extend(beta.map(|beta| format!("rl.beta={beta}")));
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let (mut trainer, records, reference) = moved(&settings, 0.0);
            let beta = trainer.recipe().unwrap().sequence.unwrap().beta;
            let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
            let logp = |head: &[f64]| -> Vec<Vec<f64>> {
                let of = |s| oracle::scores(s, head, 0.8).iter().map(|x| x.0).collect();
                batch.iter().map(of).collect()
            };
            let kl = |(s, l): (&oracle::Sequence, &Vec<f64>)| {
                l.iter().zip(&s.tokens).map(|(l, t)| l - t.reference).sum::<f64>()
            };
            let now = logp(&at);
            let kl = (batch.iter().zip(&now).map(kl).sum::<f64>() / batch.len() as f64).max(0.0);
            let objective = |head: &[f64]| {
                oracle::Compared { batch: &batch, logp: logp(head), beta, kl }.loss(name)
            };
            let (loss, slope) = step(&mut trainer, records);
            let want = objective(&at);
            let off = (loss - want).abs() / want.abs().max(0.1);
            assert!(off <= 2e-5, "{name} {beta}: {loss} {want}");
            let want = oracle::gradient(&at, objective);
            if want.iter().all(|&slope| slope == 0.0) {
                assert_eq!(*name, *"hinge", "pairs that are apart enough");
                assert!(slope.iter().all(|&slope| slope == 0.0), "{name}: {slope:?}");
                continue;
            }
            let off = apart(&slope, &want);
            assert!(off <= 2e-4, "{name} {beta}: the gradient is off by {off:e} of its largest");
        }
    }
}

/// Groups of two completions with these rewards, at the reference.
fn pairs(settings: &[&str], rewards: [f32; 4]) -> (Trainer, Vec<Record>) {
    let mut trainer = trainer(settings);
    sharpen(&mut trainer, 6.0);
    let mut records = records(&trainer, 0.0);
    records.remove(5);
    records.remove(2);
    records.iter_mut().zip(rewards).for_each(|(record, reward)| record.reward = reward);
    (trainer, records)
}

fn slope(settings: &[&str], rewards: [f32; 4]) -> Vec<f64> {
    let (mut trainer, records) = pairs(settings, rewards);
    step(&mut trainer, records).1
}

fn times(factor: f64, slope: &[f64]) -> Vec<f64> {
    slope.iter().map(|x| factor * x).collect()
}

/// Sums of a few f32 products in two orders.
const SAME: f64 = 2e-5;

#[test]
fn objectives_are_each_other_where_papers_say_so() {
    let rewards = [1.0, 0.25, -0.5, 2.0];
    let copg = slope(&["rl.loss=copg", "rl.beta=0.4"], rewards);
    let rloo = slope(&["rl.loss=trl/rloo", "rl.beta=0"], rewards);
    assert!(apart(&copg, &times(2.0, &rloo)) < SAME, "a pair is compared by leaving one out");
    let prdp = slope(&["rl.loss=prdp", "rl.beta=0.4", "rl.clip_high=1e6"], rewards);
    assert!(apart(&prdp, &times(2.0 / 0.4, &copg)) < SAME, "PRDP without its bound");
    let shifted = slope(&["rl.loss=copg", "rl.beta=0.4"], rewards.map(|r| r + 8.0));
    assert!(apart(&shifted, &copg) < SAME, "a constant reward compares nothing");
    let quarters = [0.25, -0.25, -0.25, 0.25];
    let copg = slope(&["rl.loss=copg", "rl.beta=0.4"], quarters);
    let ipo = slope(&["rl.loss=ipo", "rl.beta=0.4"], quarters);
    assert!(apart(&copg, &times(0.4 / 2.0, &ipo)) < SAME, "IPO is CoPG of rewards ±1/4");
    let robust = slope(&["rl.loss=robust", "rl.label_smoothing=0"], rewards);
    assert!(apart(&robust, &slope(&["rl.loss=dpo"], rewards)) < SAME, "no flipped label");
}

/// One right completion for each prompt: the marginal likelihood is the likelihood, and cross-entropy
/// on what is right is REINFORCE with advantage 1.
#[test]
fn one_solution_is_cross_entropy() {
    let one = |settings: &[&str], right: &[usize]| {
        let (mut trainer, mut records) = pairs(settings, [1.0, 0.0, 0.0, 1.0]);
        let mut index = 0..;
        records.retain(|_| right.contains(&index.next().unwrap()));
        let tokens: usize = records.iter().map(|r| r.scored().count()).sum();
        (step(&mut trainer, records), tokens as f64)
    };
    let ((mml_loss, mml), _) = one(&["rl.loss=mml", "rl.beta=3"], &[0, 1, 2, 3]);
    let ((loss, ce), tokens) = one(&["rl.loss=ce"], &[0, 3]);
    assert!(apart(&times(2.0 / tokens, &mml), &ce) < SAME);
    assert!((mml_loss * 2.0 / tokens - loss).abs() < 1e-6, "{mml_loss} {loss}");
    let ((same, gpg), _) = one(&["rl.loss=verl/gpg", "rl.advantage=one"], &[0, 3]);
    assert_eq!((same.to_bits(), gpg), (loss.to_bits(), ce));
}

/// Records without a reward have no part in any objective: what is left is the step without them.
#[test]
fn a_reward_that_failed_compares_nothing() {
    for name in of_rewards().chain(["ce"]) {
        let loss = format!("rl.loss={name}");
        let settings = [loss.as_str(), "rl.micro_batch=1"];
        let (mut with, mut records) = pairs(&settings, [1.0, 0.0, -1.0, 2.0]);
        let mut failed = records[0].clone();
        failed.reward = f32::NAN;
        let (mut without, kept) = (pairs(&settings, [0.0; 4]).0, records.clone());
        records.insert(1, failed);
        assert_eq!(step(&mut with, records), step(&mut without, kept), "{name}");
    }
    let (mut trainer, mut records) = pairs(&["rl.loss=copg"], [1.0; 4]);
    records.iter_mut().for_each(|r| r.reward = f32::NAN);
    let before = trainer.model.params.iter().next().unwrap().values().unwrap();
    let values = trainer.rl_step(0, records).unwrap();
    assert_eq!((value(&values, "loss"), value(&values, "grad_norm")), (0.0, 0.0));
    assert_eq!(trainer.model.params.iter().next().unwrap().values().unwrap(), before);
}

/// Groups and pairs that micro-batches cut lose nothing.
#[test]
fn micro_batches_may_cut_groups() {
    for name in of_rewards() {
        let of = |size: usize| {
            let settings = [format!("rl.loss={name}"), format!("rl.micro_batch={size}")];
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let (mut trainer, records, _) = moved(&settings, 0.0);
            step(&mut trainer, records)
        };
        let (whole, cut) = (of(64), of(1));
        assert_eq!(whole.0.to_bits(), cut.0.to_bits(), "{name}");
        assert!(apart(&cut.1, &whole.1) < SAME, "{name}");
    }
}

/// The second update of a batch scores it again: it is the first one of a step whose sampler was the
/// policy in between, to the bit.
#[test]
fn a_second_update_knows_the_policy_it_updates() {
    for name in ["copg", "mml", "kto", "dpo", "simpo"] {
        let loss = format!("rl.loss={name}");
        let shared = [loss.as_str(), "rl.lr_schedule=constant", "rl.learning_rate=1e-2"];
        let (mut one, records, _) = moved(&shared, 0.0);
        let (mut two, again, _) = moved(&[&shared[..], &["rl.updates_per_batch=2"]].concat(), 0.0);
        assert_eq!(records, again);
        one.rl_step(0, records.clone()).unwrap();
        let now = score_records(&one.model, &records, true, Scoring::at(1.0, 64)).unwrap();
        let mut rescored = records.clone();
        rescored.iter_mut().zip(now).for_each(|(record, now)| record.proximal_logp = now);
        let first = value(&one.rl_step(0, rescored).unwrap(), "loss");
        let values = two.rl_step(0, records).unwrap();
        assert_eq!(value(&values, "loss").to_bits(), first.to_bits(), "{name}");
        assert_eq!(value(&values, "ratio_max_abs_dev"), 0.0, "{name}: on-policy at first");
        assert_eq!(one.save_state().unwrap(), two.save_state().unwrap(), "{name}");
    }
}

/// Clipped at the policy that sampled, PRDP holds the second update back; copg goes on.
#[test]
fn the_bound_is_around_the_sampler() {
    let state = |clip: &str| {
        let keys = ["rl.loss=prdp", clip, "rl.updates_per_batch=3", "rl.learning_rate=0.05"];
        let (mut trainer, records, _) = moved(&keys, 0.0);
        trainer.rl_step(0, records).unwrap();
        trainer.save_state().unwrap()
    };
    assert_ne!(state("rl.clip_high=1e-3"), state("rl.clip_high=1e6"));
    assert_eq!(state("rl.clip_high=1e5"), state("rl.clip_high=1e6"));
}
