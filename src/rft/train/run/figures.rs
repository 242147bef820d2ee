//! What a run counts and measures on its way. It is saved with every checkpoint.

use serde::{Deserialize, Serialize};

use crate::train::run::metrics::Metrics;
use crate::train::run::summary::{Scored, Stage};

/// Running figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunFigures {
    /// Place of the phase that runs in the list of phases.
    pub phase: usize,
    /// Steps done in it.
    pub step: u64,
    /// Steps done over all phases.
    pub global: u64,
    /// Seconds of training.
    pub elapsed: f64,
    /// Tokens that the phases `collect` and `rl` sampled.
    pub rollout_tokens: f64,
    /// Seconds they sampled and scored them in.
    pub rollout_seconds: f64,
    /// Largest |ratio − 1| over every token of every first update.
    pub first_ratio_max_abs_dev: f64,
    /// Held-out score of the model as it came.
    pub base_accuracy: Option<f64>,
    /// Held-out score after `sft`.
    pub sft_accuracy: Option<f64>,
    /// Held-out score after `quantize`.
    pub quantized_accuracy: Option<f64>,
    /// What was scored before RL, in order; of phases in turn, the last.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Scores on the sets of `data.suites` before anything was learned, once they are taken.
    #[serde(default)]
    pub suites: Option<Vec<(String, Option<f64>)>>,
    /// The largest value of `checkpoint.best`, and how many steps the run had done.
    #[serde(default)]
    pub best: Option<(f64, u64)>,
    /// Rows of `samples.jsonl`.
    #[serde(default)]
    pub examples: u64,
    /// RL steps done.
    pub rl_steps: u64,
    /// RL steps in which all samples of every prompt had the same reward.
    pub flat_steps: u64,
    /// Bytes of the weights as the run began.
    pub weights_before: u64,
    /// What tells the base weights from others.
    pub base: String,
    /// Time at which RL began.
    pub rl_start: f64,
    /// (time, mean reward) of each RL step.
    pub reward: Vec<(f64, f64)>,
    /// (time, held-out score) of each evaluation.
    pub accuracy: Vec<(f64, f64)>,
    /// What the phase begins with is done.
    #[serde(default)]
    pub entered: bool,
    /// What the phase ends with is done, but for its evaluation.
    #[serde(default)]
    pub left: bool,
    /// The metrics of a step whose update is done and whose evaluation is not.
    #[serde(default)]
    pub updated: Option<Metrics>,
}

/// What of a run's place a checkpoint depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    phase: usize,
    step: u64,
    entered: bool,
    left: bool,
    updated: bool,
}

impl RunFigures {
    /// Counts what was sampled and scored in so many seconds; returns the tokens per second.
    pub fn sampled(&mut self, tokens: usize, seconds: f64) -> f64 {
        self.rollout_tokens += tokens as f64;
        self.rollout_seconds += seconds;
        tokens as f64 / seconds.max(1e-9)
    }

    /// Where the run stands.
    pub fn position(&self) -> Position {
        let &RunFigures { phase, step, entered, left, .. } = self;
        Position { phase, step, entered, left, updated: self.updated.is_some() }
    }

    /// Notes that a model was scored before RL. A phase in turn takes the place of the one before.
    pub fn scored(&mut self, model: Scored, score: Option<f64>) {
        if self.rl_steps > 0 {
            return;
        }
        if self.stages.last().is_some_and(|last| last.model == model) {
            self.stages.pop();
        }
        self.stages.extend(score.map(|score| Stage { model, score }));
    }

    /// The newest held-out score before RL, if there is one.
    pub fn before_rl(&self) -> Option<f64> {
        self.stages.last().map(|stage| stage.score)
    }
}
