//! 05: a training loop of your own. `cargo run --release -p gradus-rft --example 05_own_trainer_loop`
//!
//! The trainer's verbs are sample, score, advantage, loss and gradient, update. `gradus train` is a
//! loop over them with checkpoints, metrics and more; this is the loop alone. A small model with
//! random weights learns to write nothing but the digit 7.

use gradus::ops::{
    Advantage, GroupAdvantage, GroupSettings, group_advantage, presets, seq_weights,
};
use gradus_rft::reward::{Outcome, RewardInput, RewardOutcome, score};
use gradus_rft::train::optimizer::Update;
use gradus_rft::train::{RunConfig, Trainer};

const STEPS: u64 = 10;
const PROMPTS: u64 = 8;
const GROUP: usize = 8;

/// The share of 7s.
fn sevens(sample: &RewardInput<'_>) -> Outcome {
    let text = sample.completion;
    Ok(RewardOutcome::Score(text.matches('7').count() as f32 / text.len().max(1) as f32))
}

fn main() -> Result<(), gradus::Error> {
    let mut config = RunConfig::default();
    for set in ["model.hidden=32", "model.head_dim=8", "model.ffn=64", "rl.max_new_tokens=8"] {
        config.apply_set(set)?;
    }
    let mut trainer: Trainer = Trainer::new(config)?;
    let dapo = presets::by_name("dapo", 8.0)?;
    let update =
        Update { learning_rate: 5e-3, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, grad_clip: 1.0 };

    let mut means = Vec::new();
    for step in 0..STEPS {
        // Sample: a group of completions for each prompt, with the log-probs they were drawn with.
        let prompts = (0..PROMPTS).map(|i| trainer.task.train_prompt(step * PROMPTS + i)).collect();
        let sampled = trainer.sample(prompts, GROUP, step)?;
        let records = sampled.records();

        // Reward: one number per completion.
        let reward = score(&sevens, &sampled.inputs())?.rewards;

        // Advantage: better or worse than the rest of the group?
        let offsets: Vec<i64> = (0..=PROMPTS as i64).map(|p| p * GROUP as i64).collect();
        let mut advantage = vec![0f32; records.len()];
        let args = GroupAdvantage {
            reward: (&reward).into(),
            offsets: (&offsets).into(),
            length: None,
            settings: GroupSettings::default(),
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(&trainer.model.device, args)?;

        // Loss: the preset says how tokens are averaged. A record's scored tokens are its completion.
        let lengths: Vec<i64> = records.iter().map(|r| r.scored().count() as i64).collect();
        let weights = seq_weights(dapo.aggregation, &lengths)?;
        let weights: Vec<f32> = weights.into_iter().map(|w| w as f32).collect();
        let per_sequence = Advantage::PerSequence((&advantage).into());
        let objective = trainer.rl_objective(&dapo.settings);
        let backward = trainer.forward_backward(&records, per_sequence, &weights, objective)?;

        // Update: one step of AdamW. Gradients that are not finite are not applied.
        let updated = trainer.optim_step(&backward, update)?;
        assert!(updated.applied, "step {step}");

        // Log.
        let mean = reward.iter().sum::<f32>() / reward.len() as f32;
        println!(
            "step {step:2}: reward {mean:.3}, |gradient| {:.3}, {:?}",
            updated.grad_norm, sampled.texts[0]
        );
        means.push(mean);
    }
    let (first, last) = (means[0], means[STEPS as usize - 1]);
    println!("from {first:.3} to {last:.3}");
    assert!(first < 0.2 && last > 0.9, "the policy did not learn");
    Ok(())
}
