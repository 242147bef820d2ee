//! The kinds of phases: a file and a row each. A run is a list of phases with the settings they read,
//! never a new loop; [`crate::train::config::RunConfig::plan`] makes it.
//!
//! | kind | what it does |
//! |---|---|
//! | `sft` | masked cross-entropy on demonstrations, all parameters |
//! | `quantize` | 4-bit weights, frozen; adapters attached |
//! | `collect` | rollouts with the policy as it is; nothing moves |
//! | `value_fit` | the critic learns the returns of the collected rollouts; the policy does not move |
//! | `rl` | rollouts, rewards, advantages, policy updates |
//! | `distill` | the policy learns a teacher's distributions |
//!
//! To add one, write a file with a `PhaseSpec` and add its row to the table below. The compiler asks
//! for the rest.

use crate::train::config::readers::Reader;
use crate::train::config::{Auto, Drawn, PhasePlan, RunConfig, choice};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::record::Record;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::GroupStats;

mod acts;
mod advantages;
mod asked;
pub(crate) mod begun;
mod book;
mod chosen;
mod collect;
mod covariance;
mod crossed;
mod distill;
mod keep;
mod log;
mod most;
mod overlong;
mod quantize;
pub mod rl;
pub(crate) mod scored;
mod sequence;
pub(crate) mod sft;
mod value_fit;
mod watched;
pub(crate) mod written;

/// What a phase does, for a file to say.
pub(crate) trait PhaseSpec {
    /// The section whose keys the table of a phase writes without a prefix.
    const SECTION: &'static str = "";

    /// The key that `steps` in the table of a phase stands for, if its section has none of that name.
    const STEPS: &'static str = "";

    /// The readers of keys that the phase has under some settings: its table may have values of its own
    /// for their keys.
    const READERS: &'static [&'static [Reader]] = &[];

    /// Whether the phase moves the policy.
    const TRAINS: bool = false;

    /// What the phase draws, so that the next one of its kind goes on behind it.
    fn draws(_: &RunConfig) -> Drawn {
        Drawn::default()
    }

    /// Refuses a list of phases in which this one cannot do its work where it stands.
    ///
    /// # Errors
    /// `Config`.
    fn check(_: &Neighbors<'_>) -> Result<()> {
        Ok(())
    }

    /// Steps of the phase.
    fn steps<T: Float>(trainer: &Trainer<T>) -> u64;

    /// Readies the trainer, also for a phase that was interrupted. What was collected for the critic
    /// is another policy's.
    ///
    /// # Errors
    /// What it meets.
    fn enter<T: Float>(run: &mut Run<T>) -> Result<()> {
        run.trainer.collected = None;
        Ok(())
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
    /// All phases of the run.
    pub plans: &'a [PhasePlan],
    /// Place of the phase among them.
    pub index: usize,
}

impl Neighbors<'_> {
    /// The phase itself.
    fn plan(&self) -> &PhasePlan {
        &self.plans[self.index]
    }

    /// What the phase before it does.
    fn before(&self) -> Option<Phase> {
        self.index.checked_sub(1).map(|i| self.plans[i].kind)
    }

    /// What the phase behind it does.
    fn after(&self) -> Option<Phase> {
        self.plans.get(self.index + 1).map(|plan| plan.kind)
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
            /// What a phase of a run does.
            Phase { $(#[doc = $doc] $phase = $name,)* }
        }

        impl Phase {
            pub(crate) fn section(self) -> &'static str {
                match self { $(Phase::$phase => <$spec>::SECTION,)* }
            }

            pub(crate) fn steps_key(self) -> &'static str {
                match self { $(Phase::$phase => <$spec>::STEPS,)* }
            }

            pub(crate) fn readers(self) -> impl Iterator<Item = &'static Reader> {
                let groups = match self { $(Phase::$phase => <$spec>::READERS,)* };
                groups.iter().copied().flatten()
            }

            pub(crate) fn trains(self) -> bool {
                match self { $(Phase::$phase => <$spec>::TRAINS,)* }
            }

            pub(crate) fn draws(self, config: &RunConfig) -> Drawn {
                match self { $(Phase::$phase => <$spec>::draws(config),)* }
            }

            pub(crate) fn check(self, at: &Neighbors<'_>) -> Result<()> {
                match self { $(Phase::$phase => <$spec>::check(at),)* }
            }

            pub(crate) fn steps<T: Float>(self, trainer: &Trainer<T>) -> u64 {
                match self { $(Phase::$phase => <$spec>::steps(trainer),)* }
            }

            pub(crate) fn enter<T: Float>(self, run: &mut Run<T>) -> Result<()> {
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
    /// A teacher's distributions are learned.
    Distill = "distill" => distill::Distill,
}

impl Phase {
    /// Whether the phase samples completions and may keep some.
    pub(crate) fn rolls_out(self) -> bool {
        match self {
            Phase::Collect | Phase::Rl => true,
            Phase::Sft | Phase::Quantize | Phase::ValueFit | Phase::Distill => false,
        }
    }
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
fn warmed_up(rate: f64, step: u64, warmup: u64) -> f64 {
    rate * ((step + 1) as f64 / warmup.max(1) as f64).min(1.0)
}

/// Steps of warm-up of a phase of `total` steps, of which it has `fitting` where the setting is auto.
fn warmup_steps(setting: Auto, fitting: u64, total: u64) -> u64 {
    match setting {
        Auto::Auto if fitting <= total => fitting,
        Auto::Auto => total / 10,
        Auto::Value(share) if share < 1.0 => (share * total as f64).ceil() as u64,
        Auto::Value(steps) => steps as u64,
    }
}

/// Refuses a warm-up that a phase of `total` steps ends in.
///
/// # Errors
/// `Config` under the name `key`, with both numbers.
fn check_warmup(key: &str, setting: Auto, total: u64) -> Result<()> {
    let steps = warmup_steps(setting, 0, total);
    if steps <= total || total == 0 {
        return Ok(());
    }
    let reason = format!(
        "{steps} steps, but the phase has {total}, so that the learning rate would never be reached; take \
         fewer, or a share of the phase, such as 0.1"
    );
    Err(Error::config(key, reason))
}

impl<T: Float> Trainer<T> {
    /// What rollouts and their rewards look like; without `groups`, only what says nothing of rewards.
    fn batch_metrics(&self, records: &[Record], groups: &[GroupStats]) -> Metrics {
        let n = records.len().max(1) as f64;
        let scored: Vec<f64> =
            records.iter().map(|r| r.reward as f64).filter(|r| !r.is_nan()).collect();
        // A mean over nothing is NaN, and the metrics files hold null.
        let mean = scored.iter().sum::<f64>() / scored.len() as f64;
        let std = groups.iter().map(|g| g.std).sum::<f64>() / groups.len().max(1) as f64;
        let degenerate = groups.iter().filter(|g| g.degenerate).count();
        let lengths: usize = records.iter().map(|r| r.scored().count()).sum();
        let clipped = records.iter().filter(|r| !r.finished).count();
        let mut metrics = Metrics::from([
            (Metric::Reward, mean),
            (Metric::RewardStd, std),
            (Metric::FracRewardZeroStd, degenerate as f64 / groups.len().max(1) as f64),
            (Metric::MeanLength, lengths as f64 / n),
            (Metric::ClippedRatio, clipped as f64 / n),
            (Metric::NumTokens, records.iter().map(|r| r.ids.len()).sum::<usize>() as f64),
        ]);
        if self.world.is_some() {
            let turns: usize = records.iter().map(Record::answers).sum();
            metrics.push(Metric::EpisodeTurns, turns as f64 / n);
        }
        metrics.extend(self.begun_metrics(records));
        metrics
    }
}
