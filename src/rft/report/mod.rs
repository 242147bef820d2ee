//! What people look at: a page about a run, and runs side by side.
//!
//! [`report`] writes one HTML file with the curves, samples, settings and origins of one or several runs; it
//! loads nothing and runs no script, so that it can be sent around. [`compare`] says in the terminal in what
//! runs differ. Both read run folders, ended or under way, and change nothing in them.

mod chart;
mod page;
mod read;

use std::path::{Path, PathBuf};

use crate::io::atomic;
use gradus::error::{Error, Result};

use read::RunFiles;

/// Figures of the summary that are shown, with what they are called.
const FIGURES: [(&str, &str); 12] = [
    ("base_accuracy", "held-out score as it came"),
    ("sft_accuracy", "held-out score after SFT"),
    ("quantized_accuracy", "held-out score in 4 bits"),
    ("final_accuracy", "held-out score at the end"),
    ("final_error", "its standard error"),
    ("steps", "steps"),
    ("rl_steps", "RL steps"),
    ("flat_steps", "RL steps without a difference between rewards"),
    ("first_ratio_max_abs_dev", "largest |ratio - 1| of first updates"),
    ("train_seconds", "seconds"),
    ("rollout_tokens_per_second", "sampled tokens per second"),
    ("peak_memory", "peak memory in MiB"),
];

/// Most runs that are told apart by color.
const MOST: usize = chart::COLORS.len();

fn read(folders: &[PathBuf]) -> Result<Vec<RunFiles>> {
    if folders.is_empty() || folders.len() > MOST {
        let reason = format!("{} runs, expected 1 to {MOST}", folders.len());
        return Err(Error::config("run", reason));
    }
    folders.iter().map(|folder| RunFiles::read(folder)).collect()
}

/// Writes a page about the runs in `folders` to the file `out`, which is replaced if it is there.
///
/// # Errors
/// `Config` for no run or more than six; `Io`; `Format` for a folder that is no run's.
///
/// # Cost
/// Reads the runs' rows into memory; a page has some 20 KiB for each metric.
pub fn report(folders: &[PathBuf], out: &Path) -> Result<()> {
    atomic::write(out, page::page(&read(folders)?)?.as_bytes())
}

/// What the runs in `folders` come to and in what they differ, as a text table.
///
/// # Errors
/// As [`report`]; `Config` for a single run.
pub fn compare(folders: &[PathBuf]) -> Result<String> {
    let runs = read(folders)?;
    if runs.len() < 2 {
        return Err(Error::config("run", "1 run, expected two or more to compare"));
    }
    let mut rows = vec![(String::new(), runs.iter().map(|run| run.name.clone()).collect())];
    for (key, name) in FIGURES {
        let values: Vec<String> = runs.iter().map(|run| run.figure(key)).collect();
        if values.iter().any(|value| !value.is_empty()) {
            rows.push((name.into(), values));
        }
    }
    let mut text = columns(&rows);
    let settings = differing(&runs);
    text += match settings.is_empty() {
        true => "\nthe settings are the same\n",
        false => "\nsettings that differ\n",
    };
    text += &columns(&settings);
    for run in &runs[1..] {
        text += &format!("\n{}", parting(&runs[0], run));
    }
    Ok(text + "\n")
}

/// Keys whose values are not the same in all runs, in the order of the first.
fn differing(runs: &[RunFiles]) -> Vec<(String, Vec<String>)> {
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.settings) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let of = |run: &RunFiles, key: &String| {
        let found = run.settings.iter().find(|(known, _)| known == key);
        found.map_or("-".to_string(), |(_, value)| value.clone())
    };
    let row = |key: &String| (key.clone(), runs.iter().map(|run| of(run, key)).collect::<Vec<_>>());
    let rows = keys.into_iter().map(row);
    rows.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

/// Where the numbers of two runs part. The clock's do not count.
fn parting(a: &RunFiles, b: &RunFiles) -> String {
    let names = format!("{} and {}", a.name, b.name);
    for (x, y) in a.rows.iter().zip(&b.rows) {
        let differs = |key: &&String| !key.starts_with("time/") && x.get(*key) != y.get(*key);
        let first = x.keys().chain(y.keys()).find(differs);
        if let Some(key) = first {
            let step = x.get("global").map_or(String::new(), |at| at.to_string());
            return format!("{names}: the first difference is `{key}` in step {step}");
        }
    }
    match (a.rows.len(), b.rows.len()) {
        (x, y) if x == y => format!("{names}: the same numbers in all {x} steps"),
        (x, y) => format!("{names}: the same numbers in the {} steps that both have", x.min(y)),
    }
}

/// Rows in columns as wide as their texts; long texts are cut.
fn columns(rows: &[(String, Vec<String>)]) -> String {
    const WIDEST: usize = 40;
    let cut = |text: &str| match text.chars().count() > WIDEST {
        true => text.chars().take(WIDEST - 3).chain("...".chars()).collect(),
        false => text.to_string(),
    };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, values)| {
            std::iter::once(name.clone()).chain(values.iter().map(|v| cut(v))).collect()
        })
        .collect();
    let widths = (0..cells.first().map_or(0, Vec::len))
        .map(|i| cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let widths: Vec<usize> = widths.collect();
    let mut text = String::new();
    for row in &cells {
        let line: String =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}  ")).collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}
