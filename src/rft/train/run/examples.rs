//! `samples.jsonl`: what the model said to the first held-out prompts, a row per evaluation.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::io::atomic;
use crate::io::json::read_text;
use crate::train::run::summary::SampleLine;
use gradus::error::{Error, Result};

/// Name of the file in a run folder.
pub const FILE: &str = "samples.jsonl";

/// Most bytes of rows that are read again.
const LIMIT: u64 = 1 << 32;

/// An evaluation's row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Examples {
    /// Steps done in the whole run.
    pub global: u64,
    /// Name of the phase; empty before the first and behind the last.
    pub phase: String,
    /// Mean score of all held-out completions; none where nothing was scored.
    pub score: Option<f64>,
    /// The first of them.
    pub samples: Vec<SampleLine>,
}

/// The file, which is there from the first row on.
#[derive(Debug)]
pub(crate) struct ExamplesWriter {
    path: PathBuf,
    last: Option<Examples>,
}

impl ExamplesWriter {
    /// The file in `folder` with its first `keep` rows: 0 for a new run, as many as its checkpoint counts for
    /// a resumed one.
    pub fn open(folder: &Path, keep: u64) -> Result<ExamplesWriter> {
        let path = folder.join(FILE);
        if path.exists() {
            let text = read_text(&path, LIMIT)?;
            let kept: String = whole_lines(&text).take(keep as usize).collect();
            atomic::write(&path, kept.as_bytes())?;
        }
        let last = Examples::read(folder)?.pop();
        Ok(ExamplesWriter { path, last })
    }

    /// Appends a row, unless it says what the last one says after as many steps: a run ends with the evaluation
    /// of its last step. Returns whether it did.
    pub fn write(&mut self, row: Examples) -> Result<bool> {
        let again = |last: &Examples| (last.global, &last.samples) == (row.global, &row.samples);
        if self.last.as_ref().is_some_and(again) {
            return Ok(false);
        }
        let line = serde_json::to_string(&row)
            .map_err(|e| Error::format(&self.path, format!("samples: {e}")))?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all((line + "\n").as_bytes()))
            .map_err(Error::io(&self.path))?;
        self.last = Some(row);
        Ok(true)
    }
}

impl Examples {
    /// The rows of the run in `folder`; none where it has no such file. A row that was not written to its end
    /// is left out.
    ///
    /// # Errors
    /// `Io`; `Format` for a row that is none, with its line.
    pub fn read(folder: &Path) -> Result<Vec<Examples>> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = read_text(&path, LIMIT)?;
        let row = |(i, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|e| Error::format(&path, format!("line {}: {e}", i + 1)))
        };
        whole_lines(&text).enumerate().map(row).collect()
    }
}

/// Lines that were written to their end.
pub(crate) fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter(|line| line.ends_with('\n'))
}
