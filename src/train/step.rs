//! One reinforcement fine-tuning step, top to bottom.
//!
//! For every scored token t of sequence i, with ℓ = log π(y_t) and r = exp(ℓ − ℓ_old):
//!
//! ```text
//! L = Σ_i w_i Σ_t [ −min(r·A_i, clip(r, lo, hi)·A_i) + β·(e^k − k − 1) ],   k = ℓ_ref − ℓ
//! ```
//!
//! or any other loss that [`PolicySettings`] names. How this differs from GRPO as published
//! (Shao et al. 2024, arXiv:2402.03300):
//!
//! 1. ℓ_old is what the sampler recorded. Sampler and trainer share batch-invariant ops, so on the
//!    first update r is exactly 1 and no second forward pass over the old policy is needed.
//! 2. w_i is one number per sequence that already holds the whole batch's normaliser. Micro-batches
//!    are cut anywhere without changing the loss; there is no accumulation factor to get wrong.
//! 3. The frozen head's backward is the score vector s = ∂ℓ/∂h from the forward pass, scaled by
//!    ∂L/∂ℓ: no second product with the vocabulary.
//! 4. A step that is not finite changes nothing.

use rayon::prelude::*;

use crate::error::Result;
use crate::model::{Decoder, Gradients, Tape};
use crate::ops::{Advantage, PolicyLoss, PolicySettings, PolicyStats, policy_loss};
use crate::train::record::{Record, ScoredTokens};
use crate::view::ViewMut;

/// What one pass over a batch needs besides the records.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The loss.
    pub settings: &'a PolicySettings,
    /// Temperature the tokens were sampled at; log-probs are of that distribution.
    pub temperature: f64,
    /// Sequences per micro-batch. Part of the result's definition (f32 gradients are summed micro-
    /// batch by micro-batch), never of its meaning.
    pub micro_batch: usize,
}

/// Loss, gradients and statistics of a batch.
#[derive(Debug)]
pub struct Backward {
    /// Σ_i w_i Σ_t L.
    pub loss: f64,
    /// Gradients of all trainable parameters.
    pub gradients: Gradients,
    /// Ratios, clips, KL and entropy, summed over tokens.
    pub stats: PolicyStats,
    /// Largest |exp(ℓ − ℓ_old) − 1| over all scored tokens.
    pub ratio_max_abs_dev: f64,
    /// Scored tokens.
    pub tokens: usize,
}

/// Forward and backward of `records` under `objective`; `advantage` and `seq_weight` have one
/// entry per record (or `advantage` one per scored token). Micro-batches run in parallel; their
/// gradients are added in order.
pub fn forward_backward(
    model: &Decoder,
    records: &[Record],
    advantage: &[f32],
    seq_weight: &[f32],
    objective: Objective<'_>,
) -> Result<Backward> {
    let size = objective.micro_batch.max(1);
    let per_token = advantage.len() != records.len();
    let offsets = scored_offsets(records);
    let parts: Vec<Result<Backward>> = records
        .par_chunks(size)
        .enumerate()
        .map(|(i, records)| {
            let (first, last) = (i * size, i * size + records.len());
            let advantage = match per_token {
                true => Advantage::PerToken((&advantage[offsets[first]..offsets[last]]).into()),
                false => Advantage::PerSequence((&advantage[first..last]).into()),
            };
            micro_batch(model, records, advantage, &seq_weight[first..last], objective)
        })
        .collect();
    let mut total = Backward {
        loss: 0.0,
        gradients: Gradients::zeros(&model.params),
        stats: PolicyStats::default(),
        ratio_max_abs_dev: 0.0,
        tokens: 0,
    };
    for part in parts {
        let part = part?;
        total.loss += part.loss;
        total.gradients.add(&part.gradients);
        total.stats.merge(&part.stats);
        total.ratio_max_abs_dev = total.ratio_max_abs_dev.max(part.ratio_max_abs_dev);
        total.tokens += part.tokens;
    }
    Ok(total)
}

fn micro_batch(
    model: &Decoder,
    records: &[Record],
    advantage: Advantage<'_, f32>,
    seq_weight: &[f32],
    objective: Objective<'_>,
) -> Result<Backward> {
    let scored = ScoredTokens::of(records);
    let mut gradients = Gradients::zeros(&model.params);

    // 1. Policy: hidden states, then log-probs of the scored tokens.
    let mut tape = Tape::default();
    let hidden = model.forward(&scored.packed, true, None, Some(&mut tape))?;
    let rows = gather_rows(&hidden, &scored.rows, model.config.hidden);
    let scores = model.score(&rows, &scored.targets, objective.temperature)?;

    // 2. Loss and its gradient with respect to each log-prob.
    let old_logp = scored.gather(records, |r| &r.old_logp);
    let has_ref = records.iter().all(|r| !r.ref_logp.is_empty());
    let ref_logp = if has_ref { scored.gather(records, |r| &r.ref_logp) } else { Vec::new() };
    let (mut loss, mut stats) = (0.0, PolicyStats::default());
    let mut dlogp = vec![0f32; scored.len()];
    let args = PolicyLoss {
        old_logp: Some((&old_logp).into()),
        ref_logp: has_ref.then(|| (&ref_logp).into()),
        entropy: Some((&scores.entropy).into()),
        stats: Some(&mut stats),
        ..PolicyLoss::new(
            (&scores.logp).into(),
            advantage,
            (&scored.cu_seqlens).into(),
            seq_weight.into(),
            objective.settings,
            &mut loss,
            ViewMut::from(&mut dlogp),
        )
    };
    policy_loss(&model.device, args)?;

    // 3. Back through head and blocks.
    let drows = model.score_backward(&rows, &scored.targets, &scores, &dlogp, &mut gradients)?;
    let dhidden = scatter_rows(&drows, &scored.rows, hidden.len(), model.config.hidden);
    model.backward(&scored.packed, tape, &dhidden, &mut gradients)?;

    let deviation = |(new, old): (&f32, &f32)| ((*new as f64 - *old as f64).exp() - 1.0).abs();
    let ratio_max_abs_dev = scores.logp.iter().zip(&old_logp).map(deviation).fold(0.0, f64::max);
    Ok(Backward { loss, gradients, stats, ratio_max_abs_dev, tokens: scored.len() })
}

/// Log-probs of all scored tokens of `records` under the base model (`adapt` false: the
/// reference) or the current policy, written through `store`.
pub fn score_records(
    model: &Decoder,
    records: &mut [Record],
    adapt: bool,
    temperature: f64,
    micro_batch: usize,
    store: impl Fn(&mut Record, Vec<f32>) + Sync,
) -> Result<()> {
    let parts: Vec<Result<()>> = records
        .par_chunks_mut(micro_batch.max(1))
        .map(|records| {
            let scored = ScoredTokens::of(records);
            let hidden = model.forward(&scored.packed, adapt, None, None)?;
            let rows = gather_rows(&hidden, &scored.rows, model.config.hidden);
            let logp = model.score(&rows, &scored.targets, temperature)?.logp;
            for (i, record) in records.iter_mut().enumerate() {
                let span = scored.cu_seqlens[i] as usize..scored.cu_seqlens[i + 1] as usize;
                let mut column = vec![0f32; record.ids.len()];
                record.scored().zip(&logp[span]).for_each(|(t, &l)| column[t] = l);
                store(record, column);
            }
            Ok(())
        })
        .collect();
    parts.into_iter().collect()
}

fn scored_offsets(records: &[Record]) -> Vec<usize> {
    let mut offsets = vec![0];
    for record in records {
        offsets.push(offsets[offsets.len() - 1] + record.scored().count());
    }
    offsets
}

/// Rows `rows` of a row-major matrix of `d` columns.
pub(crate) fn gather_rows(x: &[f32], rows: &[usize], d: usize) -> Vec<f32> {
    rows.iter().flat_map(|&r| &x[r * d..(r + 1) * d]).copied().collect()
}

fn scatter_rows(x: &[f32], rows: &[usize], len: usize, d: usize) -> Vec<f32> {
    let mut out = vec![0f32; len];
    for (row, &to) in x.chunks_exact(d).zip(rows) {
        out[to * d..(to + 1) * d].copy_from_slice(row);
    }
    out
}
