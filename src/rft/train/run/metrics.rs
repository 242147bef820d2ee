//! `metrics.jsonl`, `metrics.csv` and TensorBoard's event file: one row per step, TRL's names. Columns under `time/` are
//! wall-clock readings; all others are a function of the configuration alone. The parts of a reward have
//! names of their own: `rewards/NAME/mean`, and `rewards/NAME/weight` where the weight moves. They stand behind
//! the other columns of the CSV file, in the order in which they were met: the file is written again with
//! each that is new.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::io::atomic;
use crate::io::json::read_text;
use crate::reward::Scores;
use crate::train::config::choice;
use crate::train::run::progress;
use crate::train::run::tensorboard::EventWriter;
use gradus::error::{Error, Result};

/// Most bytes of rows that a resumed run reads again.
const LIMIT: u64 = 1 << 32;

choice! {
    /// What a step may report: a column of the CSV file, in order. JSON rows hold those that were
    /// measured.
    Metric {
        /// Loss of the last update.
        Loss = "loss",
        /// Mean reward of the completions that have one.
        Reward = "reward",
        /// Mean over the groups of the rewards' standard deviation.
        RewardStd = "reward_std",
        /// Share of groups whose rewards are all equal.
        FracRewardZeroStd = "frac_reward_zero_std",
        /// Mean over pairs of the chosen's implicit reward less the rejected's, in the last update.
        RewardMargins = "rewards/margins",
        /// Share of pairs whose chosen completion has the larger implicit reward.
        RewardAccuracies = "rewards/accuracies",
        /// Mean k3 estimate of the KL to the reference, per token.
        Kl = "kl",
        /// Mean entropy of the sampler, per token, in nats.
        Entropy = "entropy",
        /// Mean entropy of the tokens that spell one of `rl.watch`.
        EntropyWatched = "entropy/watched",
        /// Share of tokens that the lower bound clips.
        ClipLow = "clip_ratio/low_mean",
        /// Share of tokens that the upper bound clips.
        ClipHigh = "clip_ratio/high_mean",
        /// Share of tokens that either bound clips.
        ClipRegion = "clip_ratio/region_mean",
        /// Tokens that the last update learned from.
        UpdateTokens = "update/tokens",
        /// Tokens that went through the model for it, forward and backward.
        UpdateComputed = "update/computed_tokens",
        /// Mean k3 estimate of the KL to the reference over the tokens of the last update.
        UpdateKl = "update/kl",
        /// Mean entropy over the tokens of the last update, under the policy that is updated.
        UpdateEntropy = "update/entropy",
        /// Share of the last update's tokens that either bound clips.
        UpdateClip = "update/clip_ratio",
        /// Mean number of a completion's tokens.
        MeanLength = "completions/mean_length",
        /// Share of completions that were cut off.
        ClippedRatio = "completions/clipped_ratio",
        /// Mean number of an episode's answers, with an environment.
        EpisodeTurns = "episodes/turns",
        /// Global gradient norm before clipping.
        GradNorm = "grad_norm",
        /// Learning rate of the step.
        LearningRate = "learning_rate",
        /// Tokens of the step: all of the sequences in RL, the scored ones in SFT.
        NumTokens = "num_tokens",
        /// Not written at present.
        SkippedSteps = "skipped_steps",
        /// Completions for which the reward failed.
        RewardsFailed = "rewards_failed",
        /// Batches that the step sampled, where `rl.dynamic_sampling` may ask for more than one.
        SampledBatches = "sampled_batches",
        /// Share of the completions that `rl.keep`, `rl.dedupe` and `rl.dynamic_sampling` left.
        KeptShare = "kept_share",
        /// Prompts that went into the buffer of `rl.divert`.
        Diverted = "diverted",
        /// Records in the buffer of `rl.store` after the step.
        BufferSize = "buffer_size",
        /// Share of the completions that come from earlier batches.
        ReplayShare = "replay/share",
        /// Mean number of updates since a replayed completion was sampled.
        ReplayAge = "replay/age",
        /// Mean |log π − log π_sampler| over the tokens of replayed completions, before the updates.
        ReplayGap = "replay/logp_gap",
        /// Mean number of tokens of a demonstration that completions of `rl.prefix_samples` begin with.
        PrefixLength = "prefix/length",
        /// Mean reward of those completions that have one.
        PrefixReward = "prefix/reward",
        /// Records that the phase in `rl.then` learned from.
        InnerRecords = "then/records",
        /// Loss of that phase's last update.
        InnerLoss = "then/loss",
        /// Loss of the critic.
        ValueLoss = "value_loss",
        /// 1 − Var(return − V) / Var(return) of the critic.
        ExplainedVariance = "explained_variance",
        /// Held-out score.
        EvalAccuracy = "eval/accuracy",
        /// Held-out score of the answers that most samples of a prompt give.
        EvalMajority = "eval/majority_vote",
        /// Held-out score of the best samples of the prompts.
        EvalBest = "eval/best_of_n",
        /// Largest |ratio − 1| in the step's first update, to the policy before it.
        RatioMaxAbsDev = "ratio_max_abs_dev",
        /// Seconds of the step.
        StepTime = "time/step_time",
        /// Sampled tokens per second of sampling and scoring.
        TokensPerSecond = "time/tokens_per_second",
    }
}

/// What a step reports, in the order in which it was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    values: Vec<(Metric, f64)>,
    /// Under their names in files.
    parts: Vec<(String, f64)>,
}

/// What the names of columns of a reward's parts begin with.
const PART: &str = "rewards/";

/// What they end with: a mean over the completions, or the part's weight in the step.
const MEAN: &str = "/mean";
const WEIGHT: &str = "/weight";

impl Metrics {
    /// Adds one that is not there yet.
    pub fn push(&mut self, metric: Metric, value: f64) {
        debug_assert!(self.get(metric).is_none(), "{} twice", metric.name());
        self.values.push((metric, value));
    }

    /// Adds what is known of the parts of a reward: their means, and weights that move.
    pub fn push_rewards(&mut self, scores: &Scores) {
        let named = |end: &'static str| {
            move |(name, value): (String, f64)| (format!("{PART}{name}{end}"), value)
        };
        self.parts.extend(scores.part_means().into_iter().map(named(MEAN)));
        self.parts.extend(scores.weights.iter().cloned().map(named(WEIGHT)));
    }

    /// The value of one, if it was measured.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.values.iter().find(|(known, _)| *known == metric).map(|(_, value)| *value)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Metric, f64)> + '_ {
        self.values.iter().copied()
    }

    /// All of them and of the reward's parts with their names in files, in order.
    pub fn named(&self) -> impl Iterator<Item = (&str, f64)> {
        let values = self.values.iter().map(|(metric, value)| (metric.name(), *value));
        values.chain(self.parts.iter().map(|(name, value)| (name.as_str(), *value)))
    }

    /// Adds others behind these.
    pub fn extend(&mut self, others: Metrics) {
        others.iter().for_each(|(metric, value)| self.push(metric, value));
        self.parts.extend(others.parts);
    }
}

impl<const N: usize> From<[(Metric, f64); N]> for Metrics {
    fn from(values: [(Metric, f64); N]) -> Metrics {
        Metrics { values: values.into(), parts: Vec::new() }
    }
}

/// In a checkpoint: pairs of a name and a value, where null is not finite.
impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(self.named().map(|(name, value)| (name, Some(value))))
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Metrics, D::Error> {
        let mut metrics = Metrics::default();
        for (name, value) in Vec::<(String, Option<f64>)>::deserialize(from)? {
            let value = value.unwrap_or(f64::NAN);
            if name.starts_with(PART) && (name.ends_with(MEAN) || name.ends_with(WEIGHT)) {
                metrics.parts.push((name, value));
            } else {
                metrics.values.push((name.parse().map_err(serde::de::Error::custom)?, value));
            }
        }
        Ok(metrics)
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Steps done in the whole run.
    pub global: u64,
    /// Name of the step's phase.
    pub phase: String,
    /// Step within the phase.
    pub step: u64,
    /// What was measured.
    pub metrics: Metrics,
}

/// Writes rows to all files as they come.
pub struct MetricsWriter {
    events: EventWriter,
    json: (PathBuf, File),
    csv: (PathBuf, File),
    /// Columns of the CSV file.
    columns: Columns,
}

impl MetricsWriter {
    /// Opens the files of `folder`, keeping the rows of the first `keep` steps: 0 for a new run, a
    /// checkpoint's step for a resumed one.
    pub fn open(folder: &Path, keep: u64) -> Result<MetricsWriter> {
        let (json, csv) = (folder.join("metrics.jsonl"), folder.join("metrics.csv"));
        let goes_on = keep > 0 && json.exists();
        let before = if goes_on { read_text(&json, LIMIT)? } else { String::new() };
        let early = |row: &Map<String, Value>| {
            row.get("global").and_then(Value::as_u64).is_some_and(|global| global < keep)
        };
        let (lines, kept): (Vec<&str>, Vec<_>) =
            rows(&before).filter(|(_, row)| early(row)).unzip();
        if kept.len() as u64 != keep {
            let shown = kept.len();
            progress::line(&format!("  {}: {shown} of {keep} rows are there", json.display()));
        }
        let lines: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
        atomic::write(&json, lines.as_bytes())?;
        let mut columns = Columns::default();
        for row in &kept {
            columns.meet(row);
        }
        atomic::write(&csv, columns.table(&kept).as_bytes())?;
        let events = EventWriter::create(folder, keep)?;
        Ok(MetricsWriter { events, json: append(json)?, csv: append(csv)?, columns })
    }

    /// Appends a row to all files.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut object = Map::new();
        object.insert("global".into(), json!(row.global));
        object.insert("phase".into(), json!(row.phase));
        object.insert("step".into(), json!(row.step));
        for (name, value) in row.metrics.named() {
            let value = if value.is_finite() { json!(value) } else { Value::Null };
            object.insert(name.into(), value);
        }
        let more = self.columns.meet(&object);
        let csv = self.columns.line(&object);
        let line = Value::Object(object).to_string() + "\n";
        let (path, file) = &mut self.json;
        file.write_all(line.as_bytes()).map_err(Error::io(path.clone()))?;
        let (path, file) = &mut self.csv;
        match more {
            false => file.write_all(csv.as_bytes()).map_err(Error::io(path.clone()))?,
            true => {
                let text = read_text(&self.json.0, LIMIT)?;
                let all: Vec<_> = rows(&text).map(|(_, row)| row).collect();
                atomic::write(path, self.columns.table(&all).as_bytes())?;
                self.csv = append(path.clone())?;
            }
        }
        self.events.write(row.global, &row.metrics)
    }

    /// Waits until all rows are on the disk, as a checkpoint that counts on them will be.
    pub fn sync(&self) -> Result<()> {
        for (path, file) in [&self.json, &self.csv] {
            file.sync_data().map_err(Error::io(path))?;
        }
        self.events.sync()
    }
}

fn append(path: PathBuf) -> Result<(PathBuf, File)> {
    let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
    Ok((path, file))
}

/// The rows of JSON lines, each with its line. A kill can leave half a line at the end, which belongs to a step
/// that is redone.
fn rows(text: &str) -> impl Iterator<Item = (&str, Map<String, Value>)> {
    text.lines().filter_map(|line| match serde_json::from_str(line) {
        Ok(Value::Object(row)) => Some((line, row)),
        Ok(_) | Err(_) => None,
    })
}

/// The columns of the CSV file: those of every run, then those of this one.
#[derive(Default)]
struct Columns {
    own: Vec<String>,
}

impl Columns {
    /// Takes up the columns of a row that are new; whether there are some.
    fn meet(&mut self, row: &Map<String, Value>) -> bool {
        let new =
            |name: &&String| name.starts_with(PART) && !self.all().any(|known| known == *name);
        let new: Vec<String> = row.keys().filter(new).cloned().collect();
        self.own.extend(new.iter().cloned());
        !new.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        let metrics = Metric::ALL.iter().map(|metric| metric.name());
        let begin = ["global", "phase", "step"].into_iter().chain(metrics);
        begin.chain(self.own.iter().map(String::as_str))
    }

    /// The head and all rows.
    fn table(&self, rows: &[Map<String, Value>]) -> String {
        let head = self.all().map(cell).collect::<Vec<_>>().join(",") + "\n";
        head + &rows.iter().map(|row| self.line(row)).collect::<String>()
    }

    fn line(&self, row: &Map<String, Value>) -> String {
        let value = |name: &str| match row.get(name) {
            Some(Value::String(text)) => cell(text),
            Some(Value::Null) | None => String::new(),
            Some(value) => value.to_string(),
        };
        self.all().map(value).collect::<Vec<_>>().join(",") + "\n"
    }
}

/// A text as a cell (RFC 4180).
fn cell(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_reward_are_in_the_rows_and_in_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(folder.path(), 0).unwrap();
        let mut metrics = Metrics::from([(Metric::Reward, 1.5)]);
        metrics.push_rewards(&Scores {
            parts: vec![vec![("exact".into(), 0.5), ("loss".into(), 2.0)]],
            weights: vec![("exact".into(), 0.25)],
            ..Scores::default()
        });
        let row = Row { global: 0, phase: "rl".into(), step: 0, metrics };
        writer.write(&row).unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["reward"], 1.5);
        assert_eq!(read["rewards/exact/mean"], 0.5);
        assert_eq!(read["rewards/exact/weight"], 0.25);
        // A part may have the name of a metric.
        assert_eq!((&read["rewards/loss/mean"], &read["loss"]), (&json!(2.0), &Value::Null));
        let saved = serde_json::to_string(&row.metrics).unwrap();
        assert_eq!(serde_json::from_str::<Metrics>(&saved).unwrap(), row.metrics);
        assert!(serde_json::from_str::<Metrics>(r#"[["no such metric", 1.0]]"#).is_err());
    }
    /// The CSV file has the columns of the JSON lines, also those that come later; a resumed run ends in the
    /// same file.
    #[test]
    fn columns_of_the_csv_file_grow_with_the_parts() {
        let folder = tempfile::tempdir().unwrap();
        let row = |global: u64, parts: &[(&str, f32)]| {
            let mut metrics = Metrics::from([(Metric::Reward, global as f64)]);
            let parts = parts.iter().map(|&(name, x)| (name.to_string(), x)).collect();
            metrics.push_rewards(&Scores { parts: vec![parts], ..Scores::default() });
            Row { global, phase: "rl".into(), step: global, metrics }
        };
        let rows =
            [row(0, &[]), row(1, &[("b", 1.0)]), row(2, &[("a,\"", 2.0)]), row(3, &[("b", 3.0)])];
        let read = || std::fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        let mut writer = MetricsWriter::open(folder.path(), 0).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        let whole = read();
        let lines: Vec<&str> = whole.lines().collect();
        assert!(lines[0].ends_with(r#",rewards/b/mean,"rewards/a,""/mean""#), "{whole}");
        for (line, end) in lines[1..].iter().zip([",,", ",1.0,", ",,2.0", ",3.0,"]) {
            assert!(line.ends_with(end), "{line}");
        }
        let mut writer = MetricsWriter::open(folder.path(), 2).unwrap();
        assert!(read().lines().next().unwrap().ends_with(",rewards/b/mean"), "{}", read());
        rows[2..].iter().for_each(|row| writer.write(row).unwrap());
        assert_eq!(read(), whole);
    }
}
