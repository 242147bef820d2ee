//! What a run comes to: `summary.json` and the table at the end.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::atomic;

/// Final figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Seed of the run.
    pub seed: u64,
    /// Version of gradus.
    pub version: String,
    /// Fingerprint of the configuration.
    pub fingerprint: String,
    /// Where it ran.
    pub device: String,
    /// Held-out accuracy of the untrained model.
    pub base_accuracy: f64,
    /// After the supervised warm-up.
    pub sft_accuracy: f64,
    /// After quantisation, before RL.
    pub quantized_accuracy: f64,
    /// At the end.
    pub final_accuracy: f64,
    /// Steps done over all phases.
    pub steps: u64,
    /// Wall-clock seconds of all phases, evaluations and checkpoints included.
    pub train_seconds: f64,
    /// Sampled tokens per second of rollout time.
    pub rollout_tokens_per_second: f64,
    /// Largest |ratio − 1| over every token of every first update.
    pub first_ratio_max_abs_dev: f64,
    /// Most bytes the process held at once; 0 where the system does not tell.
    pub peak_memory: u64,
    /// Bytes of the model before quantisation.
    pub dense_bytes: u64,
    /// Bytes of the model as trained by RL, adapters included.
    pub quantized_bytes: u64,
    /// Folder of the PEFT adapter; empty for a model that was made here.
    pub adapter: String,
    /// Held-out prompts with a completion of the final policy.
    pub samples: Vec<SampleLine>,
}

/// A prompt with a completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The prompt.
    pub prompt: String,
    /// The completion.
    pub completion: String,
    /// What the verifier says; none without an opinion.
    pub score: Option<f32>,
    /// Sum of the log-probs of the completion's tokens.
    pub logp: f32,
}

impl SampleLine {
    /// The score in a word, where it is 0 or 1.
    pub fn verdict(&self) -> String {
        match self.score {
            None => "no opinion".into(),
            Some(1.0) => "right".into(),
            Some(0.0) => "wrong".into(),
            Some(score) => format!("score {score:.3}"),
        }
    }
}

impl Summary {
    /// Writes `summary.json`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("summary.json");
        let text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        atomic::write(&path, &text)
    }

    /// The table a person reads at the end.
    pub fn table(&self) -> String {
        let percent = |x: f64| format!("{:5.1} %", 100.0 * x);
        let (end, gain) = (self.final_accuracy, self.final_accuracy - self.sft_accuracy);
        let mut text = match self.adapter.is_empty() {
            true => format!(
                "\n  held-out accuracy   untrained {}   SFT {}   4-bit {}   RL {}  ({:+.1} points over SFT)\n",
                percent(self.base_accuracy),
                percent(self.sft_accuracy),
                percent(self.quantized_accuracy),
                percent(end),
                100.0 * gain,
            ),
            false => {
                let start = self.quantized_accuracy;
                format!("\n  held-out score   before {start:.3}   after {end:.3}  ({gain:+.3})\n")
            }
        };
        text += &format!(
            "  time {:.0} s   rollouts {:.0} tokens/s   weights {} KiB -> {} KiB   memory {} MiB   first ratio off 1 by {:e}\n",
            self.train_seconds,
            self.rollout_tokens_per_second,
            self.dense_bytes >> 10,
            self.quantized_bytes >> 10,
            self.peak_memory >> 20,
            self.first_ratio_max_abs_dev,
        );
        if !self.adapter.is_empty() {
            text += &format!("  adapter {}\n", self.adapter);
        }
        for sample in &self.samples {
            let (prompt, completion) = (&sample.prompt, &sample.completion);
            text += &format!("  {prompt}{completion}   {}\n", sample.verdict());
        }
        text
    }
}
