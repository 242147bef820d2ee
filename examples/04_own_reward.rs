//! 04: a reward of your own. `cargo run -p gradus-rft --example 04_own_reward`
//!
//! A reward looks at completions and says how good each one is. It is a closure, or a type that
//! implements `Reward`, and it is tried by hand before a model learns from it.

use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome, no_fields, score};
use gradus_rft::train::metrics::Metric;
use gradus_rft::train::{RunConfig, Trainer};

/// Wants a sum that ends by itself and is short.
fn short_sum(sample: &RewardInput<'_>) -> Outcome {
    if !sample.finished {
        // Cut off at the length limit. Nobody knows how it would have gone on: the sample takes no
        // part, which is not the same as a score of 0.
        return Ok(RewardOutcome::Abstain);
    }
    if sample.completion.is_empty() {
        // What cannot be judged is a failure with a reason. It is counted and shown, and a run in
        // which most calls fail stops.
        return Err("the completion is empty".to_string());
    }
    let is_sum = sample.completion.contains('+') as u8 as f32;
    Ok(RewardOutcome::Score(is_sum + 1.0 / sample.completion.len() as f32))
}

/// The average of two rewards: any reward can be part of another.
struct Both<A, B>(A, B);

impl<A: Reward, B: Reward> Reward for Both<A, B> {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let average = |(a, b): (Outcome, Outcome)| {
            let mean = a?.score().zip(b?.score()).map(|(a, b)| (a + b) / 2.0);
            Ok(mean.map_or(RewardOutcome::Abstain, RewardOutcome::Score))
        };
        self.0.score(inputs).into_iter().zip(self.1.score(inputs)).map(average).collect()
    }
}

fn main() -> Result<(), gradus::Error> {
    // By hand, without a model.
    let sample = |completion, finished| RewardInput {
        prompt: "4729=15:",
        completion,
        finished,
        fields: no_fields(), // of the data row: `answer`, `tests`, whatever it holds
    };
    let samples =
        [sample("9+4+2", true), sample("7", true), sample("7+7+7", false), sample("", true)];
    let scores = score(&short_sum, &samples)?;
    println!("rewards {:?}, failures {:?}", scores.rewards, scores.failures);
    assert_eq!(scores.rewards[..2], [1.2, 1.0]);
    assert!(scores.rewards[2].is_nan() && scores.rewards[3].is_nan());
    assert_eq!((scores.abstained, scores.failed), (1, 1));

    // With a model: a small one with random weights, on the task that comes with gradus.
    let mut config = RunConfig::default();
    for set in ["model.hidden=32", "model.head_dim=8", "model.ffn=64", "rl.prompts=8", "rl.group=8"]
    {
        config.apply_set(set)?;
    }
    let trainer: Trainer = Trainer::new(config)?;
    let verifier = trainer.task.verifier();
    let mut trainer = trainer.with_reward(Both(short_sum, verifier));

    // Sample 8 answers to each of 8 prompts, score them, and update the policy once.
    let (sampled, records, scores) = trainer.collect(0)?;
    assert_eq!((sampled.texts.len(), records.len()), (64, 64));
    println!(
        "{} of 64 scored, {} abstained",
        64 - scores.abstained - scores.failed,
        scores.abstained
    );
    println!("the first answers: {:?}", &sampled.texts[..4]);
    let metrics = trainer.rl_step(0, records)?;
    for (metric, value) in metrics.iter() {
        println!("{:30} {value:.4}", metric.name());
    }
    assert!(metrics.get(Metric::GradNorm).is_some_and(f64::is_finite));
    Ok(())
}
