//! Keys about selection, buffers and replay: what they mean together, and what they cannot mean.

use std::collections::BTreeMap;

use crate::train::config::{
    Auto, DataConfig, DistillSource, KeepKey, PhasePlan, RlConfig, RunConfig, SftConfig, SourceKey,
};
use crate::train::phase::Phase;
use crate::train::phase::scored::crosses;
use crate::train::phase::sft::check_buffer_warmup;
use crate::train::phase::written;
use crate::train::select::{Keep, Selection};
use crate::train::update::recipe::Recipe;
use gradus::error::{Error, Result};
use gradus::ops::presets::Estimator;

/// What `rl.then` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Then {
    /// The buffer that is looked at.
    pub buffer: String,
    /// Records that it must have.
    pub least: usize,
    /// The phase that learns them.
    pub phase: String,
}

impl SftConfig {
    /// The buffer that is learned from, if `sft.source` names one.
    ///
    /// # Errors
    /// `Config` for a source that is none.
    pub(crate) fn buffer(&self) -> Result<Option<&str>> {
        if self.source == "demos" {
            return Ok(None);
        }
        let Some(name) = self.source.strip_prefix("buffer:") else {
            let reason = format!("`{}` is not demos or buffer:NAME", self.source);
            return Err(Error::config("sft.source", reason));
        };
        named("sft.source", name).map(Some)
    }
}

impl RlConfig {
    /// The rules that choose what is kept.
    pub(crate) fn selection(&self) -> Selection {
        let keep = match self.keep {
            KeepKey::All => Keep::All,
            KeepKey::Best => Keep::Best,
            KeepKey::Top => Keep::Top(self.keep_share.or(0.2)),
            KeepKey::Threshold => Keep::Threshold(self.keep_threshold.or(1.0)),
            KeepKey::Positive => Keep::Positive,
        };
        let prompts = (self.dynamic_sampling > 0).then_some(self.prompts);
        Selection { prompts, distinct: self.dedupe, keep }
    }

    /// Whether any record outlives its batch.
    pub(crate) fn keeps_records(&self) -> bool {
        self.replay_window > 0 || !self.store.is_empty() || !self.divert.is_empty()
    }

    /// What `rl.then` asks for, if anything.
    ///
    /// # Errors
    /// `Config` for a text of another form.
    pub(crate) fn then(&self) -> Result<Option<Then>> {
        if self.then.is_empty() {
            return Ok(None);
        }
        let parts = self.then.split_once(':').and_then(|(condition, phase)| {
            let (name, least) = condition.split_once(">=")?;
            Some((name.trim(), least.trim().parse::<usize>().ok()?, phase.trim()))
        });
        let Some((name, least, phase)) = parts.filter(|(_, least, _)| *least > 0) else {
            let reason = format!("`{}` is not of the form `NAME >= N: PHASE`", self.then);
            return Err(Error::config("rl.then", reason));
        };
        let buffer = named("rl.then", name)?.to_string();
        Ok(Some(Then { buffer, least, phase: phase.into() }))
    }
}

/// A name that may stand in a checkpoint.
fn named<'a>(key: &str, name: &'a str) -> Result<&'a str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !name.is_empty() && name.len() <= 64 && name.chars().all(fits) {
        true => Ok(name),
        false => {
            let reason = format!(
                "`{}` is no name of a buffer: 1 to 64 letters, digits, `_` and `-`",
                name.escape_debug()
            );
            Err(Error::config(key, reason))
        }
    }
}

impl RunConfig {
    /// Refuses a template that nothing is written with, or that is none.
    fn validate_template(&self) -> Result<()> {
        if self.sft.source == "demos" {
            let reason =
                "writes records of a buffer; it means nothing without sft.source = buffer:NAME";
            return Err(Error::config("sft.template", reason));
        }
        written::check(&self.sft.template)
            .map_err(|error| Error::config("sft.template", error.to_string()))
    }

    /// Refuses keys of selection and buffers that mean nothing together.
    pub(super) fn validate_buffers(&self) -> Result<()> {
        let rl = &self.rl;
        self.sft.buffer()?;
        rl.then()?;
        for (key, name) in [
            ("rl.store", &rl.store),
            ("rl.divert", &rl.divert),
            ("rl.book", &rl.book),
            ("rl.prompts_of", &rl.prompts_of),
        ] {
            if !name.is_empty() {
                named(key, name)?;
            }
        }
        let set = |value: Auto| value.value().is_some();
        for (key, unused, needs) in [
            ("rl.keep_share", set(rl.keep_share) && rl.keep != KeepKey::Top, "rl.keep = top"),
            (
                "rl.keep_threshold",
                set(rl.keep_threshold) && rl.keep != KeepKey::Threshold,
                "rl.keep = threshold",
            ),
            ("rl.prompts_tau", set(rl.prompts_tau) && rl.prompts_of.is_empty(), "rl.prompts_of"),
            ("rl.divert_below", set(rl.divert_below) && rl.divert.is_empty(), "rl.divert"),
            (
                "rl.overlong_penalty",
                set(rl.overlong_penalty) && rl.overlong_buffer == 0,
                "rl.overlong_buffer",
            ),
            ("rl.book", !rl.book.is_empty() && rl.loss != "mml", "rl.loss = mml"),
            ("rl.book_demos", rl.book_demos && rl.book.is_empty(), "rl.book"),
            ("rl.replay_window", rl.replay_window > 0 && rl.replay_share == 0.0, "rl.replay_share"),
            ("rl.replay_share", rl.replay_share > 0.0 && rl.replay_window == 0, "rl.replay_window"),
        ] {
            if unused {
                let reason = format!("means nothing without {needs}");
                return Err(Error::config(key, reason));
            }
        }
        self.validate_records()?;
        self.validate_beginnings()?;
        if !self.sft.drain && self.sft.source == "demos" {
            let reason = "false means nothing without sft.source = buffer:NAME";
            return Err(Error::config("sft.drain", reason));
        }
        if !self.sft.template.is_empty() {
            self.validate_template()?;
        }
        // Any length does: the constant of `dr_grpo` is not looked at here.
        let estimator = Recipe::of(self, 1.0)?.estimator;
        if rl.keep == KeepKey::Positive && estimator == Estimator::Gae {
            let reason = "positive, but rl.advantage = gae has one advantage per token and none of \
                          a completion";
            return Err(Error::config("rl.keep", reason));
        }
        Ok(())
    }
}

impl RunConfig {
    /// Refuses keys about what is sampled where nobody samples, and keys that would tear apart what
    /// belongs together.
    fn validate_records(&self) -> Result<()> {
        let rl = &self.rl;
        let keys = [
            ("rl.keep", rl.keep != KeepKey::All),
            ("rl.dedupe", rl.dedupe),
            ("rl.dynamic_sampling", rl.dynamic_sampling > 0),
            ("rl.divert", !rl.divert.is_empty()),
            ("rl.prompts_of", !rl.prompts_of.is_empty()),
            ("rl.replay_window", rl.replay_window > 0),
            ("rl.overlong_buffer", rl.overlong_buffer > 0),
        ];
        for (i, (key, set)) in keys.into_iter().enumerate() {
            if set && i >= 2 && rl.source == SourceKey::Data {
                let reason = "is about completions of the policy, and rl.source = data has none";
                return Err(Error::config(key, reason));
            }
            if set && i < 6 && crosses(self)? {
                let reason =
                    "takes completions one by one, and `info_nce` needs those of a row together";
                return Err(Error::config(key, reason));
            }
        }
        Ok(())
    }
}

/// The buffers of a list of phases, from the first to the last.
#[derive(Default)]
struct Flow<'a> {
    /// Filled ones, with the phase and the key that fill them, and whether they are read.
    filled: BTreeMap<&'a str, (&'a str, &'static str, bool)>,
    /// The data whose prompts are in each of them.
    data: BTreeMap<&'a str, Vec<(&'a str, &'a DataConfig)>>,
}

impl<'a> Flow<'a> {
    fn fill(&mut self, plan: &'a PhasePlan, key: &'static str, name: &'a str) {
        if !name.is_empty() {
            self.filled.entry(name).or_insert((&plan.name, key, false));
            self.data.entry(name).or_default().push((&plan.name, &plan.config.data));
        }
    }

    fn read(&mut self, key: &str, name: &str) -> Result<()> {
        let Some((_, _, read)) = self.filled.get_mut(name) else {
            let reason = format!(
                "reads the buffer `{name}`, which no phase before fills by rl.store or rl.divert"
            );
            return Err(Error::config(key, reason));
        };
        *read = true;
        Ok(())
    }

    /// Prompts are asked by their numbers, which are those of the data that they came from.
    fn asks(&mut self, config: &RunConfig) -> Result<()> {
        let (key, name) = ("rl.prompts_of", &config.rl.prompts_of);
        if name.is_empty() {
            return Ok(());
        }
        self.read(key, name)?;
        let fillers = self.data.get(name.as_str()).into_iter().flatten();
        match fillers.into_iter().find(|(_, data)| **data != config.data) {
            None => Ok(()),
            Some((phase, _)) => {
                let reason = format!(
                    "asks the prompts of the buffer `{name}`, which `{phase}` fills from other data: \
                     both phases need the same [data]"
                );
                Err(Error::config(key, reason))
            }
        }
    }

    /// What learns from demonstrations may learn from a buffer.
    fn demos(&mut self, config: &RunConfig) -> Result<()> {
        match config.sft.buffer()? {
            Some(name) => self.read("sft.source", name),
            None => Ok(()),
        }
    }

    fn pass(&mut self, plan: &'a PhasePlan) -> Result<()> {
        let PhasePlan { kind, config, .. } = plan;
        match kind {
            Phase::Sft => self.demos(config),
            Phase::Distill => match config.distill.source {
                DistillSource::Demos => self.demos(config),
                DistillSource::Rollout => Ok(()),
            },
            Phase::Collect | Phase::Rl => {
                self.asks(config)?;
                self.fill(plan, "rl.store", &config.rl.store);
                self.fill(plan, "rl.divert", &config.rl.divert);
                if *kind == Phase::Rl && !config.rl.book.is_empty() {
                    self.read("rl.book", &config.rl.book)?;
                }
                match (kind, config.rl.then()?) {
                    (Phase::Rl, Some(then)) => {
                        self.read("rl.then", &then.buffer)?;
                        config.check_then(&then)
                    }
                    _ => Ok(()),
                }
            }
            Phase::Quantize | Phase::ValueFit => Ok(()),
        }
    }
}

impl RunConfig {
    /// Refuses a list of phases in which a buffer is read that nobody fills, or filled that nobody
    /// reads.
    ///
    /// # Errors
    /// `Config`.
    pub(super) fn check_flow(&self, plans: &[PhasePlan]) -> Result<()> {
        let mut flow = Flow::default();
        for plan in plans {
            flow.pass(plan).map_err(|error| self.in_phase(&plan.name, error))?;
        }
        match flow.filled.iter().find(|(_, (.., read))| !read) {
            None => Ok(()),
            Some((name, &(phase, key, _))) => {
                let reason = format!(
                    "fills the buffer `{name}`, which no phase reads by sft.source, rl.then, rl.book or \
                     rl.prompts_of"
                );
                Err(self.in_phase(phase, Error::config(key, reason)))
            }
        }
    }

    /// Refuses a phase in `rl.then` that cannot learn from its buffer.
    fn check_then(&self, then: &Then) -> Result<()> {
        let Then { buffer, phase, .. } = then;
        let wrong = |reason: String| Err(Error::config("rl.then", reason));
        let (kind, inner) = match self.phase_named(phase) {
            Err(Error::Config { key, reason }) if key == "phases" => return wrong(reason),
            named => named?,
        };
        if kind != Phase::Sft {
            return wrong(format!("`{phase}` is of the kind {}, not sft", kind.name()));
        }
        let source = format!("buffer:{buffer}");
        if inner.sft.source != source {
            let own = &inner.sft.source;
            return wrong(format!(
                "`{phase}` has sft.source = {own}; to learn from this buffer, {source}"
            ));
        }
        if inner.sft.fresh_optimizer {
            let reason = "true, but rl.then gives the phase an optimizer that goes on";
            return Err(self.in_phase(phase, Error::config("sft.fresh_optimizer", reason)));
        }
        check_buffer_warmup(&inner.sft)
            .and_then(|()| inner.validate_values())
            .map_err(|error| self.in_phase(phase, error))
    }
}
