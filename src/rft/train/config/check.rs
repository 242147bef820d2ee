//! What no run can have.

use std::collections::BTreeSet;

use crate::train::config::choice::refusal;
use crate::train::config::section::{Key, Section};
use crate::train::config::{Bounds, CombineKey, OptimizerKey, PhasePlan, RunConfig, keys};
use crate::train::inputs;
use crate::train::phase::{Neighbors, Phase};
use gradus::error::{Error, Result};

/// Refuses a text in `table` that is none of its key's choices, naming the key.
///
/// # Errors
/// `Config`.
pub(super) fn choices(table: &toml::Table) -> Result<()> {
    for Key { name, choices, .. } in keys().into_iter().filter(|key| !key.open) {
        let mut parts = name.split('.');
        let first = parts.next().and_then(|part| table.get(part));
        let Some(value) = parts.fold(first, |at, part| at.and_then(|at| at.get(part))) else {
            continue;
        };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let unknown = |text: &&str| choices.iter().all(|choice| choice.0 != *text);
        let wrong = items.iter().filter_map(toml::Value::as_str).find(unknown);
        if let Some(text) = wrong.filter(|_| !choices.is_empty()) {
            return Err(Error::config(&name, refusal(text, choices)));
        }
    }
    Ok(())
}

/// Most completions of a step: each has a record.
const MOST_COMPLETIONS: usize = 1 << 22;

impl RunConfig {
    /// Refuses values that no run can have, naming the key, and settings that no phase can have.
    pub fn validate(&self) -> Result<()> {
        self.validate_name()?;
        self.validate_values()?;
        for plan in self.plan()?.iter().filter(|plan| self.phase.contains_key(&plan.name)) {
            plan.config.validate_values().map_err(|error| self.in_phase(&plan.name, error))?;
        }
        Ok(())
    }

    /// All that a run refuses before it opens a model or data, and what else nobody can have meant: keys of `set`, those
    /// that somebody set, which nobody reads, and a fresh model that is frozen untrained.
    ///
    /// # Errors
    /// `Config`, as [`RunConfig::validate`], [`RunConfig::validate_phases`], [`RunConfig::refuse_unread`] and
    /// [`RunConfig::refuse_noise`].
    pub fn check_plan(&self, set: &BTreeSet<String>) -> Result<()> {
        self.validate()?;
        self.validate_phases()?;
        inputs::check(self)?;
        for plan in self.plan()? {
            inputs::check(&plan.config).map_err(|error| self.in_phase(&plan.name, error))?;
        }
        self.refuse_unread(set)?;
        self.refuse_noise(set)
    }

    pub(super) fn validate_values(&self) -> Result<()> {
        if self.model.path.is_empty() && !self.model.adapter.is_empty() {
            let reason = "belongs to a model from disk: set model.path";
            return Err(Error::config("model.adapter", reason));
        }
        if let Some((key, reason)) = self.out_of_range() {
            return Err(Error::config(&key, reason));
        }
        let completions = self.rl.prompts.saturating_mul(self.rl.group);
        if completions > MOST_COMPLETIONS {
            let reason = format!(
                "{} x rl.group = {} are {completions} completions a step; {MOST_COMPLETIONS} are the most",
                self.rl.prompts, self.rl.group
            );
            return Err(Error::config("rl.prompts", reason));
        }
        self.validate_mixture()?;
        self.validate_layers()?;
        self.validate_suites()?;
        self.validate_reward()?;
        self.validate_env()?;
        self.validate_buffers()
    }

    /// Refuses a list of phases that cannot be gone through in order, before the first of them.
    ///
    /// # Errors
    /// `Config`, with the phase and what it needs.
    pub fn validate_phases(&self) -> Result<()> {
        let plans = &self.plan()?;
        if plans.is_empty() {
            return Err(Error::config("phases", "empty: name at least one phase"));
        }
        let quantizes = plans.iter().any(|plan| plan.kind == Phase::Quantize);
        if !quantizes && !self.model.adapter.is_empty() {
            let reason = "is attached by the phase `quantize`, which `phases` does not have";
            return Err(Error::config("model.adapter", reason));
        }
        let distills = plans.iter().any(|plan| plan.kind == Phase::Distill);
        if !distills && !self.distill.teacher.is_empty() {
            let reason = "is read by the phase `distill`, which `phases` does not have";
            return Err(Error::config("distill.teacher", reason));
        }
        if !self.checkpoint.best.is_empty() && plans.iter().all(|plan| plan.kind != Phase::Rl) {
            let reason = "is measured by phases of the kind rl, which `phases` does not have";
            return Err(Error::config("checkpoint.best", reason));
        }
        self.trains()?;
        for (index, PhasePlan { name, kind, config, .. }) in plans.iter().enumerate() {
            config.trains().map_err(|error| self.in_phase(name, error))?;
            kind.check(&Neighbors { plans, index }).map_err(|error| match error {
                Error::Config { key, reason } if key == "phases" => Error::Config { key, reason },
                other => self.in_phase(name, other),
            })?;
        }
        self.check_flow(plans)
    }

    /// Something of the data is not held out.
    fn trains(&self) -> Result<()> {
        match self.data.heldout_share >= 1.0 && !self.data.path.is_empty() {
            true => Err(Error::config("data.heldout_share", "1 leaves nothing to train on")),
            false => Ok(()),
        }
    }

    /// Rates of blocks are those of moments beside the parameters.
    fn validate_layers(&self) -> Result<()> {
        let (sft, optim) = (&self.sft, self.rl.optim);
        for (key, set) in [
            ("sft.layer_decay", sft.layer_decay != 1.0),
            ("sft.freeze_share", sft.freeze_share != 0.0),
        ] {
            if set && optim != OptimizerKey::AdamW {
                let reason = format!("needs rl.optim = adamw, not {}", optim.name());
                return Err(Error::config(key, reason));
            }
        }
        Ok(())
    }

    /// A mixture needs both its keys.
    fn validate_mixture(&self) -> Result<()> {
        let data = &self.data;
        let (key, reason) = match (data.mix.is_empty(), data.mix_power == 1.0) {
            (true, true) | (false, false) => return Ok(()),
            (true, false) => ("data.mix_power", "means nothing without data.mix"),
            (false, true) => {
                ("data.mix", "changes nothing with data.mix_power = 1; take less, such as 0")
            }
        };
        Err(Error::config(key, reason))
    }

    /// Rewards are combined where there are some.
    fn validate_reward(&self) -> Result<()> {
        let reward = &self.reward;
        let set = [
            ("reward.combine", reward.combine != CombineKey::Sum),
            ("reward.clamp_parts", reward.clamp_parts != Bounds::None),
            ("reward.clamp", reward.clamp != Bounds::None),
        ];
        match set.into_iter().find(|(_, set)| *set && reward.functions.is_empty()) {
            Some((key, _)) => {
                Err(Error::config(key, "needs rewards to work on: name them in reward.functions"))
            }
            None => Ok(()),
        }
    }

    /// The name is the first part of a folder's name, and stays in `out`.
    fn validate_name(&self) -> Result<()> {
        let name = &self.name;
        let wrong = if name.is_empty() {
            "is empty"
        } else if name.len() > 128 {
            "is longer than 128 bytes"
        } else if name.starts_with('.') {
            "begins with a dot"
        } else if name.contains(['/', '\\', ':']) {
            "is more than the name of a folder"
        } else if name.chars().any(char::is_control) {
            "has control characters"
        } else {
            return Ok(());
        };
        Err(Error::config("name", format!("`{}` {wrong}", name.escape_debug())))
    }
}
