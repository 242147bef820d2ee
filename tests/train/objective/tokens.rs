//! What single tokens weigh, importance weights, clamped and raw advantages, classes, and a critic on
//! the trunk.

use gradus::Device;
use gradus::ops::{Advantage, Loss, PolicySettings};
use gradus_rft::model::ValueHead;
use gradus_rft::train::Trainer;
use gradus_rft::train::critic::Critic;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::{Objective, Scoring, score_records};
use gradus_rft::train::trunk::CriticTerm;

use super::oracle;
use super::steps::{apart, head, moved, sequences, step};
use super::{records, sharpen, trainer, value};

/// Sums of a few f32 products in two orders.
const SAME: f64 = 2e-5;

/// Rollouts of a policy that is not flat, with rewards of their own.
fn rollouts(settings: &[&str]) -> (Trainer, Vec<Record>) {
    let mut trainer = trainer(settings);
    sharpen(&mut trainer, 6.0);
    let (_, mut records, _) = trainer.collect(0).unwrap();
    let rewards = [1.0, 0.0, 0.25, 0.5, 2.0, -1.0];
    records.iter_mut().zip(rewards).for_each(|(record, reward)| record.reward = reward);
    (trainer, records)
}

/// The tokens of the largest entropy carry the surrogate and no others do; the quantile is the batch's,
/// however it is cut.
#[test]
fn the_uncertain_tokens_carry_the_surrogate() {
    let gpg = ["rl.loss=verl/gpg", "rl.advantage=reward"];
    let (mut trainer, records) = rollouts(&[&gpg[..], &["rl.top_entropy_quantile=0.3"]].concat());
    let all = records.iter().flat_map(|r| r.scored().map(|t| r.entropy[t]));
    let mut entropies: Vec<f32> = all.collect();
    entropies.sort_by(f32::total_cmp);
    // The value at rank (1 − 0.3)·(n − 1), on the line between two.
    let rank = 0.7 * (entropies.len() - 1) as f64;
    let (low, part) = (rank as usize, rank - rank.floor());
    let bound = entropies[low] as f64 * (1.0 - part) + entropies[low + 1] as f64 * part;
    let reference: Vec<Vec<f32>> = records.iter().map(|r| vec![0.0; r.ids.len()]).collect();
    let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
    let objective = |head: &[f64]| {
        let mut total = 0.0;
        for (s, r) in batch.iter().zip(&records) {
            let now = oracle::scores(s, head, 1.0);
            let kept = r.scored().zip(now).filter(|(t, _)| r.entropy[*t] as f64 >= bound);
            total -= kept.map(|(_, (logp, _))| s.reward * logp).sum::<f64>();
        }
        total / entropies.len() as f64
    };
    let (loss, slope) = step(&mut trainer, records.clone());
    let want = objective(&at);
    assert!((loss - want).abs() < 2e-5, "{loss} {want}");
    let off = apart(&slope, &oracle::gradient(&at, objective));
    assert!(off <= 2e-4, "the gradient is off by {off:e}");
    let cut = ["rl.top_entropy_quantile=0.3", "rl.micro_batch=1"];
    let (mut cut, again) = rollouts(&[&gpg[..], &cut].concat());
    assert_eq!(again, records);
    assert!(apart(&step(&mut cut, again).1, &slope) < SAME);
    let (mut none, _) = rollouts(&[&gpg[..], &["rl.top_entropy_quantile=0"]].concat());
    assert_eq!(step(&mut none, records).0, 0.0);
}

/// −R·max(π, floor)·ℓ with the weight held, at the first update and at the second.
#[test]
fn tokens_weigh_their_probability() {
    let floor = 0.1;
    let keys = ["rl.loss=verl/gpg", "rl.advantage=reward", "rl.token_weight_floor=0.1"];
    let (mut trainer, records, reference) = moved(&keys, 0.0);
    let (batch, at) = (sequences(&trainer, &records, &reference), head(&trainer));
    let tokens: usize = batch.iter().map(|s| s.tokens.len()).sum();
    let mut floored = 0;
    batch.iter().flat_map(|s| oracle::scores(s, &at, 1.0)).for_each(|(logp, _)| {
        floored += (logp.exp() < floor) as usize;
    });
    assert!(0 < floored && floored < tokens, "{floored} of {tokens} at the floor");
    let objective = |head: &[f64]| {
        let of = |s: &oracle::Sequence| {
            let held = oracle::scores(s, &at, 1.0);
            let now = oracle::scores(s, head, 1.0);
            held.iter()
                .zip(now)
                .map(|((held, _), (logp, _))| -s.reward * held.exp().max(floor) * logp)
                .sum::<f64>()
        };
        batch.iter().map(of).sum::<f64>() / tokens as f64
    };
    let (loss, slope) = step(&mut trainer, records.clone());
    let want = objective(&at);
    assert!((loss - want).abs() <= 2e-5 * want.abs().max(0.1), "{loss} {want}");
    let off = apart(&slope, &oracle::gradient(&at, objective));
    assert!(off <= 2e-4, "the gradient is off by {off:e}");
    let steps = ["rl.lr_schedule=constant", "rl.learning_rate=1e-2"];
    let (mut one, ..) = moved(&[&keys[..], &steps].concat(), 0.0);
    let twice = [&keys[..], &steps, &["rl.updates_per_batch=2"]].concat();
    let (mut two, ..) = moved(&twice, 0.0);
    one.rl_step(0, records.clone()).unwrap();
    let now = score_records(&one.model, &records, true, Scoring::at(1.0, 64)).unwrap();
    let mut rescored = records.clone();
    rescored.iter_mut().zip(now).for_each(|(record, now)| record.proximal_logp = now);
    one.rl_step(0, rescored).unwrap();
    two.rl_step(0, records).unwrap();
    assert_eq!(one.save_state().unwrap(), two.save_state().unwrap());
}

/// Importance weights of records that another policy sampled, by hand; the policy's own weigh 1.
#[test]
fn what_another_policy_sampled_is_weighed() {
    let gpg = ["rl.loss=verl/gpg", "rl.advantage=reward"];
    for (mode, cap) in [
        ("token_truncate", 1.2),
        ("token_mask", 1.2),
        ("sequence_truncate", 1.1),
        ("sequence_mask", 1.1),
    ] {
        let own =
            [format!("rl.importance_sampling={mode}"), format!("rl.importance_sampling_cap={cap}")];
        let keys: Vec<&str> = gpg.iter().copied().chain(own.iter().map(String::as_str)).collect();
        let (mut trainer, mut records, _) = moved(&keys, 1.0);
        let now = score_records(&trainer.model, &records, true, Scoring::at(1.0, 64)).unwrap();
        records.iter_mut().zip(now).for_each(|(record, now)| record.proximal_logp = now);
        let (mut total, mut tokens, mut bounded) = (0.0, 0, 0);
        for r in &records {
            let d = |t: usize| r.proximal_logp[t] as f64 - r.sampler_logp[t] as f64;
            let sum: f64 = r.scored().map(d).sum();
            for t in r.scored() {
                let ratio = if mode.starts_with("token") { d(t) } else { sum }.exp();
                let truncated = mode.ends_with("truncate");
                let beyond = if truncated { cap } else { 0.0 };
                let rho = if ratio > cap { beyond } else { ratio };
                bounded += (ratio > cap) as usize;
                total -= rho * r.reward as f64 * r.proximal_logp[t] as f64;
                tokens += 1;
            }
        }
        assert!(0 < bounded && bounded < tokens, "{mode}: {bounded} of {tokens}");
        let (loss, _) = step(&mut trainer, records);
        let want = total / tokens as f64;
        assert!((loss - want).abs() <= 2e-5 * want.abs().max(0.1), "{mode}: {loss} {want}");
        let (mut weighed, records, _) = moved(&keys, 0.0);
        let (mut plain, ..) = moved(&gpg, 0.0);
        assert_eq!(step(&mut weighed, records.clone()), step(&mut plain, records), "{mode}");
    }
}

/// Ratios and clips are around the policy before the updates, not around who sampled long ago.
#[test]
fn a_clip_is_around_the_policy_before_the_updates() {
    let (mut trainer, mut records, _) = moved(&["rl.loss=grpo"], 1.0);
    let now = score_records(&trainer.model, &records, true, Scoring::at(1.0, 64)).unwrap();
    records.iter_mut().zip(now).for_each(|(record, now)| record.proximal_logp = now);
    let (mut fresh, own, _) = moved(&["rl.loss=grpo"], 0.0);
    let stale = trainer.rl_step(0, records).unwrap();
    assert_eq!(value(&stale, "ratio_max_abs_dev"), 0.0);
    fresh.rl_step(0, own).unwrap();
    assert_eq!(trainer.save_state().unwrap(), fresh.save_state().unwrap());
}

/// ReMix: ratios to who sampled, with clips around the policy before the updates.
#[test]
fn a_trust_region_may_follow_the_policy() {
    let keys = ["rl.loss=remix", "rl.beta=0", "rl.advantage=reward", "rl.clip_high=0.05"];
    let (mut trainer, mut records, _) = moved(&keys, 1.0);
    let now = score_records(&trainer.model, &records, true, Scoring::at(1.0, 64)).unwrap();
    records.iter_mut().zip(now).for_each(|(record, now)| record.proximal_logp = now);
    // Before the first update the policy is the center, so that no clip is felt, however stale the
    // sampler is.
    let mut want = 0.0;
    for r in &records {
        let ratio = |t: usize| (r.proximal_logp[t] as f64 - r.sampler_logp[t] as f64).exp();
        let n = r.scored().count() as f64;
        want -= r.scored().map(|t| ratio(t) * r.reward as f64).sum::<f64>() / n / 6.0;
    }
    let values = trainer.rl_step(0, records).unwrap();
    let got = value(&values, "loss");
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    assert_eq!(value(&values, "clip_ratio/region_mean"), 0.0);
}

/// A KL to two anchors: the share that is not to the reference is to the policy before the step's
/// updates, where it is 0 at the first of them.
#[test]
fn a_kl_is_shared_by_two_anchors() {
    let first = |beta: &str, share: &str| {
        let (mut trainer, records, _) = moved(&["rl.loss=remix", beta, share], 0.0);
        step(&mut trainer, records).0
    };
    let (none, all) = (first("rl.beta=0", "rl.kl_share=1"), first("rl.beta=2", "rl.kl_share=1"));
    let part = first("rl.beta=2", "rl.kl_share=0.25");
    assert!(all - none > 1e-3, "{all} {none}");
    assert!((part - none - 0.25 * (all - none)).abs() < 1e-6, "{part}, of {none} to {all}");
    // A reference that was taken right before the step is the policy before its updates.
    let twice = |own: &str| {
        let keys = ["rl.loss=remix", "rl.beta=2", "rl.updates_per_batch=2", own];
        let (mut trainer, records, _) = moved(&keys, 0.0);
        trainer.rl_step(0, records).unwrap();
        trainer.model.params.iter().map(|p| p.values().unwrap()).collect::<Vec<_>>()
    };
    let (before, fresh) = (twice("rl.kl_share=0"), twice("rl.fresh_reference=true"));
    assert_eq!(before, fresh);
    assert_ne!(before, twice("rl.kl_share=1"));
}

#[test]
fn advantages_are_clamped_and_left_unwhitened() {
    let raw = ["rl.loss=verl/gpg", "rl.advantage=reward"];
    let (mut clamped, records, _) = moved(&[&raw[..], &["rl.advantage_clamp=0.3"]].concat(), 0.0);
    let (mut plain, mut by_hand, _) = moved(&raw, 0.0);
    by_hand.iter_mut().for_each(|r| r.reward = r.reward.clamp(-0.3, 0.3));
    assert_eq!(step(&mut clamped, records.clone()), step(&mut plain, by_hand));
    // A critic that says 0 and forgets nothing gives every token the reward.
    let critic = ["rl.loss=verl/gpg", "rl.advantage=gae", "value.lambda=1", "value.whiten=false"];
    let (mut unwhitened, ..) = moved(&critic, 0.0);
    let (mut plain, ..) = moved(&raw, 0.0);
    let ((loss, slope), (want, wanted)) =
        (step(&mut unwhitened, records.clone()), step(&mut plain, records));
    assert!((loss - want).abs() < 1e-6 && apart(&slope, &wanted) < SAME, "{loss} {want}");
}

/// Adds a multiple of gradients to the parameters.
fn shift(trainer: &mut Trainer, gradients: &[(String, Vec<f32>)], factor: f64) {
    for (name, gradient) in gradients {
        let p = trainer.model.params.iter().find(|p| &p.name == name).unwrap();
        let (shape, mut values) = (p.shape.clone(), p.values().unwrap());
        let each = |(v, g): (&mut f32, &f32)| *v += (factor * *g as f64) as f32;
        values.iter_mut().zip(gradient).for_each(each);
        trainer.model.params.set(name, &shape, &values).unwrap();
    }
}

/// The critic's term alone: its loss changes along its gradient by the gradient's norm, the head's by
/// its own; pieces add up to the whole.
#[test]
fn a_critic_moves_the_trunk() {
    let mut trainer = trainer(&["rl.micro_batch=64"]);
    sharpen(&mut trainer, 6.0);
    let records = records(&trainer, 0.0);
    let tokens: usize = records.iter().map(|r| r.scored().count()).sum();
    let d = trainer.model.config.hidden;
    let mut head = ValueHead { weight: (0..=d).map(|i| (i as f32).sin() / 3.0).collect() };
    let returns: Vec<f32> = (0..tokens).map(|t| (t as f32 * 0.7).cos()).collect();
    let before: Vec<f32> = (0..tokens).map(|t| (t as f32 * 0.3).sin()).collect();
    let settings = PolicySettings { loss: Loss::Reinforce, ..Default::default() };
    let (zero, weight) = (vec![0.0; records.len()], vec![1.0; records.len()]);
    let pass = |trainer: &Trainer, head: &ValueHead, micro_batch: usize| {
        let (returns, value) = (&returns[..], &before[..]);
        let term = CriticTerm { head, returns, value, clip: 0.4, weight: 3.0 / tokens as f64 };
        let objective =
            Objective { critic: Some(term), micro_batch, ..trainer.rl_objective(&settings) };
        let advantage = Advantage::PerSequence((&zero).into());
        trainer.forward_backward(&records, advantage, &weight, objective).unwrap()
    };
    let backward = pass(&trainer, &head, 64);
    let cut = pass(&trainer, &head, 1);
    assert!((backward.critic.loss - cut.critic.loss).abs() < 1e-9);
    let gradients: Vec<(String, Vec<f32>)> = backward
        .gradients
        .iter()
        .map(|(id, g)| (trainer.model.params.get(id).name.clone(), g.to_host().unwrap()))
        .collect();
    for ((_, whole), (_, piece)) in gradients.iter().zip(cut.gradients.iter()) {
        let piece = piece.to_host().unwrap();
        let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<f64>>();
        let size = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(size == 0.0 || apart(&wide(&piece), &wide(whole)) < SAME);
    }
    let norm = gradients.iter().flat_map(|g| &g.1).map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 1e-2, "{norm}");
    const STEP: f64 = 1e-3;
    let mut along = |step: f64| {
        shift(&mut trainer, &gradients, step / norm);
        pass(&trainer, &head, 64).critic.loss
    };
    let (above, below) = (along(STEP), along(-2.0 * STEP));
    let slope = (above - below) / (2.0 * STEP);
    assert!((slope - norm).abs() <= 1e-2 * norm, "slope {slope}, norm of the gradient {norm}");
    along(STEP);
    for i in [0, 5, d] {
        let at = head.weight[i];
        head.weight[i] = at + 1e-3;
        let above = pass(&trainer, &head, 64).critic.loss;
        head.weight[i] = at - 1e-3;
        let below = pass(&trainer, &head, 64).critic.loss;
        head.weight[i] = at;
        let slope = (above - below) / 2e-3;
        let got = backward.critic.gradient[i] as f64;
        assert!((slope - got).abs() < 1e-2 * got.abs().max(0.1), "{i}: {got} {slope}");
    }
}

/// `reft` trains its critic on the trunk: its value loss is in the update, and one step is the head's
/// alone as long as V = 0.
#[test]
fn the_critics_weight_is_the_presets_or_the_runs() {
    let reft = |settings: &[&str], weight: f32| {
        let keys = ["rl.loss=reft", "rl.beta=0", "rl.lr_schedule=constant"];
        let (mut trainer, records, _) = moved(&[&keys[..], settings].concat(), 0.0);
        let d = trainer.model.config.hidden;
        let mut critic = Critic::new(d);
        critic.head.weight = (0..=d).map(|i| weight * (i as f32).sin()).collect();
        trainer.critic = Some(critic);
        let values = trainer.rl_step(0, records).unwrap();
        let policy: Vec<_> = trainer.model.params.iter().map(|p| p.values().unwrap()).collect();
        (value(&values, "value_loss"), policy, trainer.critic.unwrap())
    };
    let (trunk, alone) = (reft(&[], 0.2), reft(&["value.coef=0"], 0.2));
    assert!((trunk.0 - alone.0).abs() < 1e-6, "the same loss: {} {}", trunk.0, alone.0);
    assert_ne!(trunk.1, alone.1, "the trunk moves");
    assert_eq!((trunk.2.t, alone.2.t), (1, 1));
    for (a, b) in trunk.2.head.weight.iter().zip(&alone.2.head.weight) {
        assert!((a - b).abs() < 1e-4, "AdamW's first step knows no scale: {a} {b}");
    }
    assert_eq!(reft(&[], 0.0).1, reft(&["value.coef=0"], 0.0).1, "V = 0 sends nothing back");
    assert_ne!(reft(&["value.coef=0.1"], 0.2).1, trunk.1);
}

/// A record without a reward is in neither loss, with a critic on the trunk as without.
#[test]
fn a_trunk_learns_nothing_from_an_abstained_reward() {
    let of = |drop: bool| {
        let keys = ["rl.loss=reft", "rl.beta=0", "rl.micro_batch=1"];
        let (mut trainer, mut records, _) = moved(&keys, 0.0);
        let d = trainer.model.config.hidden;
        let mut critic = Critic::new(d);
        critic.head.weight = (0..=d).map(|i| 0.2 * (i as f32).sin()).collect();
        trainer.critic = Some(critic);
        // Sequences are counted whatever becomes of them: the weights must be those of all.
        records[1].reward = f32::NAN;
        if drop {
            records[1].ids.truncate(3);
            records[1].class.truncate(3);
            records[1].sampler_logp.truncate(3);
            records[1].entropy.truncate(3);
        }
        trainer.rl_step(0, records).unwrap();
        trainer.save_state().unwrap()
    };
    assert_eq!(of(false), of(true));
}

/// Classes of a demonstration carry the weights of a run, relative to each other.
#[test]
fn classes_of_demonstrations_weigh_what_a_run_says() {
    let loss = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        sharpen(&mut trainer, 6.0);
        let records = trainer.demonstrations(0).unwrap();
        let loss = value(&trainer.sft_step(0).unwrap(), "loss");
        (loss, records)
    };
    let (plain, records) = loss(&[]);
    let (both, learned) = loss(&["sft.prompt_weight=0.5"]);
    let mut trainer = trainer(&[]);
    sharpen(&mut trainer, 6.0);
    let sum = |records: &[Record], class: TokenClass| {
        let columns = score_records(&trainer.model, records, true, Scoring::at(1.0, 64)).unwrap();
        let each = records.iter().zip(&columns).flat_map(|(r, column)| {
            let of = r.scored().filter(|&t| r.class[t] == class);
            of.map(|t| column[t] as f64).collect::<Vec<f64>>()
        });
        each.fold((0.0, 0.0), |(sum, n), logp| (sum - logp, n + 1.0))
    };
    let (answers, n) = sum(&records, TokenClass::Demo);
    assert!((plain - answers / n).abs() < 1e-6, "{plain}");
    let (prompts, p) = sum(&learned, TokenClass::Context);
    assert!(p > 0.0);
    let want = (answers + 0.5 * prompts) / (n + 0.5 * p);
    assert!((both - want).abs() < 1e-6, "{both} {want}");
    let twice = loss(&["sft.prompt_weight=1"]).0;
    assert!((twice - (answers + prompts) / (n + p)).abs() < 1e-6);
}

/// On the emulated device a step of a sequence objective, and one of a critic on the trunk, is the
/// CPU's.
#[test]
fn steps_on_a_device_are_the_cpus() {
    let executor = &crate::common::devices::shared_gpus()[0];
    for keys in [
        &["rl.loss=copg"][..],
        &["rl.loss=prdp"],
        &["rl.loss=mml"],
        &["rl.loss=kto"],
        &["rl.loss=dpo"],
        &["rl.loss=reft", "rl.beta=0"],
        &["rl.loss=grpo", "rl.top_entropy_quantile=0.5"],
    ] {
        let on = |device: Device| {
            let mut trainer = Trainer::on(super::config(keys), device).unwrap();
            sharpen(&mut trainer, 6.0);
            let mut batch = records(&trainer, 0.0);
            let wave = |t: usize| ((7 * t) as f32).sin();
            for record in &mut batch {
                record.entropy = (0..record.ids.len()).map(wave).collect();
            }
            if keys[0] == "rl.loss=reft" {
                let d = trainer.model.config.hidden;
                let mut critic = Critic::new(d);
                critic.head.weight = (0..=d).map(|i| 0.2 * (i as f32).sin()).collect();
                trainer.critic = Some(critic);
            }
            step(&mut trainer, batch)
        };
        let ((loss, slope), (want, wanted)) = (on(executor.device.clone()), on(Device::Cpu));
        assert!((loss - want).abs() <= 1e-5 * want.abs().max(0.1), "{keys:?}: {loss} {want}");
        assert!(apart(&slope, &wanted) < 2e-4, "{keys:?} on {}", executor.name);
    }
}
