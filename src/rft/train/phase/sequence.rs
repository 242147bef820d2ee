//! Steps on sequence objectives. The gradient of such an objective goes through the log-probs of whole
//! completions alone. So the objective is asked once for ∂L/∂log π of each, and the update is then
//! REINFORCE with the advantages −∂L/∂log π: exact, however the batch is cut into micro-batches.

use crate::model::AdapterDropout;
use crate::train::phase::advantages::{Advantages, group_offsets};
use crate::train::trainer::Trainer;
use crate::train::update::record::{Record, ScoredTokens};
use crate::train::update::sequence::{Preference, SequenceKind, SequenceLoss};
use crate::train::update::step::{Preferred, Scoring, score_records};
use gradus::device::Device;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    BetaMmlLoss, CopgLoss, InfoNceLoss, KtoLoss, Pair, PrdpLoss, PreferenceLoss, PreferenceScore,
    beta_mml_loss, copg_loss, info_nce_loss, kto_loss, pairs_by_reward, prdp_loss, preference_loss,
};
use gradus::view::{View, ViewMut};

/// What an objective says of a batch.
#[derive(Debug)]
pub(super) struct Coefficients {
    /// −∂L/∂log π of each record, or of each scored token.
    pub advantages: Advantages,
    /// L, a mean over groups, pairs or completions.
    pub loss: f64,
    /// What a preference loss saw of the pairs.
    pub preferred: Option<Preferred>,
}

impl<T: Float> Trainer<T> {
    /// What a sequence objective says of a batch under the policy that is about to be updated. Before the
    /// `first` update of a step the log-probs are known, unless `dropout` masks some of the policy: the
    /// objective is then that of the masked policy, and so are the records' log-probs.
    ///
    /// # Errors
    /// What scoring and the ops meet.
    pub(super) fn compare(
        &mut self,
        loss: &SequenceLoss,
        records: &mut [Record],
        (first, dropout): (bool, Option<AdapterDropout>),
    ) -> Result<Coefficients> {
        let logp = match first && dropout.is_none() {
            true => records.iter().map(|r| r.old_logp().to_vec()).collect(),
            false => {
                score_records(&self.model, records, true, Scoring { dropout, ..self.scoring() })?
            }
        };
        if dropout.is_some() {
            records.iter_mut().zip(&logp).for_each(|(r, logp)| r.proximal_logp = logp.clone());
        }
        let kl = match loss.kind {
            SequenceKind::Kto { .. } => self.kl_estimate(records, &logp)?,
            SequenceKind::Copg
            | SequenceKind::Prdp { .. }
            | SequenceKind::Mml { .. }
            | SequenceKind::InfoNce
            | SequenceKind::Preference(_) => 0.0,
        };
        coefficients(&self.model.device, loss, records, &logp, kl)
    }
}

/// The records that the objective learns from: those that it compares with another, those that are
/// right, or all that have a reward.
pub(super) fn compared(loss: &SequenceLoss, records: &[Record]) -> Vec<bool> {
    let known = |r: &Record| !r.reward.is_nan();
    let mut kept: Vec<bool> = records.iter().map(known).collect();
    let offsets = group_offsets(records);
    for span in offsets.windows(2) {
        let span = span[0] as usize..span[1] as usize;
        let rewards = || records[span.clone()].iter().map(|r| r.reward).filter(|r| !r.is_nan());
        let (low, high) =
            (rewards().fold(f32::INFINITY, f32::min), rewards().fold(f32::NEG_INFINITY, f32::max));
        match loss.kind {
            // It reads no rewards.
            SequenceKind::InfoNce => span.for_each(|i| kept[i] = true),
            SequenceKind::Kto { .. } => {}
            SequenceKind::Mml { threshold } => {
                span.for_each(|i| kept[i] &= records[i].reward as f64 >= threshold);
            }
            SequenceKind::Copg => {
                let alone = rewards().count() < 2;
                span.for_each(|i| kept[i] &= !alone);
            }
            SequenceKind::Prdp { .. } => span.for_each(|i| kept[i] &= low < high),
            SequenceKind::Preference(_) => {
                let pair = [high, low].map(|end| span.clone().find(|&i| records[i].reward == end));
                span.for_each(|i| kept[i] &= low < high && pair.contains(&Some(i)));
            }
        }
    }
    kept
}

/// ∂L/∂log π under the log-probs `logp` of the records' tokens, which are those that
/// [`compared`] keeps; `kl` is the estimate of KL(π‖π_ref) that `kto` takes for its zero.
fn coefficients(
    device: &Device,
    loss: &SequenceLoss,
    records: &[Record],
    logp: &[Vec<f32>],
    kl: f64,
) -> Result<Coefficients> {
    let batch = Batch::of(loss, records, logp);
    if records.is_empty() {
        let advantages = Advantages::PerSequence(Vec::new());
        return Ok(Coefficients { advantages, loss: 0.0, preferred: None });
    }
    match loss.kind {
        SequenceKind::Copg => batch.copg(device, loss.beta),
        SequenceKind::Prdp { clip } => batch.prdp(device, loss.beta, clip),
        SequenceKind::Mml { .. } => batch.mml(device, loss.beta),
        SequenceKind::Kto { threshold, desirable, undesirable } => {
            batch.kto(device, loss.beta, threshold, [desirable, undesirable], kl)
        }
        SequenceKind::InfoNce => batch.info_nce(device),
        SequenceKind::Preference(preference) => batch.preference(device, loss.beta, preference),
    }
}

/// Mean of log π − log π_ref over the records, at least 0.
pub(super) fn mean_log_ratio(records: &[Record], logp: &[Vec<f32>]) -> f64 {
    let sums = records.iter().zip(logp).map(|(r, l)| sum(r, l) - sum(r, &r.ref_logp));
    (sums.sum::<f64>() / records.len().max(1) as f64).max(0.0)
}

/// Σ of a column over the scored tokens.
fn sum(record: &Record, column: &[f32]) -> f64 {
    record.scored().map(|t| column[t] as f64).sum()
}

/// Columns of the records, a sum per completion.
struct Batch<'a> {
    records: &'a [Record],
    tokens: &'a [Vec<f32>],
    logp: Vec<f64>,
    /// 0 where the objective takes no reference.
    reference: Vec<f64>,
    reward: Vec<f64>,
    offsets: Vec<i64>,
}

impl<'a> Batch<'a> {
    fn of(loss: &SequenceLoss, records: &'a [Record], tokens: &'a [Vec<f32>]) -> Batch<'a> {
        let reference = |r: &Record| if loss.needs_reference() { sum(r, &r.ref_logp) } else { 0.0 };
        Batch {
            records,
            tokens,
            logp: records.iter().zip(tokens).map(|(r, l)| sum(r, l)).collect(),
            reference: records.iter().map(reference).collect(),
            reward: records.iter().map(|r| r.reward as f64).collect(),
            offsets: group_offsets(records),
        }
    }

    fn groups(&self) -> usize {
        self.offsets.len() - 1
    }

    fn copg(&self, device: &Device, beta: f64) -> Result<Coefficients> {
        let mut out = Slopes::new(self.groups(), self.logp.len());
        let args = CopgLoss {
            logp: (&self.logp).into(),
            reference: Some((&self.reference).into()),
            reward: (&self.reward).into(),
            offsets: (&self.offsets).into(),
            beta,
            weight: None,
            loss: (&mut out.loss).into(),
            dlogp: (&mut out.dlogp).into(),
            total: Some((&mut out.total).into()),
        };
        copg_loss(device, args)?;
        Ok(out.per_sequence())
    }

    fn mml(&self, device: &Device, beta: f64) -> Result<Coefficients> {
        let mut out = Slopes::new(self.groups(), self.logp.len());
        let args = BetaMmlLoss {
            logp: (&self.logp).into(),
            offsets: (&self.offsets).into(),
            beta,
            weight: None,
            loss: (&mut out.loss).into(),
            dlogp: (&mut out.dlogp).into(),
            total: Some((&mut out.total).into()),
        };
        beta_mml_loss(device, args)?;
        Ok(out.per_sequence())
    }

    fn kto(
        &self,
        device: &Device,
        beta: f64,
        threshold: f64,
        [desirable_weight, undesirable_weight]: [f64; 2],
        kl: f64,
    ) -> Result<Coefficients> {
        let desirable: Vec<u8> = self.reward.iter().map(|&r| (r >= threshold) as u8).collect();
        let mut out = Slopes::new(self.logp.len(), self.logp.len());
        let args = KtoLoss {
            logp: (&self.logp).into(),
            reference: (&self.reference).into(),
            desirable: (&desirable).into(),
            beta,
            kl,
            desirable_weight,
            undesirable_weight,
            weight: None,
            loss: (&mut out.loss).into(),
            dlogp: (&mut out.dlogp).into(),
            total: Some((&mut out.total).into()),
        };
        kto_loss(device, args)?;
        Ok(out.per_sequence())
    }

    /// A group has two records, of which the one with the larger reward is chosen.
    fn preference(&self, device: &Device, beta: f64, loss: Preference) -> Result<Coefficients> {
        let first = |g: usize| self.offsets[g] as usize;
        let swapped = |g: usize| self.reward[first(g)] < self.reward[first(g) + 1];
        let chosen: Vec<usize> =
            (0..self.groups()).map(|g| first(g) + swapped(g) as usize).collect();
        let rejected: Vec<usize> =
            (0..self.groups()).map(|g| first(g) + !swapped(g) as usize).collect();
        let of = |column: &[f64]| Pair {
            chosen: chosen.iter().map(|&i| column[i]).collect::<Vec<f64>>(),
            rejected: rejected.iter().map(|&i| column[i]).collect::<Vec<f64>>(),
        };
        let length = |&i: &usize| self.records[i].scored().count() as i64;
        let lengths: [Vec<i64>; 2] =
            [&chosen, &rejected].map(|side| side.iter().map(length).collect());
        let (logp, reference) = (of(&self.logp), of(&self.reference));
        let pairs = self.groups();
        let mut rewards = Pair { chosen: vec![0f64; pairs], rejected: vec![0f64; pairs] };
        let (mut winner, mut loser) = (Slopes::new(pairs, pairs), vec![0f64; pairs]);
        let args = PreferenceLoss {
            logp: views(&logp),
            reference: loss.reference.then(|| views(&reference)),
            length: loss
                .mean
                .then(|| Pair { chosen: (&lengths[0]).into(), rejected: (&lengths[1]).into() }),
            kind: loss.kind,
            score: PreferenceScore::ReverseKl,
            beta,
            likelihood: loss.likelihood,
            weight: None,
            loss: (&mut winner.loss).into(),
            dlogp: Pair { chosen: (&mut winner.dlogp).into(), rejected: (&mut loser).into() },
            reward: Some(Pair {
                chosen: (&mut rewards.chosen).into(),
                rejected: (&mut rewards.rejected).into(),
            }),
            total: Some((&mut winner.total).into()),
        };
        preference_loss(device, args)?;
        let mut out = Slopes { dlogp: vec![0.0; self.logp.len()], ..winner.clone() };
        for (g, (&w, &l)) in chosen.iter().zip(&rejected).enumerate() {
            (out.dlogp[w], out.dlogp[l]) = (winner.dlogp[g], loser[g]);
        }
        let margins = rewards.chosen.iter().zip(&rewards.rejected).map(|(w, l)| w - l);
        let right = margins.clone().filter(|&margin| margin > 0.0).count();
        let preferred = Preferred {
            margin: margins.sum::<f64>() / pairs as f64,
            accuracy: right as f64 / pairs as f64,
        };
        Ok(Coefficients { preferred: Some(preferred), ..out.per_sequence() })
    }

    /// A group is a square matrix, row by row.
    fn info_nce(&self, device: &Device) -> Result<Coefficients> {
        let mut out = Slopes::new(self.groups(), self.logp.len());
        let share = 1.0 / self.groups() as f64;
        for span in self.offsets.windows(2) {
            let (first, count) = (span[0] as usize, (span[1] - span[0]) as usize);
            let n = count.isqrt();
            let length = |r: &Record| r.scored().count() as i64;
            let lengths: Vec<i64> = self.records[first..first + n].iter().map(length).collect();
            let (mut loss, mut dlogp) = (vec![0f64], vec![0f64; count]);
            let args = InfoNceLoss {
                logp: View::new(&self.logp[first..first + count], &[n as i64, n as i64])?,
                length: Some((&lengths).into()),
                loss: (&mut loss).into(),
                dlogp: ViewMut::new(&mut dlogp, &[n as i64, n as i64])?,
            };
            info_nce_loss(device, args)?;
            out.total[0] += share * loss[0];
            let slopes = out.dlogp[first..first + count].iter_mut().zip(dlogp);
            slopes.for_each(|(slope, d)| *slope = share * d);
        }
        Ok(out.per_sequence())
    }

    fn prdp(&self, device: &Device, beta: f64, clip: f64) -> Result<Coefficients> {
        let scored = ScoredTokens::of(self.records);
        let wide = |column: Vec<f32>| column.into_iter().map(f64::from).collect::<Vec<f64>>();
        let of_tokens = self.records.iter().zip(self.tokens);
        let logp: Vec<f64> = of_tokens
            .flat_map(|(r, column)| r.scored().map(|t| column[t] as f64).collect::<Vec<_>>())
            .collect();
        let old = wide(scored.gather(self.records, Record::old_logp));
        let reference = wide(scored.gather(self.records, |r| &r.ref_logp));
        let pairs = pairs_by_reward(&self.reward, &self.offsets)?;
        let mut out = Slopes::new(pairs.len() / 2, logp.len());
        let args = PrdpLoss {
            logp: (&logp).into(),
            old: (&old).into(),
            reference: (&reference).into(),
            mask: None,
            cu_seqlens: (&scored.cu_seqlens).into(),
            reward: (&self.reward).into(),
            pairs: View::rows_of(&pairs, 2)?,
            beta,
            clip,
            weight: None,
            loss: (&mut out.loss).into(),
            dlogp: (&mut out.dlogp).into(),
            total: Some((&mut out.total).into()),
        };
        prdp_loss(device, args)?;
        Ok(out.per_token())
    }
}

fn views(pair: &Pair<Vec<f64>>) -> Pair<View<'_, f64>> {
    Pair { chosen: (&pair.chosen).into(), rejected: (&pair.rejected).into() }
}

/// What the ops write.
#[derive(Clone)]
struct Slopes {
    loss: Vec<f64>,
    dlogp: Vec<f64>,
    total: Vec<f64>,
}

impl Slopes {
    fn new(terms: usize, slopes: usize) -> Slopes {
        Slopes { loss: vec![0.0; terms], dlogp: vec![0.0; slopes], total: vec![0.0] }
    }

    fn advantages(&self) -> Vec<f32> {
        self.dlogp.iter().map(|&slope| -slope as f32).collect()
    }

    fn per_sequence(&self) -> Coefficients {
        self.with(Advantages::PerSequence(self.advantages()))
    }

    fn per_token(&self) -> Coefficients {
        self.with(Advantages::PerToken(self.advantages()))
    }

    fn with(&self, advantages: Advantages) -> Coefficients {
        Coefficients { advantages, loss: self.total[0], preferred: None }
    }
}
