//! The phase `value_fit`: the critic learns the returns of the collected rollouts.

use crate::train::config::readers::Reader;
use crate::train::critic::Critic;
use crate::train::phase::{Neighbors, Phase, PhaseSpec, refused};
use crate::train::run::Run;
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::recipe::Recipe;
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::presets::{self, Estimator};

pub(crate) struct ValueFit;

impl PhaseSpec for ValueFit {
    const SECTION: &'static str = "value";
    const STEPS: &'static str = "value.fit_steps";
    const READERS: &'static [&'static [Reader]] = &[&[Reader::ValueFit]];

    fn check(at: &Neighbors<'_>) -> Result<()> {
        if at.before() != Some(Phase::Collect) {
            let needs = "fits what the phase `collect` right before it gathered";
            return refused(format!("`value_fit` {needs}; put `collect` before it"));
        }
        for plan in at.plans {
            if Recipe::of(&plan.config, 1.0)?.estimator == Estimator::Gae {
                return Ok(());
            }
        }
        refused("`value_fit` fits the critic that only rl.advantage = gae has")
    }

    fn steps<T: Float>(trainer: &Trainer<T>) -> u64 {
        trainer.config.value.fit_steps as u64
    }

    /// The critic learns from rollouts of the `collect` before it alone. They are not in a checkpoint:
    /// after a resume they are drawn again, under the settings of that phase.
    fn enter<T: Float>(run: &mut Run<T>) -> Result<()> {
        if run.trainer.collected.is_some() {
            return Ok(());
        }
        run.in_phase_before(|trainer| {
            let steps = trainer.config.value.collect_steps as u64;
            steps.checked_sub(1).map_or(Ok(()), |last| trainer.gather(last).map(|_| ()))
        })
    }

    fn step<T: Float>(run: &mut Run<T>, _: u64) -> Result<Metrics> {
        run.trainer.value_fit_step()
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        let records = probe.rollouts()?;
        let settings = presets::sft().settings;
        let objective = probe.trainer.rl_objective(&settings);
        probe.update(records, objective)
    }
}

impl<T: Float> Trainer<T> {
    /// One critic step on everything that was collected.
    ///
    /// # Errors
    /// `Training` if nothing was.
    pub fn value_fit_step(&mut self) -> Result<Metrics> {
        let rate = self.config.value.learning_rate;
        let device = self.model.device.clone();
        let hidden = self.model.config.hidden;
        let critic = self.critic.get_or_insert_with(|| Critic::new(hidden));
        let batch = self.collected.get_or_insert_default();
        match critic.update(&device, batch, rate, f64::INFINITY)? {
            Some(fit) => Ok(Metrics::from([
                (Metric::ValueLoss, fit.loss),
                (Metric::ExplainedVariance, fit.explained_variance),
            ])),
            None => {
                let reason = "the critic has nothing to learn from: no completion that `collect` \
                              gathered has a reward";
                Err(Error::Training { reason: reason.into() })
            }
        }
    }
}
