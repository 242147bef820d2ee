//! What an RL step says of itself.

use crate::io::interrupt;
use crate::train::critic::CriticFit;
use crate::train::phase::acts::RlBatch;
use crate::train::run::metrics::{Metric, Metrics};
use crate::train::trainer::Trainer;
use crate::train::update::optimizer::Updated;
use crate::train::update::recipe::Recipe;
use crate::train::update::record::{Record, ScoredTokens};
use crate::train::update::step::BatchFigures;
use gradus::dtype::Float;
use gradus::error::Result;

/// What a step has measured so far.
#[derive(Default)]
pub(super) struct StepLog {
    pub metrics: Metrics,
    pub sampled: SampledTotals,
    /// Largest |ratio − 1| of the first update.
    first_deviation: Option<f64>,
    /// Figures of the last update.
    last: Option<(BatchFigures, Updated)>,
    fitted: Option<CriticFit>,
}

impl StepLog {
    /// Takes the figures of an update.
    pub fn updated(&mut self, figures: BatchFigures, updated: Updated, fit: Option<CriticFit>) {
        self.first_deviation.get_or_insert(figures.ratio_max_abs_dev);
        self.last = Some((figures, updated));
        self.fitted = fit.or(self.fitted.take());
    }
}

impl<T: Float> Trainer<T> {
    /// Puts into buffers what goes there, and makes the metrics of the step. All of it is done before a signal
    /// is heard.
    pub(super) fn log(
        &mut self,
        step: u64,
        recipe: &Recipe,
        batch: RlBatch,
        log: StepLog,
    ) -> Result<Metrics> {
        let StepLog { mut metrics, sampled, first_deviation, last, fitted } = log;
        let _finishing = batch.moved.unwrap_or_else(interrupt::hold);
        self.put_aside(batch.aside, &mut metrics);
        self.then(&mut metrics)?;
        if let Some(fit) = fitted {
            metrics.push(Metric::ValueLoss, fit.loss);
            metrics.push(Metric::ExplainedVariance, fit.explained_variance);
        }
        if let Some((figures, updated)) = last {
            metrics.extend(policy_metrics(&figures, &sampled, recipe));
            metrics.push(Metric::GradNorm, updated.grad_norm);
            metrics.push(Metric::LearningRate, self.rl_update(step).learning_rate);
        }
        metrics.push(Metric::RatioMaxAbsDev, first_deviation.unwrap_or(0.0));
        Ok(metrics)
    }
}

/// Sums over all scored tokens of all completions, before the step's updates.
#[derive(Default)]
pub(super) struct SampledTotals {
    tokens: usize,
    entropy: f64,
    /// k3 to the reference; none without one.
    kl: Option<f64>,
}

impl SampledTotals {
    pub fn of(records: &[Record]) -> SampledTotals {
        let scored = ScoredTokens::of(records);
        let entropy = scored.gather(records, |r| &r.entropy).into_iter().map(f64::from).sum();
        let old = scored.gather(records, Record::old_logp);
        let k3 = |(old, reference): (&f32, f32)| {
            let k = reference as f64 - *old as f64;
            k.exp_m1() - k
        };
        let kl = scored.gather_all(records, |r| &r.ref_logp);
        let kl = kl.map(|column| old.iter().zip(column).map(k3).sum());
        SampledTotals { tokens: scored.len(), entropy, kl }
    }
}

/// Means over the tokens of all completions, under TRL's names, and over those of the update. A mean
/// over nothing is NaN, and the metrics files hold null.
fn policy_metrics(figures: &BatchFigures, sampled: &SampledTotals, recipe: &Recipe) -> Metrics {
    let (s, n, all) = (&figures.stats, figures.tokens as f64, sampled.tokens as f64);
    // Tokens that are left out have advantage 0 and are clipped on neither side.
    let (low, high) = (s.n_clip_lo as f64, s.n_clip_hi as f64);
    // A KL in the loss leaves nothing out, so that the update has seen every token that was kept.
    let kl = match recipe.settings.needs_reference() && figures.tokens == sampled.tokens {
        true => s.sum_kl[2] / all,
        false => sampled.kl.map_or(f64::NAN, |sum| sum / all),
    };
    let moved_kl = if sampled.kl.is_some() { s.sum_kl[2] / n } else { f64::NAN };
    let mut metrics = Metrics::from([
        (Metric::Loss, figures.loss),
        (Metric::Kl, kl),
        (Metric::Entropy, sampled.entropy / all),
        (Metric::ClipLow, low / all),
        (Metric::ClipHigh, high / all),
        (Metric::ClipRegion, (low + high) / all),
        (Metric::UpdateTokens, n),
        (Metric::UpdateComputed, figures.computed as f64),
        (Metric::UpdateKl, moved_kl),
        (Metric::UpdateEntropy, s.sum_entropy / n),
        (Metric::UpdateClip, (low + high) / n),
    ]);
    if let Some(preferred) = figures.preferred {
        metrics.push(Metric::RewardMargins, preferred.margin);
        metrics.push(Metric::RewardAccuracies, preferred.accuracy);
    }
    metrics
}
