//! A run folder as a report reads it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::io::json::{parse_object, read_object, read_text};
use crate::train::run::examples::{Examples, whole_lines};
use gradus::error::{Error, Result};

/// Most bytes of a file that is read.
const LIMIT: u64 = 1 << 32;

/// What a run left.
pub(super) struct RunFiles {
    /// Name of its folder.
    pub name: String,
    pub folder: PathBuf,
    /// Keys of its configuration with their values, in the file's order.
    pub settings: Vec<(String, String)>,
    /// Rows of `metrics.jsonl`.
    pub rows: Vec<Map<String, Value>>,
    /// `summary.json`; none of a run that has not ended.
    pub summary: Option<Map<String, Value>>,
    /// Rows of `samples.jsonl`.
    pub examples: Vec<Examples>,
    /// What the run was made with: version, device, files with their hashes.
    pub made_with: Vec<(String, String)>,
}

impl RunFiles {
    /// Reads the run in `folder`, ended or under way.
    ///
    /// # Errors
    /// `Io`; `Format` for a folder that is no run's, and for files that are broken.
    pub fn read(folder: &Path) -> Result<RunFiles> {
        let at = folder.canonicalize().map_err(Error::io(folder))?;
        let metrics = at.join("metrics.jsonl");
        if !metrics.exists() {
            return Err(Error::format(folder, "no metrics.jsonl: this is no folder of a run"));
        }
        let summary = at.join("summary.json");
        let summary = summary.exists().then(|| read_object(&summary)).transpose()?;
        let name = at.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        Ok(RunFiles {
            name,
            settings: settings(&at.join("config.toml"))?,
            rows: rows(&metrics)?,
            summary,
            examples: Examples::read(&at)?,
            made_with: made_with(&at.join("run.json"))?,
            folder: at,
        })
    }

    /// (steps done, value) of a metric, where it was measured.
    pub fn series(&self, metric: &str) -> Vec<(f64, f64)> {
        let point = |row: &Map<String, Value>| {
            let value = row.get(metric)?.as_f64().filter(|value| value.is_finite())?;
            Some((row.get("global")?.as_f64()? + 1.0, value))
        };
        self.rows.iter().filter_map(point).collect()
    }

    /// Steps at which a phase began, with its name.
    pub fn phases(&self) -> Vec<(f64, String)> {
        let mut phases: Vec<(f64, String)> = Vec::new();
        for row in &self.rows {
            let phase = row.get("phase").and_then(Value::as_str).unwrap_or_default();
            if phases.last().is_none_or(|(_, last)| last != phase) {
                let global = row.get("global").and_then(Value::as_f64).unwrap_or_default();
                phases.push((global, phase.into()));
            }
        }
        phases
    }

    /// A figure of the summary as a text; empty where there is none.
    pub fn figure(&self, key: &str) -> String {
        match self.summary.as_ref().and_then(|summary| summary.get(key)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => match number.as_f64() {
                Some(bytes) if key == "peak_memory" => format!("{:.0}", bytes / (1 << 20) as f64),
                Some(value) if number.is_f64() => format!("{value:.4}"),
                _ => number.to_string(),
            },
            Some(other) => other.to_string(),
        }
    }
}

fn rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = read_text(path, LIMIT)?;
    // The last row of a run under way may not be there as a whole.
    let row = |(i, line): (usize, &str)| {
        parse_object(line.as_bytes())
            .map_err(|e| Error::format(path, format!("line {}: {e}", i + 1)))
    };
    whole_lines(&text).enumerate().map(row).collect()
}

fn settings(path: &Path) -> Result<Vec<(String, String)>> {
    let text = read_text(path, LIMIT)?;
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| Error::format(path, e.message().to_string()))?;
    let mut found = Vec::new();
    flatten("", &table, &mut found);
    Ok(found)
}

fn flatten(before: &str, table: &toml::Table, found: &mut Vec<(String, String)>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flatten(&format!("{before}{key}."), inner, found),
            value => found.push((format!("{before}{key}"), value.to_string())),
        }
    }
}

fn made_with(path: &Path) -> Result<Vec<(String, String)>> {
    let raw = read_object(path)?;
    let identity = raw.get("identity").and_then(Value::as_object);
    let Some(identity) = identity else {
        return Err(Error::format(path, "`identity` is missing"));
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut found = Vec::new();
    for (key, value) in identity {
        match value {
            // It is shown key by key.
            _ if key == "config" => {}
            Value::Object(files) => {
                found.extend(files.iter().map(|(name, hash)| (name.clone(), text(hash))));
            }
            value => found.push((key.clone(), text(value))),
        }
    }
    Ok(found)
}
