//! The phases of a run: a file and a row each. A run is a list of phases with the settings they read,
//! never a new loop.
//!
//! | phase | what it does |
//! |---|---|
//! | `sft` | masked cross-entropy on demonstrations, all parameters |
//! | `quantize` | 4-bit weights, frozen; adapters attached |
//! | `collect` | rollouts with the policy as it is; nothing moves |
//! | `value_fit` | the critic learns the returns of the collected rollouts; the policy does not move |
//! | `rl` | rollouts, rewards, advantages, policy updates |
//!
//! To add one, write a file with a `PhaseSpec` and add its row to the table below. The compiler asks
//! for the rest.

use crate::train::config::{RunConfig, choice};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::GroupStats;

mod advantages;
mod collect;
mod covariance;
mod quantize;
pub mod rl;
mod sft;
mod value_fit;

/// What a phase does, for a file to say.
pub(crate) trait PhaseSpec {
    /// Refuses a list of phases in which this one cannot do its work where it stands.
    ///
    /// # Errors
    /// `Config`.
    fn check(_: &Neighbors<'_>) -> Result<()> {
        Ok(())
    }

    /// Steps of the phase.
    fn steps<T: Float>(trainer: &Trainer<T>) -> u64;

    /// Readies the trainer, also for a phase that was interrupted. A phase that ran before goes on in
    /// the stream of prompts and draws, and what was collected for the critic is another policy's.
    fn enter<T: Float>(run: &mut Run<T>) {
        run.trainer.pass = run.ran_before(run.phase());
        run.trainer.collected = None;
    }

    /// Called once, before the first step.
    fn begin<T: Float>(_: &mut Run<T>) {}

    /// One step. An `Interrupted` one has moved nothing, or is in the run's figures.
    ///
    /// # Errors
    /// What the step meets.
    fn step<T: Float>(run: &mut Run<T>, step: u64) -> Result<Metrics>;

    /// What stands between this phase and the next.
    ///
    /// # Errors
    /// What it meets.
    fn finish<T: Float>(_: &mut Run<T>) -> Result<()> {
        Ok(())
    }

    /// Asks for all the memory that a step may ask for, on a device that executes nothing.
    ///
    /// # Errors
    /// What the trainer refuses.
    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()>;
}

/// Where a phase stands in a run's list.
pub(crate) struct Neighbors<'a> {
    /// The run.
    pub config: &'a RunConfig,
    /// Place in `config.phases`.
    pub index: usize,
}

impl Neighbors<'_> {
    /// The phase before it.
    fn before(&self) -> Option<Phase> {
        self.index.checked_sub(1).map(|i| self.config.phases[i])
    }

    /// The phase behind it.
    fn after(&self) -> Option<Phase> {
        self.config.phases.get(self.index + 1).copied()
    }
}

/// The error of a list of phases.
fn refused<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::config("phases", reason.into()))
}

/// Makes the enum of the phases, and calls the one that a value names.
macro_rules! phases {
    ($(#[doc = $doc:literal] $phase:ident = $name:literal => $spec:ty,)*) => {
        choice! {
            /// A phase of a run.
            Phase { $(#[doc = $doc] $phase = $name,)* }
        }

        impl Phase {
            pub(crate) fn check(self, at: &Neighbors<'_>) -> Result<()> {
                match self { $(Phase::$phase => <$spec>::check(at),)* }
            }

            pub(crate) fn steps<T: Float>(self, trainer: &Trainer<T>) -> u64 {
                match self { $(Phase::$phase => <$spec>::steps(trainer),)* }
            }

            pub(crate) fn enter<T: Float>(self, run: &mut Run<T>) {
                match self { $(Phase::$phase => <$spec>::enter(run),)* }
            }

            pub(crate) fn begin<T: Float>(self, run: &mut Run<T>) {
                match self { $(Phase::$phase => <$spec>::begin(run),)* }
            }

            pub(crate) fn step<T: Float>(self, run: &mut Run<T>, step: u64) -> Result<Metrics> {
                match self { $(Phase::$phase => <$spec>::step(run, step),)* }
            }

            pub(crate) fn finish<T: Float>(self, run: &mut Run<T>) -> Result<()> {
                match self { $(Phase::$phase => <$spec>::finish(run),)* }
            }

            pub(crate) fn probe<T: Float>(self, probe: &mut Probe<T>) -> Result<()> {
                match self { $(Phase::$phase => <$spec>::probe(probe),)* }
            }
        }
    };
}

phases! {
    /// Cross-entropy on demonstrations.
    Sft = "sft" => sft::Sft,
    /// 4-bit weights, frozen, with adapters.
    Quantize = "quantize" => quantize::Quantize,
    /// Rollouts without updates.
    Collect = "collect" => collect::Collect,
    /// The critic learns from them.
    ValueFit = "value_fit" => value_fit::ValueFit,
    /// Rollouts, rewards, advantages, policy updates.
    Rl = "rl" => rl::Rl,
}

impl<T: Float> Trainer<T> {
    /// Counts steps that were skipped because something was not finite; too many in a row end the
    /// run.
    pub(crate) fn guard(&mut self, applied: bool, step: u64) -> Result<()> {
        self.skipped = if applied { 0 } else { self.skipped + 1 };
        if self.skipped < SKIP_LIMIT {
            return Ok(());
        }
        let reason = format!(
            "{SKIP_LIMIT} steps in a row had gradients that are not finite, the last was step {step}; \
             lower the learning rate"
        );
        Err(Error::Training { reason })
    }
}

/// Skipped steps in a row that a run survives.
const SKIP_LIMIT: usize = 3;

/// The learning rate of `step`, which rises in a straight line over the first `warmup` steps.
fn warmed_up(rate: f64, step: u64, warmup: usize) -> f64 {
    rate * ((step + 1) as f64 / warmup.max(1) as f64).min(1.0)
}

/// What rollouts and their rewards look like.
pub(crate) fn batch_metrics(records: &[Record], groups: &[GroupStats]) -> Metrics {
    let n = records.len().max(1) as f64;
    let scored: Vec<f64> =
        records.iter().map(|r| r.reward as f64).filter(|r| !r.is_nan()).collect();
    let mean = scored.iter().sum::<f64>() / scored.len().max(1) as f64;
    let std = groups.iter().map(|g| g.std).sum::<f64>() / groups.len().max(1) as f64;
    let degenerate = groups.iter().filter(|g| g.degenerate).count();
    let lengths: usize = records.iter().map(|r| r.scored().count()).sum();
    let clipped = records.iter().filter(|r| !r.finished).count();
    Metrics::from([
        (Metric::Reward, mean),
        (Metric::RewardStd, std),
        (Metric::FracRewardZeroStd, degenerate as f64 / groups.len().max(1) as f64),
        (Metric::MeanLength, lengths as f64 / n),
        (Metric::ClippedRatio, clipped as f64 / n),
        (Metric::NumTokens, records.iter().map(|r| r.ids.len()).sum::<usize>() as f64),
    ])
}
