//! What a run comes to: `summary.json`, and the lines that a person reads at the end.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::io::atomic;
use crate::model::WeightBytes;
use crate::train::infer::eval::{AtK, Evaluation};
use gradus::error::{Error, Result};

/// Final figures of a run. A score is none where its phase was not run or nothing was scored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Seed of the run.
    pub seed: u64,
    /// Version of gradus.
    pub version: String,
    /// Fingerprint of the configuration.
    pub fingerprint: String,
    /// The recipe whose settings it began with; empty for none.
    #[serde(default)]
    pub recipe: String,
    /// Where it ran.
    pub device: String,
    /// Held-out score of the model as it came: untrained, or as its folder has it.
    pub base_accuracy: Option<f64>,
    /// After the supervised phase.
    pub sft_accuracy: Option<f64>,
    /// After quantization, with fresh adapters, before RL.
    pub quantized_accuracy: Option<f64>,
    /// At the end.
    pub final_accuracy: Option<f64>,
    /// The held-out scores in the order in which they were taken.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Completions that the final score is the mean of.
    pub final_completions: usize,
    /// Standard error of the final score: the completions' standard deviation over √n.
    pub final_error: f64,
    /// Whether no completion can have a score below 0 or above 1.
    #[serde(default)]
    pub score_is_share: bool,
    /// Steps done over all phases.
    pub steps: u64,
    /// RL steps in which all samples of every prompt had the same reward: nothing could be learned.
    pub flat_steps: u64,
    /// RL steps done.
    pub rl_steps: u64,
    /// Wall-clock seconds of all phases, evaluations and checkpoints included.
    pub train_seconds: f64,
    /// Sampled tokens per second of rollout time.
    pub rollout_tokens_per_second: f64,
    /// Largest |ratio − 1| over every token of every first update.
    pub first_ratio_max_abs_dev: f64,
    /// Most bytes the process held at once; 0 where the system does not tell.
    pub peak_memory: u64,
    /// Bytes of the weights as the run began.
    pub weights_before: u64,
    /// Bytes of the weights at the end, by what they are.
    pub weights: WeightBytes,
    /// Folder of the run.
    pub folder: String,
    /// Model folder that the run began with; empty for a model that was made here.
    pub model: String,
    /// Folder of the PEFT adapter; empty without one.
    pub adapter: String,
    /// Model folder that the run wrote because its weights are in no other: what the adapter was trained on,
    /// or, without one, what the run made. Empty if they are those that the run began with.
    #[serde(default)]
    pub exported_model: String,
    /// What 1, 2, 4, ... samples of a held-out prompt come to at the end, where each has several.
    #[serde(default)]
    pub at: Vec<AtK>,
    /// Scores on the sets of `data.suites`.
    #[serde(default)]
    pub suites: Vec<SuiteScores>,
    /// The state that `checkpoint.best` kept.
    #[serde(default)]
    pub best: Option<BestState>,
    /// Held-out prompts with a completion of the final policy.
    pub samples: Vec<SampleLine>,
}

/// When the model was scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scored {
    /// Before anything was done to it.
    AsItWas,
    /// Behind an `sft` phase.
    Sft,
    /// Behind `quantize`.
    Quantized,
    /// As the run ended.
    End,
}

/// A held-out score of the model on its way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// When it was scored.
    pub model: Scored,
    /// Mean reward of the held-out prompts' completions.
    pub score: f64,
}

/// Scores on a named held-out set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteScores {
    /// Its name in `data.suites`.
    pub name: String,
    /// Mean reward before anything was learned; none if nothing was scored.
    pub before: Option<f64>,
    /// Mean reward at the end.
    pub after: Option<f64>,
    /// Standard error of that.
    pub error: f64,
    /// Completions that it is the mean of.
    pub completions: usize,
    /// What 1, 2, 4, ... samples of a prompt come to, where each has several.
    pub at: Vec<AtK>,
}

impl SuiteScores {
    pub(super) fn of(before: Option<f64>, name: String, now: &Evaluation) -> SuiteScores {
        let (after, error, completions) = (now.accuracy, now.error, now.completions);
        SuiteScores { name, before, after, error, completions, at: now.at.clone() }
    }
}

/// The state of a run where a metric was largest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BestState {
    /// The metric.
    pub metric: String,
    /// Its largest value.
    pub value: f64,
    /// Steps of the run that were done then.
    pub step: u64,
    /// Where it is: a folder that `gradus eval --run` takes.
    pub folder: String,
}

/// A prompt with a completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The prompt as the model read it.
    pub prompt: String,
    /// What was asked, without the chat template around it; none where that is the prompt itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The completion.
    pub completion: String,
    /// Whether it ended by itself; if not, it was cut off at the length limit.
    #[serde(default)]
    pub finished: bool,
    /// Whether a reward was asked about it.
    #[serde(default)]
    pub judged: bool,
    /// Whether that reward gives scores from 0, for wrong, to 1, for right.
    #[serde(default)]
    pub zero_to_one: bool,
    /// What the reward says; none without an opinion.
    pub score: Option<f32>,
    /// Why the reward failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Sum of the log-probs of the completion's tokens.
    pub logp: f32,
}

impl SampleLine {
    /// The score, in words where the least and the largest mean wrong and right, and that the completion was cut off; none where no reward was asked and
    /// nothing was cut.
    pub fn verdict(&self) -> Option<String> {
        let score = self.judged.then(|| match (self.score, &self.failure) {
            (None, Some(reason)) => format!("reward failed: {reason}"),
            (None, None) => "no opinion".into(),
            (Some(1.0), _) if self.zero_to_one => "right".into(),
            (Some(0.0), _) if self.zero_to_one => "wrong".into(),
            (Some(score), _) => format!("score {score:.3}"),
        });
        let cut = (!self.finished).then(|| "cut off at rl.max_new_tokens".to_string());
        let words: Vec<String> = score.into_iter().chain(cut).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// The sample as a person reads it, with `note` behind it: one line for a short text prompt, the
    /// question above the answer for anything longer. Of a question of pages both ends are shown.
    pub fn show(&self, note: &str) -> String {
        let answer = self.completion.trim_end_matches('\n');
        if self.question.is_none() && !self.prompt.contains('\n') && !answer.contains('\n') {
            return format!("{}{answer}   {note}\n", self.prompt);
        }
        let indented = |text: &str| text.trim().replace('\n', "\n            ");
        let question = indented(&ends(self.question.as_ref().unwrap_or(&self.prompt)));
        let mut text = format!("  question  {question}\n  answer    {}\n", indented(answer));
        if !note.is_empty() {
            text += &format!("            ({note})\n");
        }
        text
    }
}

/// A text of at most [`SHOWN`] characters: of a longer one its ends, with the number of those left out between them.
fn ends(text: &str) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= SHOWN {
        return text.into();
    }
    let head: String = text.chars().take(SHOWN / 2).collect();
    let tail: String = text.chars().skip(count - SHOWN / 2).collect();
    format!("{head}\n[... {} characters left out ...]\n{tail}", count - SHOWN / 2 * 2).into()
}

/// Characters of a question that are shown.
const SHOWN: usize = 1000;

impl Summary {
    /// Writes `summary.json`.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("summary.json");
        let text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::format(&path, e.to_string()))?;
        atomic::write(&path, &text)
    }

    /// What a person reads at the end: samples, scores, what they mean, where things are, what to do
    /// next.
    pub fn table(&self) -> String {
        let mut text = String::from("\n");
        for sample in &self.samples {
            text += &sample.show(&sample.verdict().unwrap_or_default());
        }
        text += &format!("\n  {}\n  {}\n", self.scores(), self.gain());
        if let Some(flat) = self.flat() {
            text += &format!("  {flat}\n");
        }
        if let Some(words) = self.on_policy() {
            text += &format!("  {words}\n");
        }
        text += &self.sets();
        let rate = match self.rollout_tokens_per_second {
            0.0 => String::new(),
            rate => format!("{rate:.0} sampled tokens/s, "),
        };
        let (seconds, peak) = (self.train_seconds, self.peak_memory >> 20);
        text += &format!("  {seconds:.0} s, {rate}memory at most {peak} MiB\n");
        text += &format!("  weights: {}", self.weights);
        if self.weights_before > self.weights.total() {
            text += &format!(" ({} KiB as the run began)", self.weights_before >> 10);
        }
        text.push('\n');
        text + "\n" + &self.next()
    }

    /// What a stage is called in the line of scores.
    fn name(&self, model: Scored) -> &'static str {
        match (model, self.model.is_empty()) {
            (Scored::AsItWas, true) => "untrained",
            (Scored::AsItWas, false) => "as stored",
            (Scored::Sft, _) => "SFT",
            (Scored::Quantized, _) => "4-bit",
            (Scored::End, _) if self.rl_steps > 0 => "RL",
            (Scored::End, _) => "end",
        }
    }

    /// What the last stage is compared with, `model` being the one before it.
    fn compared(&self, model: Scored) -> &'static str {
        match model {
            _ if self.rl_steps > 0 => "the model that RL began with",
            Scored::AsItWas => "the model as it was",
            Scored::Sft => "the model after SFT",
            Scored::Quantized => "the 4-bit model before training",
            Scored::End => "the model at the end",
        }
    }

    /// A score as it is shown: in percent where it is a share of what can be had.
    fn shown(&self, score: f64) -> String {
        match self.model.is_empty() && self.score_is_share {
            true => format!("{:.1} %", 100.0 * score),
            false => format!("{score:.3}"),
        }
    }

    /// All held-out scores in a line.
    pub(super) fn scores(&self) -> String {
        if self.stages.is_empty() {
            return "held-out score   none: no held-out completion was scored".into();
        }
        let one =
            |stage: &Stage| format!("   {} {}", self.name(stage.model), self.shown(stage.score));
        format!("held-out score{}", self.stages.iter().map(one).collect::<String>())
    }

    /// What k samples come to, the scores on named sets, and the best state; nothing where there is none of them.
    fn sets(&self) -> String {
        let mut text = String::new();
        if !self.at.is_empty() {
            text += &format!("  {}\n", AtK::line(&self.at));
        }
        if !self.suites.is_empty() {
            let score = |score: Option<f64>| score.map_or("none".into(), |s| format!("{s:.3}"));
            text += &format!("  {:<20} {:>8} {:>8} {:>8}\n", "set", "before", "after", "change");
            for SuiteScores { name, before, after, .. } in &self.suites {
                let change = before.zip(*after).map(|(before, after)| after - before);
                let change = change.map_or("none".into(), |change| format!("{change:+.3}"));
                let (before, after) = (score(*before), score(*after));
                text += &format!("  {name:<20} {before:>8} {after:>8} {change:>8}\n");
            }
        }
        if let Some(BestState { metric, value, step, folder }) = &self.best {
            text += &format!("  best {metric} {value:.3} after {step} steps: {folder}\n");
        }
        text
    }

    /// What the run did to the score, in a sentence, and whether chance would do as much.
    fn gain(&self) -> String {
        let [.., before, after] = self.stages.as_slice() else {
            return "there is nothing to compare the final score with".into();
        };
        let from = self.compared(before.model);
        let gain = after.score - before.score;
        // Two standard errors of the difference of two means with the final score's error.
        let chance = 2.0 * 2f64.sqrt() * self.final_error;
        let difference = |size: f64| self.shown(size).replace(" %", " points");
        let size = difference(gain.abs());
        if gain.abs() <= chance {
            let (chance, n) = (difference(chance), self.final_completions);
            return format!(
                "no clear change: {size} from {from}; among {n} completions {chance} can be chance"
            );
        }
        match gain > 0.0 {
            true => format!("it got better: {size} over {from}"),
            false => {
                let rate = if self.rl_steps > 0 { "rl.learning_rate" } else { "learning rate" };
                format!("it got worse: {size} below {from}; try a lower {rate}")
            }
        }
    }

    /// What to know about steps without a difference between rewards.
    fn flat(&self) -> Option<String> {
        let (flat, all) = (self.flat_steps, self.rl_steps);
        (flat * 2 > all).then(|| {
            format!(
                "in {flat} of {all} RL steps all rewards of each prompt were equal: nothing could be \
                 learned from them"
            )
        })
    }

    /// Whether RL was on-policy; nothing where there was no RL.
    fn on_policy(&self) -> Option<String> {
        if self.rl_steps == 0 {
            return None;
        }
        if self.rollout_tokens_per_second == 0.0 {
            return Some("RL learned from a file: nothing was sampled".into());
        }
        Some(match self.first_ratio_max_abs_dev {
            0.0 => "on-policy: sampler and trainer agreed on every log-prob, bit for bit (first \
                    importance ratios exactly 1)"
                .into(),
            off => format!("first importance ratios are up to {off:e} away from 1"),
        })
    }

    fn next(&self) -> String {
        let run = &self.folder;
        let mut text = format!("  run      {run}\n");
        if !self.adapter.is_empty() {
            text +=
                &format!("  adapter  {}   (PeftModel.from_pretrained takes it)\n", self.adapter);
        }
        if !self.exported_model.is_empty() {
            let what = match self.adapter.is_empty() {
                true => "the weights that were trained",
                false => "the weights that the adapter goes on",
            };
            text += &format!("  model    {}   ({what})\n", self.exported_model);
        }
        text += &format!("  curve    {run}/curve.svg\n");
        text += &match self.model.is_empty() {
            true => format!("  next     gradus sample --run {run}\n"),
            false => format!("  next     gradus sample --run {run} --chat\n"),
        };
        if !self.adapter.is_empty() {
            let moved = !self.exported_model.is_empty();
            let model = if moved { &self.exported_model } else { &self.model };
            let adapter = &self.adapter;
            text += &format!("           gradus merge {model} {adapter} merged\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_and_wrong_are_the_ends_of_zero_to_one() {
        for (zero_to_one, score, word) in [
            (true, 1.0, "right"),
            (true, 0.0, "wrong"),
            (true, 0.5, "score 0.500"),
            (false, 1.0, "score 1.000"),
            (false, 0.0, "score 0.000"),
            (false, 2.0, "score 2.000"),
        ] {
            let sample = SampleLine {
                finished: true,
                judged: true,
                zero_to_one,
                score: Some(score),
                ..SampleLine::default()
            };
            assert_eq!(sample.verdict().as_deref(), Some(word), "{zero_to_one} {score}");
        }
    }

    #[test]
    fn of_a_question_of_pages_both_ends_are_shown() {
        let sample = || SampleLine {
            question: Some("é".repeat(600) + "\nend"),
            completion: "short".into(),
            ..SampleLine::default()
        };
        assert!(sample().show("").contains(&"é".repeat(600)));
        let long = SampleLine { question: Some("é".repeat(9_000) + "end"), ..sample() };
        let shown = long.show("");
        assert!(
            shown.contains("[... 8003 characters left out ...]") && shown.contains("éend\n"),
            "{shown}"
        );
        assert!(shown.chars().count() < 1_200);
    }
}
