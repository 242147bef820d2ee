//! Named held-out sets, and the metric that names the best state of a run.

use std::collections::BTreeSet;
use std::path::Path;

use crate::train::config::{DataConfig, RunConfig};
use crate::train::run::metrics::Metric;
use gradus::error::{Error, Result};

impl DataConfig {
    /// The sets of `data.suites`: name and file, in order.
    ///
    /// # Errors
    /// `Config` for a text that is not `NAME=FILE`, and for a name that is there twice.
    pub(crate) fn suites(&self) -> Result<Vec<(&str, &Path)>> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let mut names = BTreeSet::new();
        let split = |text: &'_ String| -> Result<_> {
            let wrong = |reason: &str| {
                let reason = format!("`{}` {reason}", text.escape_debug());
                Error::config("data.suites", reason)
            };
            let parts = text.split_once('=').filter(|(name, file)| {
                !name.is_empty() && name.len() <= 64 && name.chars().all(fits) && !file.is_empty()
            });
            let (name, file) = parts.ok_or_else(|| {
                wrong("is not NAME=FILE with a name of letters, digits, `_`, `-` and `.`")
            })?;
            match names.insert(name.to_string()) {
                true => Ok((name.len(), file.len())),
                false => Err(wrong("has a name that is there before")),
            }
        };
        let lengths = self.suites.iter().map(split).collect::<Result<Vec<_>>>()?;
        let parts = self.suites.iter().zip(lengths);
        Ok(parts
            .map(|(text, (name, file))| (&text[..name], Path::new(&text[text.len() - file..])))
            .collect())
    }
}

impl RunConfig {
    /// Refuses sets that are none, and a best state by what no step measures.
    ///
    /// # Errors
    /// `Config`.
    pub(super) fn validate_suites(&self) -> Result<()> {
        self.data.suites()?;
        self.rl.changed()?;
        let best = &self.checkpoint.best;
        match best.is_empty() || best.parse::<Metric>().is_ok() {
            true => Ok(()),
            false => {
                let reason = format!("`{best}` is no metric, such as eval/accuracy");
                Err(Error::config("checkpoint.best", reason))
            }
        }
    }
}
