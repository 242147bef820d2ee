//! `metrics.jsonl`, `metrics.csv` and TensorBoard's event file: one row per step, TRL's names. Columns under `time/` are
//! wall-clock readings; all others are a function of the configuration alone.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::io::atomic;
use crate::io::json::read_text;
use crate::train::progress;
use crate::train::tensorboard::EventWriter;
use gradus::error::{Error, Result};

/// Most bytes of rows that a resumed run reads again.
const LIMIT: u64 = 1 << 32;

/// Columns of the CSV file, in order. JSON rows hold those that were measured.
pub const COLUMNS: [&str; 26] = [
    "loss",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "update/tokens",
    "update/kl",
    "update/entropy",
    "update/clip_ratio",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "skipped_steps",
    "rewards_failed",
    "value_loss",
    "explained_variance",
    "eval/accuracy",
    "ratio_max_abs_dev",
    "time/step_time",
    "time/tokens_per_second",
];

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Steps done in the whole run.
    pub global: u64,
    /// Phase of the step.
    pub phase: String,
    /// Step within the phase.
    pub step: u64,
    /// Measured columns.
    pub values: Vec<(&'static str, f64)>,
}

/// Writes rows to all files as they come.
pub struct MetricsWriter {
    events: EventWriter,
    json: (PathBuf, File),
    csv: (PathBuf, File),
}

impl MetricsWriter {
    /// Opens the files of `folder`, keeping the rows of the first `keep` steps: 0 for a new run, a
    /// checkpoint's step for a resumed one.
    pub fn open(folder: &Path, keep: u64) -> Result<MetricsWriter> {
        let (json, csv) = (folder.join("metrics.jsonl"), folder.join("metrics.csv"));
        let mut kept = 0;
        let mut rows = String::new();
        let mut lines = format!("global,phase,step,{}\n", COLUMNS.join(","));
        if keep > 0 && json.exists() {
            for line in read_text(&json, LIMIT)?.lines() {
                // A kill can leave half a line at the end; it belongs to a step that is redone.
                let Ok(Value::Object(row)) = serde_json::from_str(line) else { continue };
                if row.get("global").and_then(Value::as_u64).is_some_and(|g| g < keep) {
                    kept += 1;
                    rows.push_str(line);
                    rows.push('\n');
                    lines.push_str(&csv_line(&row));
                }
            }
        }
        if kept != keep {
            progress::line(&format!("  {}: {kept} of {keep} rows are there", json.display()));
        }
        atomic::write(&json, rows.as_bytes())?;
        atomic::write(&csv, lines.as_bytes())?;
        let append = |path: PathBuf| -> Result<(PathBuf, File)> {
            let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
            Ok((path, file))
        };
        let events = EventWriter::create(folder, keep)?;
        Ok(MetricsWriter { events, json: append(json)?, csv: append(csv)? })
    }

    /// Appends a row to all files.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut object = Map::new();
        object.insert("global".into(), json!(row.global));
        object.insert("phase".into(), json!(row.phase));
        object.insert("step".into(), json!(row.step));
        for (name, value) in &row.values {
            debug_assert!(COLUMNS.contains(name), "{name} is not a column");
            let value = if value.is_finite() { json!(value) } else { Value::Null };
            object.insert((*name).into(), value);
        }
        let csv = csv_line(&object);
        let line = Value::Object(object).to_string() + "\n";
        for ((path, file), text) in [(&mut self.json, line), (&mut self.csv, csv)] {
            file.write_all(text.as_bytes()).map_err(Error::io(path.clone()))?;
        }
        self.events.write(row.global, &row.values)
    }

    /// Waits until all rows are on the disk, as a checkpoint that counts on them will be.
    pub fn sync(&self) -> Result<()> {
        for (path, file) in [&self.json, &self.csv] {
            file.sync_data().map_err(Error::io(path))?;
        }
        self.events.sync()
    }
}

fn csv_line(row: &Map<String, Value>) -> String {
    let cell = |name: &str| match row.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(value) => value.to_string(),
    };
    let cells = ["global", "phase", "step"].into_iter().chain(COLUMNS).map(cell);
    cells.collect::<Vec<_>>().join(",") + "\n"
}
