//! Loss and gradients of one update, top to bottom.
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
//! 1. ℓ_old is what the sampler recorded, unless another policy sampled. Sampler and trainer share
//!    batch-invariant ops, so on the first update r is exactly 1 and no second forward pass over the
//!    old policy is needed.
//! 2. w_i is one number per sequence that already holds the whole batch's normalizer. Micro-batches
//!    are cut anywhere without changing the loss; there is no accumulation factor to get wrong.
//! 3. The frozen head's backward is the score vector s = ∂ℓ/∂h from the forward pass, scaled by
//!    ∂L/∂ℓ: no second product with the vocabulary.
//! 4. A step that is not finite changes nothing.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::io::interrupt;
use crate::model::{AdapterDropout, Batch, Decoder, Gradients, ScoreGradients, ScoreUse, Tape};
use crate::train::update::ordered::in_order;
use crate::train::update::record::{Record, Runs, ScoredTokens};
use crate::train::update::trunk::{CriticShare, CriticTerm};
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    Advantage, Convert, CopyRows, EmbeddingBwd, PolicyLoss, PolicySettings, PolicyStats, convert,
    copy_rows, embedding_bwd, policy_loss,
};
use gradus::view::View;

/// What one pass over a batch needs besides the records.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// The loss.
    pub settings: &'a PolicySettings,
    /// Divides the logits: log-probs are of that distribution. What tokens were sampled at, or 1 for
    /// demonstrations.
    pub temperature: f64,
    /// Most sequences of a micro-batch. Part of the result's definition (f32 gradients are summed
    /// micro-batch by micro-batch), never of its meaning.
    pub micro_batch: usize,
    /// Most tokens of a micro-batch of two sequences or more, likewise.
    pub micro_batch_tokens: usize,
    /// Whether tokens that neighboring sequences of a micro-batch begin with in common, as the samples
    /// of one prompt do, are computed once: the same log-probs, and gradients that differ by rounding.
    /// Where something is dropped, each sequence drops its own.
    pub shared: bool,
    /// Most tokens that a micro-batch of two sequences or more computes where some are computed once.
    pub shared_tokens: usize,
    /// Whether the backward pass computes each block's activations again: the same gradients, bit for
    /// bit, in less memory, for one more pass forward.
    pub recompute: bool,
    /// The critic's term, for one that moves the trunk.
    pub critic: Option<CriticTerm<'a>>,
    /// Masks of what adapters read.
    pub dropout: Option<AdapterDropout>,
}

/// Loss, gradients and statistics of a batch.
#[derive(Debug)]
pub struct Backward {
    /// Gradients of all trainable parameters.
    pub gradients: Gradients,
    /// Loss and statistics.
    pub figures: BatchFigures,
    /// The critic's share, if the objective has its term.
    pub critic: CriticShare,
}

/// What a batch, or a micro-batch of it, amounts to.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchFigures {
    /// Σ_i w_i Σ_t L.
    pub loss: f64,
    /// Ratios, clips, KL and entropy, summed over tokens.
    pub stats: PolicyStats,
    /// Largest |exp(ℓ − ℓ_old) − 1| over all scored tokens.
    pub ratio_max_abs_dev: f64,
    /// Scored tokens.
    pub tokens: usize,
    /// Tokens that went through the model.
    pub computed: usize,
    /// What a preference loss saw, if it is one.
    pub preferred: Option<Preferred>,
}

/// How the implicit rewards β·(log π − log π_ref) of chosen and rejected completions stand to each
/// other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preferred {
    /// Mean of the chosen's less the rejected's.
    pub margin: f64,
    /// Share of pairs whose chosen completion has the larger one.
    pub accuracy: f64,
}

impl BatchFigures {
    fn merge(&mut self, other: &BatchFigures) {
        self.loss += other.loss;
        self.stats.merge(&other.stats);
        self.ratio_max_abs_dev = self.ratio_max_abs_dev.max(other.ratio_max_abs_dev);
        self.tokens += other.tokens;
        self.computed += other.computed;
    }
}

/// Some of the records with their share of the columns.
#[derive(Clone, Copy)]
struct MicroBatch<'a> {
    records: &'a [Record],
    /// One for each record, or one for each scored token.
    advantage: &'a [f32],
    per_token: bool,
    seq_weight: &'a [f32],
    /// First of its records, and of its scored tokens, in the batch.
    first_record: usize,
    first_token: usize,
}

/// Forward and backward of `records` under `objective`; `seq_weight` has one entry per record,
/// `advantage` is in host memory.
///
/// # Errors
/// `InvalidArgument` for columns that do not fit the records; what the model and the loss refuse;
/// `Interrupted` between two micro-batches, once a signal asks for a stop.
pub fn forward_backward<T: Float>(
    model: &Decoder<T>,
    records: &[Record],
    advantage: Advantage<'_, f32>,
    seq_weight: &[f32],
    objective: Objective<'_>,
) -> Result<Backward> {
    let batches = cut(records, advantage, seq_weight, objective)?;
    let (mut figures, mut critic) = (BatchFigures::default(), CriticShare::default());
    let one = |i: usize, part: &mut Gradients| micro_batch(model, batches[i], objective, part);
    let merge = |(its, share): (BatchFigures, CriticShare)| {
        figures.merge(&its);
        critic.add(&share);
    };
    let gradients = summed(model, batches.len(), one, merge)?;
    Ok(Backward { gradients, figures, critic })
}

/// Gradients of `count` micro-batches: `one` adds those of micro-batch i to what it is given, and
/// `merge` gets what it says of it. On the CPU micro-batches run in parallel and their gradients are
/// added in order, as they come; on a GPU one after another adds to the sum.
pub(crate) fn summed<T: Float, F: Send>(
    model: &Decoder<T>,
    count: usize,
    one: impl Fn(usize, &mut Gradients) -> Result<F> + Sync,
    mut merge: impl FnMut(F) + Send,
) -> Result<Gradients> {
    let mut gradients = Gradients::zeros(&model.params, &model.allocator)?;
    match model.device {
        Device::Gpu(_) => {
            for i in 0..count {
                merge(one(i, &mut gradients)?);
            }
        }
        Device::Cpu => {
            // Gradients that were added serve later micro-batches.
            let spare: Mutex<Vec<Gradients>> = Mutex::default();
            let pool = || spare.lock().unwrap_or_else(PoisonError::into_inner);
            let one = |i: usize| {
                let used = pool().pop();
                let mut part = match used {
                    Some(part) => part.cleared()?,
                    None => Gradients::zeros(&model.params, &Allocator::Host)?,
                };
                let figures = one(i, &mut part)?;
                Ok((part, figures))
            };
            in_order(count, one, |(part, its)| {
                gradients.add(&part)?;
                merge(its);
                pool().push(part);
                Ok(())
            })?;
        }
    }
    Ok(gradients)
}

impl Objective<'_> {
    /// What the model reads of the records of a micro-batch.
    pub(crate) fn pack(&self, records: &[Record]) -> Result<ScoredTokens> {
        ScoredTokens::pack(records, self.computes_once())
    }

    /// Whether what neighbors begin with in common is computed once.
    pub(crate) fn computes_once(&self) -> bool {
        self.shared && self.dropout.is_none()
    }

    /// The micro-batches of `records`, in order: each as large as it may be.
    pub fn micro_batches(&self, records: &[Record]) -> Vec<Range<usize>> {
        let limited = self.computes_once() && self.shared_tokens < usize::MAX;
        let mut cuts: Vec<Range<usize>> = Vec::new();
        let (mut tokens, mut runs) = (0usize, Runs::default());
        for (i, record) in records.iter().enumerate() {
            tokens = tokens.saturating_add(record.ids.len());
            let fits = |last: &Range<usize>| {
                last.len() < self.micro_batch && tokens <= self.micro_batch_tokens
            };
            let open = cuts.last_mut().filter(|last| fits(last));
            if limited {
                runs.push(record);
            }
            match open {
                Some(last) if !limited || runs.computed() <= self.shared_tokens => last.end = i + 1,
                Some(_) | None => {
                    cuts.push(i..i + 1);
                    tokens = record.ids.len();
                    runs = Runs::default();
                    if limited {
                        runs.push(record);
                    }
                }
            }
        }
        cuts
    }
}

fn cut<'a>(
    records: &'a [Record],
    advantage: Advantage<'a, f32>,
    seq_weight: &'a [f32],
    objective: Objective<'_>,
) -> Result<Vec<MicroBatch<'a>>> {
    let offsets = scored_offsets(records);
    let tokens = offsets[offsets.len() - 1];
    let (view, per_token, expected) = match advantage {
        Advantage::PerSequence(view) => (view, false, records.len()),
        Advantage::PerToken(view) => (view, true, tokens),
    };
    let advantage = of_length("advantage", view, expected)?;
    let seq_weight = of_length("seq_weight", View::from(seq_weight), records.len())?;
    let part = |at: Range<usize>| {
        let (first_record, first_token) = (at.start, offsets[at.start]);
        let tokens = if per_token { offsets[at.start]..offsets[at.end] } else { at.clone() };
        let (advantage, seq_weight) = (&advantage[tokens], &seq_weight[at.clone()]);
        let records = &records[at];
        MicroBatch { records, advantage, per_token, seq_weight, first_record, first_token }
    };
    Ok(objective.micro_batches(records).into_iter().map(part).collect())
}

/// The elements of a column in host memory, if there are as many as there should be.
fn of_length<'a>(name: &str, view: View<'a, f32>, expected: usize) -> Result<&'a [f32]> {
    let elements = if view.is_host() { view.as_slice() } else { None };
    elements.filter(|elements| elements.len() == expected).ok_or_else(|| {
        let wanted = format!("{expected} elements side by side in host memory");
        Error::invalid("forward_backward", name, format!("{:?}", view.shape()), wanted)
    })
}

fn micro_batch<T: Float>(
    model: &Decoder<T>,
    part: MicroBatch<'_>,
    objective: Objective<'_>,
    gradients: &mut Gradients,
) -> Result<(BatchFigures, CriticShare)> {
    interrupt::check()?;
    let (allocator, d) = (&model.allocator, model.config.hidden);
    let scored = objective.pack(part.records)?;
    let batch = scored.packed.place_masked(allocator, objective.dropout, part.first_record)?;
    let targets = allocator.copy_of(&scored.targets)?;

    // 1. Policy: hidden states, then log-probs of the scored tokens.
    let mut tape = Tape::new(objective.recompute);
    let hidden = model.forward(&batch, true, None, Some(&mut tape))?;
    let rows = gather_rows(model, allocator, &hidden, d, &scored.rows)?;
    drop(hidden);
    let wanted = match objective.settings.entropy_coef > 0.0 {
        true => ScoreUse::WithEntropy,
        false => ScoreUse::LogProbs,
    };
    let scores = model.score(allocator, &rows, &targets, objective.temperature, wanted)?;

    // 2. Loss and its gradient with respect to each log-prob, and to each entropy if it has a bonus.
    let logp = [&scores.logp, &scores.entropy];
    let (d, mut figures) = loss(model, part, &scored, logp, objective)?;
    figures.computed = batch.tokens();

    // 3. Back through head and blocks.
    let mut drows = model.score_backward(allocator, &rows, &targets, &scores, &d, gradients)?;
    let share = match objective.critic {
        Some(term) => {
            let span = part.first_token..part.first_token + scored.len();
            term.backward(model, span, &rows, &mut drows)?
        }
        None => CriticShare::default(),
    };
    drop((rows, scores, d));
    let dhidden = scatter_rows(model, allocator, &drows, &scored.rows, batch.tokens())?;
    drop(drows);
    model.backward(&batch, tape, dhidden, gradients)?;
    Ok((figures, share))
}

/// The loss of a micro-batch, and its gradient with respect to log-probs and entropies.
fn loss<T: Float>(
    model: &Decoder<T>,
    part: MicroBatch<'_>,
    scored: &ScoredTokens,
    [logp, entropy]: [&Buffer<f32>; 2],
    objective: Objective<'_>,
) -> Result<(ScoreGradients, BatchFigures)> {
    let (allocator, records) = (&model.allocator, part.records);
    let old = scored.gather(records, Record::old_logp);
    let old_logp = allocator.copy_of(&old)?;
    let placed = |column: fn(&Record) -> &[f32]| {
        let column = scored.gather_all(records, column);
        column.map(|column| allocator.copy_of(&column)).transpose()
    };
    let reads_sampler = objective.settings.reads_sampler() || objective.settings.opsm.is_finite();
    let sampler = if reads_sampler { placed(|r| &r.sampler_logp)? } else { None };
    let (ref_logp, token_weight) = (placed(|r| &r.ref_logp)?, placed(|r| &r.token_weight)?);
    let is_weight = placed(|r| &r.is_weight)?;
    let selected = scored.gather_all(records, |r| &r.selected);
    let selected = selected.map(|column| allocator.copy_of(&column)).transpose()?;
    let class = scored.gather(records, |r| &r.class).into_iter().map(|class| class as u8);
    let class = allocator.copy_of(&class.collect::<Vec<u8>>())?;
    let advantage = allocator.copy_of(part.advantage)?;
    let cu_seqlens = allocator.copy_of(&scored.cu_seqlens)?;
    let seq_weight = allocator.copy_of(part.seq_weight)?;
    let mut figures = BatchFigures { tokens: scored.len(), ..BatchFigures::default() };
    let mut d = ScoreGradients { logp: allocator.alloc(scored.len())?, entropy: None };
    if objective.settings.entropy_coef > 0.0 {
        d.entropy = Some(allocator.alloc(scored.len())?);
    }
    let args = PolicyLoss {
        old_logp: Some(old_logp.all()),
        ref2_logp: has_second_anchor(objective.settings).then(|| old_logp.all()),
        sampler_logp: sampler.as_ref().map(Buffer::all),
        ref_logp: ref_logp.as_ref().map(Buffer::all),
        token_weight: token_weight.as_ref().map(Buffer::all),
        selected: selected.as_ref().map(Buffer::all),
        is_weight: is_weight.as_ref().map(Buffer::all),
        class_ids: Some(class.all()),
        entropy: Some(entropy.all()),
        dentropy: d.entropy.as_mut().map(Buffer::all_mut),
        stats: Some(&mut figures.stats),
        ..PolicyLoss::new(
            logp.all(),
            match part.per_token {
                true => Advantage::PerToken(advantage.all()),
                false => Advantage::PerSequence(advantage.all()),
            },
            cu_seqlens.all(),
            seq_weight.all(),
            objective.settings,
            &mut figures.loss,
            d.logp.all_mut(),
        )
    };
    policy_loss(&model.device, args)?;
    figures.ratio_max_abs_dev = largest_deviation(&logp.to_host()?, &old);
    Ok((d, figures))
}

/// Whether a part of the KL is to the policy before the step's updates.
fn has_second_anchor(settings: &PolicySettings) -> bool {
    settings.kl.is_some_and(|kl| kl.mix < 1.0)
}

/// Largest |exp(ℓ − ℓ_old) − 1|.
fn largest_deviation(logp: &[f32], old: &[f32]) -> f64 {
    let deviation = |(new, old): (&f32, &f32)| ((*new as f64 - *old as f64).exp() - 1.0).abs();
    logp.iter().zip(old).map(deviation).fold(0.0, f64::max)
}

/// What a policy says of a record's tokens: one column over all of them, 0 where they are not scored.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScores {
    /// Log-probs.
    pub logp: Vec<f32>,
    /// Entropies of the distributions, in nats.
    pub entropy: Vec<f32>,
}

/// How records are scored. Only the temperature and the masks change a bit of the result.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// Divides the logits.
    pub temperature: f64,
    /// Records that go through the model together.
    pub micro_batch: usize,
    /// Whether tokens that neighbors among them begin with in common are computed once, unless
    /// something is dropped.
    pub shared: bool,
    /// Masks of what adapters read, as the update has them.
    pub dropout: Option<AdapterDropout>,
}

impl Scoring {
    /// At a temperature, in micro-batches of so many records that share what they begin with.
    pub fn at(temperature: f64, micro_batch: usize) -> Scoring {
        Scoring { temperature, micro_batch, shared: true, dropout: None }
    }

    /// What the model reads of records that go through it together.
    pub(crate) fn pack(&self, records: &[Record]) -> Result<ScoredTokens> {
        ScoredTokens::pack(records, self.shared && self.dropout.is_none())
    }
}

/// Log-probs of all scored tokens of `records`, one column over all tokens of each: with the
/// adapters, or (`adapt` false) without them.
pub fn score_records<T: Float>(
    model: &Decoder<T>,
    records: &[Record],
    adapt: bool,
    how: Scoring,
) -> Result<Vec<Vec<f32>>> {
    let scores = score_tokens(model, records, adapt, how)?;
    Ok(scores.into_iter().map(|scores| scores.logp).collect())
}

/// Log-probs and entropies of all scored tokens of `records`: with the adapters, or (`adapt` false)
/// without them.
pub fn score_tokens<T: Float>(
    model: &Decoder<T>,
    records: &[Record],
    adapt: bool,
    how: Scoring,
) -> Result<Vec<TokenScores>> {
    let size = how.micro_batch.max(1);
    let one = |(i, records): (usize, &[Record])| {
        interrupt::check()?;
        let scored = how.pack(records)?;
        let allocator = &model.allocator;
        let batch = scored.packed.place_masked(allocator, how.dropout, i * size)?;
        let rows = hidden_rows(model, &scored, &batch, adapt)?;
        let targets = allocator.copy_of(&scored.targets)?;
        let (t, wanted) = (how.temperature, ScoreUse::Values);
        let scores = model.score_as(allocator, &rows, &targets, t, wanted, adapt)?;
        let (logp, entropy) = (scores.logp.to_host()?, scores.entropy.to_host()?);
        let columns = |(i, record): (usize, &Record)| {
            let span = scored.cu_seqlens[i] as usize..scored.cu_seqlens[i + 1] as usize;
            let column = |of: &[f32]| {
                let mut column = vec![0f32; record.ids.len()];
                record.scored().zip(&of[span.clone()]).for_each(|(t, &x)| column[t] = x);
                column
            };
            TokenScores { logp: column(&logp), entropy: column(&entropy) }
        };
        Ok(records.iter().enumerate().map(columns).collect())
    };
    let parts: Vec<Result<Vec<TokenScores>>> = match model.device {
        Device::Gpu(_) => records.chunks(size).enumerate().map(one).collect(),
        Device::Cpu => records.par_chunks(size).enumerate().map(one).collect(),
    };
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// Final hidden states before each scored token, of which `batch` is.
pub(crate) fn hidden_rows<T: Float>(
    model: &Decoder<T>,
    scored: &ScoredTokens,
    batch: &Batch,
    adapt: bool,
) -> Result<Buffer<T>> {
    let allocator = &model.allocator;
    let hidden = model.forward(batch, adapt, None, None)?;
    gather_rows(model, allocator, &hidden, model.config.hidden, &scored.rows)
}

fn scored_offsets(records: &[Record]) -> Vec<usize> {
    let mut offsets = vec![0];
    for record in records {
        offsets.push(offsets[offsets.len() - 1] + record.scored().count());
    }
    offsets
}

/// Rows `rows` of a row-major matrix of `d` columns.
pub(crate) fn gather_rows<T: Float>(
    model: &Decoder<T>,
    allocator: &Allocator,
    x: &Buffer<T>,
    d: usize,
    rows: &[i32],
) -> Result<Buffer<T>> {
    let from = allocator.copy_of(rows)?;
    let mut out = allocator.alloc(rows.len() * d)?;
    let (x, y) = (x.rows(d)?, out.rows_mut(d)?);
    copy_rows(&model.device, CopyRows { x, from_rows: Some(from.all()), to_rows: None, y })?;
    Ok(out)
}

/// A matrix of `total` rows that are 0 but for `rows`; where several are one row, their sum in order.
pub(crate) fn scatter_rows<T: Float>(
    model: &Decoder<T>,
    allocator: &Allocator,
    x: &Buffer<T>,
    rows: &[i32],
    total: usize,
) -> Result<Buffer<T>> {
    let d = model.config.hidden;
    let to = allocator.copy_of(rows)?;
    let rising = rows.windows(2).all(|pair| pair[0] < pair[1]);
    if !rising {
        let mut sums = allocator.zeros::<f32>(total * d)?;
        let (ids, dy, dtable) = (to.all(), x.rows(d)?, sums.rows_mut(d)?);
        embedding_bwd(&model.device, EmbeddingBwd { ids, dy, dtable })?;
        let mut out = allocator.alloc(total * d)?;
        convert(&model.device, Convert { x: sums.all(), y: out.all_mut() })?;
        return Ok(out);
    }
    let mut out = allocator.zeros(total * d)?;
    let (x, y) = (x.rows(d)?, out.rows_mut(d)?);
    copy_rows(&model.device, CopyRows { x, from_rows: None, to_rows: Some(to.all()), y })?;
    Ok(out)
}
