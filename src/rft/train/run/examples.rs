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
}

impl ExamplesWriter {
    /// The file in `folder` with its first `keep` rows: 0 for a new run, as many as its checkpoint counts for
    /// a resumed one.
    pub fn open(folder: &Path, keep: u64) -> Result<ExamplesWriter> {
        let path = folder.join(FILE);
        if path.exists() {
            let text = read_text(&path, LIMIT)?;
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let kept: String = lines.take(keep as usize).collect();
            atomic::write(&path, kept.as_bytes())?;
        }
        Ok(ExamplesWriter { path })
    }

    /// Appends a row.
    pub fn write(&self, row: &Examples) -> Result<()> {
        let line = serde_json::to_string(row)
            .map_err(|e| Error::format(&self.path, format!("samples: {e}")))?;
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all((line + "\n").as_bytes()))
            .map_err(Error::io(&self.path))
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
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let row = |(i, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|e| Error::format(&path, format!("line {}: {e}", i + 1)))
        };
        whole.enumerate().map(row).collect()
    }
}
