//! The book of `mml`: solutions of earlier steps are learned beside those of this one.

use gradus::Device;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::{Scoring, score_records};
use gradus_rft::train::{RunConfig, Trainer};

use super::kept::try_config;
use super::objective::value;

const SETTINGS: [&str; 4] = ["rl.loss=mml", "rl.store=book", "rl.dedupe=true", "rl.beta=0.25"];

fn trainer(settings: &[&str]) -> Trainer {
    let config: RunConfig = try_config(&[&SETTINGS, settings].concat()).unwrap();
    Trainer::on(config, Device::Cpu).unwrap()
}

/// A prompt, and answers with their rewards.
type Asked<'a> = (i32, &'a [(&'a [i32], f32)]);

/// Groups of completions with rewards, each prompt another one.
fn records(trainer: &Trainer, groups: &[Asked<'_>]) -> Vec<Record> {
    let mut records = Vec::new();
    for (group, (prompt, answers)) in groups.iter().enumerate() {
        for (ids, reward) in answers.iter() {
            let mut record = Record {
                group: group as u32,
                reward: *reward,
                finished: true,
                row: *prompt as u64,
                ..Record::default()
            };
            record.push(&[*prompt, 12], TokenClass::Prompt, &[]);
            record.push(ids, TokenClass::Gen, &[]);
            records.push(record);
        }
    }
    let now = score_records(&trainer.model, &records, true, Scoring::at(1.0, 64)).unwrap();
    records.iter_mut().zip(now).for_each(|(record, now)| record.sampler_logp = now);
    records
}

/// −log Σ exp(β·log π) / β over the answers of each prompt, a mean over prompts.
fn want(trainer: &Trainer, groups: &[&[(i32, &[i32])]]) -> f64 {
    let of = |group: &&[(i32, &[i32])]| {
        let answers: Vec<(&[i32], f32)> = group.iter().map(|(_, ids)| (*ids, 1.0)).collect();
        let records = records(trainer, &[(group[0].0, &answers)]);
        let sum = |r: &Record| r.sampler_logp.iter().map(|&l| l as f64).sum::<f64>();
        -records.iter().map(|r| (0.25 * sum(r)).exp()).sum::<f64>().ln() / 0.25
    };
    groups.iter().map(of).sum::<f64>() / groups.len() as f64
}

fn loss(trainer: &mut Trainer, step: u64, groups: &[Asked<'_>]) -> f64 {
    let records = records(trainer, groups);
    value(&trainer.rl_step(step, records).unwrap(), "loss")
}

/// The second step's loss is over what both found for a prompt, each text once; a prompt that the book
/// does not know has its own solutions alone, and wrong ones count nowhere.
#[test]
fn solutions_of_earlier_steps_are_learned_again() {
    let mut trainer = trainer(&["rl.book=book", "rl.learning_rate=1e-2"]);
    let (a, b, c, d): (&[i32], &[i32], &[i32], &[i32]) = (&[3, 4], &[5], &[6, 7, 8], &[9]);
    let first: &[Asked<'_>] = &[(1, &[(a, 1.0), (b, 0.0)]), (2, &[(c, 1.0)])];
    let alone = want(&trainer, &[&[(1, a)], &[(2, c)]]);
    let got = loss(&mut trainer, 0, first);
    assert!((got - alone).abs() <= 1e-6 * alone, "{got} {alone}");
    let second: &[Asked<'_>] = &[(1, &[(d, 1.0), (b, 0.0)]), (2, &[(c, 1.0)]), (3, &[(a, 1.0)])];
    let both = want(&trainer, &[&[(1, d), (1, a)], &[(2, c)], &[(3, a)]]);
    let got = loss(&mut trainer, 1, second);
    assert!((got - both).abs() <= 1e-6 * both, "{got} {both}");
    let third: &[Asked<'_>] = &[(1, &[(b, 0.0)]), (4, &[(d, 0.0)])];
    let known = want(&trainer, &[&[(1, a), (1, d)]]);
    let got = loss(&mut trainer, 2, third);
    assert!((got - known).abs() <= 1e-6 * known, "nothing new is right: {got} {known}");
}

/// With an empty book the step is the one without; the book is in the checkpoint.
#[test]
fn a_book_begins_empty_and_survives_a_resume() {
    let read = trainer(&["rl.book=book"]);
    let (_, batch, _) = read.collect(0).unwrap();
    let mut batch = batch;
    let rewards = [1.0, 0.0, 1.0].iter().cycle();
    batch.iter_mut().zip(rewards).for_each(|(record, &reward)| record.reward = reward);
    let state = |mut trainer: Trainer, steps: u64| {
        (0..steps).for_each(|s| drop(trainer.rl_step(s, batch.clone()).unwrap()));
        trainer
    };
    let plain = trainer(&["rl.book="]);
    assert_eq!(
        state(trainer(&["rl.book=book"]), 1).save_state().unwrap(),
        state(plain, 1).save_state().unwrap()
    );
    let whole = state(trainer(&["rl.book=book"]), 3).save_state().unwrap();
    let saved = state(trainer(&["rl.book=book"]), 1).save_state().unwrap();
    let mut again = trainer(&["rl.book=book"]);
    again.load_state(&saved).unwrap();
    (1..3).for_each(|s| drop(again.rl_step(s, batch.clone()).unwrap()));
    assert_eq!(again.save_state().unwrap(), whole);
}

/// The demonstration of a prompt counts as a solution that was found.
#[test]
fn demonstrations_may_be_in_the_book() {
    let mut with = trainer(&["rl.book=book", "rl.book_demos=true"]);
    let (_, mut batch, _) = with.collect(0).unwrap();
    batch.iter_mut().for_each(|record| record.reward = 0.0);
    let tokens = value(&with.rl_step(0, batch.clone()).unwrap(), "update/tokens");
    let demo =
        |row: u64| with.task.codec().encode_rendered(&with.task.train_demo(row).unwrap().answer);
    let rows: Vec<u64> = batch.chunk_by(|a, b| a.group == b.group).map(|g| g[0].row).collect();
    let want: usize = rows.iter().map(|&row| demo(row).unwrap().len() + 1).sum();
    assert_eq!(tokens, want as f64, "nothing else was right");
    let mut without = trainer(&["rl.book=book"]);
    assert_eq!(value(&without.rl_step(0, batch).unwrap(), "update/tokens"), 0.0);
}

#[test]
fn a_book_that_means_nothing_is_refused() {
    let refused = |settings: &[&str]| {
        let config = try_config(settings).and_then(|config| {
            config.validate()?;
            config.validate_phases()
        });
        config.unwrap_err().to_string()
    };
    for (settings, says) in [
        (vec!["rl.loss=grpo", "rl.book=book", "rl.store=book"], "rl.loss = mml"),
        (vec!["rl.loss=mml", "rl.book_demos=true"], "rl.book"),
        (vec!["rl.loss=mml", "rl.book=a b"], "no name of a buffer"),
        (vec!["rl.loss=mml", "rl.book=other", "rl.store=book"], "no phase before fills"),
    ] {
        let error = refused(&settings);
        assert!(error.contains(says), "{settings:?}: {error}");
    }
    let fits = try_config(&[&SETTINGS[..], &["rl.book=book"]].concat()).unwrap();
    fits.validate().and_then(|()| fits.validate_phases()).unwrap();
}
