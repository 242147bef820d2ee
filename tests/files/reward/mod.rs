//! Rewards.

use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome};
use serde_json::Value;

mod builtin;
mod cases;
mod code;
mod command;
mod http;

/// What a reward says, with all that it says about it.
pub fn judge(reward: &dyn Reward, completion: &str, row: &Value) -> Outcome {
    let fields = row.as_object().unwrap();
    let input = RewardInput { prompt: "", completion, finished: true, fields };
    reward.score(&[input]).remove(0)
}

/// The bare score.
pub fn ask(reward: &dyn Reward, completion: &str, row: &Value) -> Outcome {
    let score = judge(reward, completion, row)?.score();
    Ok(score.map_or(RewardOutcome::Abstain, RewardOutcome::Score))
}

pub fn one(value: f32) -> Outcome {
    Ok(RewardOutcome::Score(value))
}
