//! What no run can have.

use crate::train::config::{Control, RunConfig, Schedule};
use crate::train::phases::Phase;
use crate::train::recipe::Recipe;
use gradus::error::{Error, Result};
use gradus::ops::presets::Estimator;

/// Longest text that ends a completion, in bytes: the end of a completion is looked at after every
/// token.
const STOP_LIMIT: usize = 256;

/// `value` is one of `allowed`.
fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("`{value}` is not one of {}", allowed.join(", "))))
}

fn within(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::config(key, format!("{value} is not in {}..={}", range.start(), range.end())))
}

impl RunConfig {
    /// Refuses values that no run can have, naming the key.
    pub fn validate(&self) -> Result<()> {
        self.dtype()?;
        self.residence()?;
        self.validate_name()?;
        one_of("task.name", &self.task.name, &["countdown"])?;
        self.nf4_options()?;
        Control::parse("rl.control", &self.rl.control)?;
        Schedule::parse("sft.lr_schedule", &self.sft.lr_schedule)?;
        Schedule::parse("rl.lr_schedule", &self.rl.lr_schedule)?;
        one_of("data.chat", &self.data.chat, &["auto", "on", "off"])?;
        self.phases.iter().try_for_each(|phase| Phase::parse(phase).map(|_| ()))?;
        for (key, value) in [("data.path", &self.data.path), ("model.adapter", &self.model.adapter)]
        {
            if self.model.path.is_empty() && !value.is_empty() {
                return Err(Error::config(key, "needs a model with a tokenizer: set model.path"));
            }
        }
        let blocksize = self.quantize.blocksize;
        if !(blocksize.is_power_of_two() && (32..=4096).contains(&blocksize)) {
            let reason = format!("{blocksize} is not a power of two from 32 to 4096");
            return Err(Error::config("quantize.blocksize", reason));
        }
        self.validate_counts()?;
        self.validate_numbers()?;
        // Any length does: the constant of `dr_grpo` is not looked at here.
        Recipe::of(self, 1.0).map(|_| ())
    }

    /// Refuses a list of phases that cannot be gone through in order, before the first of them.
    ///
    /// # Errors
    /// `Config`, with the phase and what it needs.
    pub fn validate_phases(&self) -> Result<()> {
        let refused = |reason: String| Err(Error::config("phases", reason));
        let phases = self.phases.iter().map(|p| Phase::parse(p)).collect::<Result<Vec<_>>>()?;
        if phases.is_empty() {
            return refused("empty: name at least one phase".into());
        }
        let count = |phase| phases.iter().filter(|&&p| p == phase).count();
        match count(Phase::Quantize) {
            0 if !self.model.adapter.is_empty() => {
                let reason = "is attached by the phase `quantize`, which `phases` does not have";
                return Err(Error::config("model.adapter", reason));
            }
            0 | 1 => {}
            n => return refused(format!("`quantize` {n} times: weights are quantized once")),
        }
        for (i, phase) in phases.iter().enumerate() {
            let (before, after) = (i.checked_sub(1).map(|i| phases[i]), phases.get(i + 1));
            match (phase, before, after) {
                (Phase::ValueFit, Some(Phase::Collect), _) => {}
                (Phase::ValueFit, _, _) => {
                    let needs = "fits what the phase `collect` right before it gathered";
                    return refused(format!("`value_fit` {needs}; put `collect` before it"));
                }
                (Phase::Collect, _, Some(Phase::ValueFit)) => {}
                (Phase::Collect, _, _) => {
                    let needs = "gathers for `value_fit`, which does not follow";
                    return refused(format!("`collect` {needs}"));
                }
                (Phase::Sft | Phase::Quantize | Phase::Rl, _, _) => {}
            }
        }
        if count(Phase::Collect) > 0 && self.value.collect_steps == 0 {
            let reason = "0, so the phase `collect` would gather nothing";
            return Err(Error::config("value.collect_steps", reason));
        }
        let critic = Recipe::of(self, 1.0)?.estimator == Estimator::Gae;
        if count(Phase::ValueFit) > 0 && !critic {
            return refused("`value_fit` fits the critic that only rl.advantage = gae has".into());
        }
        Ok(())
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

    fn validate_counts(&self) -> Result<()> {
        let (rl, sft, eval) = (&self.rl, &self.sft, &self.eval);
        let counts = [
            ("sft.demos", sft.demos, 0, 1 << 24),
            ("sft.batch", sft.batch, 1, 1 << 16),
            ("sft.epochs", sft.epochs, 0, 1 << 16),
            ("rl.prompts", rl.prompts, 1, 1 << 16),
            ("rl.group", rl.group, 1, 1 << 12),
            ("rl.updates_per_batch", rl.updates_per_batch, 1, 1 << 10),
            ("rl.micro_batch", rl.micro_batch, 1, 1 << 16),
            ("rl.slots", rl.slots, 0, 1 << 16),
            ("rl.max_new_tokens", rl.max_new_tokens, 0, 1 << 20),
            ("lora.rank", self.lora.rank, 1, 1 << 12),
            ("eval.every", eval.every, 1, usize::MAX >> 1),
            ("eval.max_prompts", eval.max_prompts, 1, 1 << 20),
            ("eval.samples", eval.samples, 1, 1 << 12),
            ("data.max_prompt_tokens", self.data.max_prompt_tokens, 1, 1 << 20),
            ("reward.workers", self.reward.workers, 0, 1 << 10),
            ("reward.retries", self.reward.retries, 0, 100),
            ("checkpoint.every", self.checkpoint.every, 1, usize::MAX >> 1),
            ("checkpoint.keep", self.checkpoint.keep, 1, 1 << 16),
            ("threads", self.threads, 0, 1 << 12),
        ];
        for (key, value, low, high) in counts {
            if !(low..=high).contains(&value) {
                return Err(Error::config(key, format!("{value} is not in {low}..={high}")));
            }
        }
        if let Some(stop) = rl.stop.iter().find(|stop| !(1..=STOP_LIMIT).contains(&stop.len())) {
            let reason = format!("`{stop}` is not a text of 1 to {STOP_LIMIT} bytes");
            return Err(Error::config("rl.stop", reason));
        }
        if rl.top_k < 0 {
            return Err(Error::config("rl.top_k", format!("{} is negative", rl.top_k)));
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<()> {
        let (rl, sft, value) = (&self.rl, &self.sft, &self.value);
        let tiny = f64::MIN_POSITIVE;
        within("rl.temperature", rl.temperature, 1e-3..=1e3)?;
        within("rl.top_p", rl.top_p, tiny..=1.0)?;
        within("rl.min_p", rl.min_p, 0.0..=1.0)?;
        within("rl.clip_low", rl.clip_low.or(0.0), 0.0..=1.0)?;
        within("rl.clip_high", rl.clip_high.or(0.0), 0.0..=1e6)?;
        within("rl.beta", rl.beta.or(0.0), 0.0..=1e6)?;
        within("lora.alpha", self.lora.alpha, tiny..=1e6)?;
        within("eval.temperature", self.eval.temperature, 0.0..=1e3)?;
        within("data.heldout_share", self.data.heldout_share, 0.0..=1.0)?;
        within("reward.timeout", self.reward.timeout, 1e-3..=86_400.0)?;
        within("reward.startup", self.reward.startup, 0.0..=86_400.0)?;
        within("value.gamma", value.gamma, 0.0..=1.0)?;
        within("value.lambda", value.lambda, 0.0..=1.0)?;
        for (key, rate) in [
            ("rl.learning_rate", rl.learning_rate.or(0.0)),
            ("sft.learning_rate", sft.learning_rate.or(0.0)),
            ("value.learning_rate", value.learning_rate),
        ] {
            within(key, rate, 0.0..=1e3)?;
        }
        within("value.clip", value.clip.or(1.0), tiny..=f64::INFINITY)?;
        for (key, beta) in
            [("rl.beta1", rl.beta1), ("rl.beta2", rl.beta2), ("sft.beta2", sft.beta2)]
        {
            within(key, beta, 0.0..=1.0 - 1e-12)?;
        }
        for (key, clip) in [("rl.grad_clip", rl.grad_clip), ("sft.grad_clip", sft.grad_clip)] {
            within(key, clip, tiny..=f64::INFINITY)?;
        }
        for (key, decay) in
            [("rl.weight_decay", rl.weight_decay), ("sft.weight_decay", sft.weight_decay)]
        {
            within(key, decay, 0.0..=1e3)?;
        }
        Ok(())
    }
}
