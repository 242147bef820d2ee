//! What a step does with its records beside learning from them: it chooses, stores and replays them,
//! and lets a phase learn from a buffer that is full.

use crate::train::config::Drawn;
use crate::train::phase::acts::groups;
use crate::train::phase::advantages::Advantages;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::select::{Candidate, Selection};
use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use crate::train::update::step::score_records;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::rng::{Purpose, Rng};

/// Draws of replayed groups have this first coordinate among those of [`Purpose::Shuffle`].
const REPLAY: u32 = 2;

/// Epochs of the phase in `rl.then` are counted from here, far above those of any other phase, and
/// behind the updates that it has made: no order of records is drawn twice.
const INNER_EPOCHS: u64 = 1 << 31;

/// What is put into buffers once a step can no longer be interrupted, so that a step that is done
/// again finds them as they were.
#[derive(Debug, Default)]
pub(super) struct Aside {
    stored: Vec<Record>,
    diverted: Vec<Record>,
    remembered: Vec<Record>,
}

impl<T: Float> Trainer<T> {
    /// Flags of the records that the step learns from, and what it keeps of its own `fresh` ones, which
    /// come first. Replayed groups behind them are beyond `rl.dynamic_sampling`.
    ///
    /// # Errors
    /// `Config` for a prompt that is to be diverted and has no demonstration.
    pub(super) fn sift(
        &self,
        records: &[Record],
        fresh: usize,
        advantages: &Advantages,
        metrics: &mut Metrics,
    ) -> Result<(Vec<bool>, Aside)> {
        let rl = &self.config.rl;
        let rule = rl.selection();
        let candidates = Candidate::all(records, &advantages.of_records(records));
        let mut flags = rule.flags(&candidates[..fresh]);
        flags.extend(Selection { prompts: None, ..rule }.flags(&candidates[fresh..]));
        let mut aside = Aside::default();
        if !rule.is_all() {
            let kept = flags.iter().filter(|&&flag| flag).count();
            metrics.push(Metric::KeptShare, kept as f64 / records.len().max(1) as f64);
        }
        if !rl.store.is_empty() {
            let kept =
                records[..fresh].iter().zip(&flags).filter(|(r, f)| **f && !r.reward.is_nan());
            aside.stored = kept.map(|(record, _)| record.clone()).collect();
        }
        if !rl.divert.is_empty() {
            aside.diverted = self.failed(&records[..fresh])?;
            metrics.push(Metric::Diverted, aside.diverted.len() as f64);
        }
        if rl.replay_window > 0 {
            aside.remembered = records[..fresh].to_vec();
        }
        Ok((flags, aside))
    }

    /// Demonstrations of the prompts whose completions, as far as they have a reward, all failed.
    fn failed(&self, records: &[Record]) -> Result<Vec<Record>> {
        let most = self.config.rl.divert_below.or(0.0);
        let mut found = Vec::new();
        for group in records.chunk_by(|a, b| a.group == b.group) {
            let mut known = group.iter().filter(|r| !r.reward.is_nan()).peekable();
            if known.peek().is_some() && known.all(|r| r.reward as f64 <= most) {
                let demo = self.task.train_demo(group[0].row)?;
                let version = self.version;
                found.push(Record { row: group[0].row, version, ..self.demonstration(&demo)? });
            }
        }
        Ok(found)
    }

    /// Puts into buffers what a step has put aside.
    pub(super) fn put_aside(&mut self, aside: Aside, metrics: &mut Metrics) {
        let (rl, capacity) = (&self.config.rl, self.config.buffer.capacity);
        if !rl.store.is_empty() {
            let buffer = self.buffers.named(&rl.store);
            match rl.dedupe {
                true => drop(buffer.extend_distinct(aside.stored, capacity)),
                false => buffer.extend(aside.stored, capacity),
            }
            metrics.push(Metric::BufferSize, buffer.len() as f64);
        }
        if !rl.divert.is_empty() {
            self.buffers.named(&rl.divert).extend_distinct(aside.diverted, capacity);
        }
        if rl.replay_window > 0 {
            self.buffers.remember(aside.remembered, rl.replay_window);
        }
    }

    /// Appends groups of earlier batches to those of step `step`, so many that they are the share
    /// `rl.replay_share` of all, or all there are. What an older policy has sampled is scored with the
    /// present one.
    pub(super) fn replay(
        &self,
        step: u64,
        records: &mut Vec<Record>,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let rl = &self.config.rl;
        if rl.replay_window == 0 {
            return Ok(());
        }
        let wanted = rl.replay_share / (1.0 - rl.replay_share) * groups(records) as f64;
        let first = records.last().map_or(0, |record| record.group + 1);
        let step = self.before.steps + step;
        let words = [REPLAY, step as u32, (step >> 32) as u32];
        let mut rng = Rng::new(self.config.seed, Purpose::Shuffle, words);
        let mut old = self.buffers.replayed(wanted.round() as usize, first, &mut rng);
        let now = score_records(&self.model, &old, true, self.scoring())?;
        let (mut gap, mut tokens, mut age) = (0.0, 0, 0);
        for (record, now) in old.iter_mut().zip(now) {
            for t in record.scored() {
                gap += (now[t] as f64 - record.sampler_logp[t] as f64).abs();
                tokens += 1;
            }
            age += self.version - record.version;
            record.proximal_logp = now;
        }
        let n = old.len() as f64;
        metrics.push(Metric::ReplayShare, n / (n + records.len() as f64).max(1.0));
        metrics.push(Metric::ReplayAge, age as f64 / n);
        metrics.push(Metric::ReplayGap, gap / tokens as f64);
        records.append(&mut old);
        Ok(())
    }

    /// Lets the phase of `rl.then` learn from its buffer, if that has enough records. The phase has its
    /// own settings and an optimizer of its own, whose state goes on from one time to the next.
    ///
    /// # Errors
    /// What the phase meets.
    pub(super) fn then(&mut self, metrics: &mut Metrics) -> Result<()> {
        let Some(then) = self.config.rl.then()? else { return Ok(()) };
        if self.buffers.len_of(&then.buffer) < then.least {
            return Ok(());
        }
        let (_, inner) = self.config.phase_named(&then.phase)?;
        self.hold_inner()?;
        let outer = std::mem::replace(&mut self.config, inner);
        let drawn = Drawn { epochs: INNER_EPOCHS + self.inner_updates(), ..self.before };
        let before = std::mem::replace(&mut self.before, drawn);
        self.swap_optimizers();
        let learned = self.learn_source();
        self.swap_optimizers();
        (self.config, self.before) = (outer, before);
        let (records, loss) = learned?;
        metrics.push(Metric::InnerRecords, records as f64);
        metrics.push(Metric::InnerLoss, loss);
        Ok(())
    }

    /// Makes the optimizer of the phase in `rl.then`, if there is such a phase.
    pub(super) fn hold_inner(&mut self) -> Result<()> {
        if self.inner.is_none() && !self.config.rl.then.is_empty() {
            self.inner = Some(self.fresh_optimizer()?);
        }
        Ok(())
    }

    fn inner_updates(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.t)
    }

    fn swap_optimizers(&mut self) {
        if let Some(inner) = &mut self.inner {
            std::mem::swap(&mut self.optimizer, inner);
        }
    }

    /// All steps of an SFT phase on its buffer; how many records it had, and the loss of the last step.
    fn learn_source(&mut self) -> Result<(usize, f64)> {
        let mut loss = f64::NAN;
        for step in 0..self.sft_steps() {
            loss = self.sft_step(step)?.get(Metric::Loss).unwrap_or(f64::NAN);
        }
        let records = self.demos();
        self.drain_source()?;
        Ok((records, loss))
    }

    /// Empties the buffer that an SFT phase has learned from, if it is to be.
    pub(super) fn drain_source(&mut self) -> Result<()> {
        if let (Some(name), true) = (self.config.sft.buffer()?, self.config.sft.drain) {
            let buffer = self.buffers.named(name);
            buffer.take(buffer.len());
        }
        Ok(())
    }
}
