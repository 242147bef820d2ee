//! What a run keeps and says beside its end: its best state, and scores on named sets.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::io::atomic;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::run::summary::{BestState, SuiteScores};
use crate::train::run::{Run, checkpoint};
use gradus::dtype::Float;
use gradus::error::{Error, Result};

impl<T: Float> Run<T> {
    fn best_folder(&self) -> PathBuf {
        self.folder.path().join("best")
    }

    /// After a step that evaluated: keeps the state if the metric of `checkpoint.best` has its largest value so
    /// far. What was largest is in every checkpoint, so that a run that resumes finds the same states best.
    pub(super) fn keep_best(&mut self, metrics: &Metrics) -> Result<()> {
        let name = &self.config.checkpoint.best;
        if name.is_empty() || metrics.get(Metric::EvalAccuracy).is_none() {
            return Ok(());
        }
        let metric = name.parse().map_err(|reason: String| {
            Error::config("checkpoint.best", format!("`{name}`: {reason}"))
        })?;
        let value = metrics.get(metric).filter(|value| value.is_finite());
        let known = self.figures.best.map(|(value, _)| value);
        let Some(value) = value.filter(|value| known.is_none_or(|known| *value > known)) else {
            return Ok(());
        };
        self.figures.best = Some((value, self.figures.global));
        let folder = self.best_folder();
        match fs::create_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::io(&folder))?,
        }
        let checkpoints = folder.join("checkpoints");
        let state = self.checkpoint(&checkpoints)?;
        checkpoint::save(&checkpoints, &state, 1)?;
        atomic::write(&folder.join("config.toml"), self.config.to_toml().as_bytes())?;
        self.export_to(&folder.join("adapter"))
    }

    /// The best state, if one is kept.
    pub(super) fn best(&self) -> Option<BestState> {
        let metric = self.config.checkpoint.best.clone();
        let folder = self.best_folder().to_string_lossy().into_owned();
        self.figures.best.map(|(value, step)| BestState { metric, value, step, folder })
    }

    /// Scores on the sets of `data.suites`, under the settings of the run: those before, and now.
    pub(super) fn suites(&mut self) -> Result<Vec<SuiteScores>> {
        self.trainer.leave(&self.config);
        let now = self.trainer.evaluate_suites()?;
        let before = self.figures.suites.clone().unwrap_or_default();
        let of = |name: &str| before.iter().find(|(known, _)| known == name).and_then(|(_, s)| *s);
        let each = |(name, its): (String, _)| SuiteScores::of(of(&name), name, &its);
        Ok(now.into_iter().map(each).collect())
    }
}
