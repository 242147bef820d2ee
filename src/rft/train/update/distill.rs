//! Loss and gradients of an update that learns from a teacher:
//!
//! ```text
//! L = 1/N · Σ_t D(p_t, q_t)
//! ```
//!
//! over the N scored tokens of a batch, where p_t and q_t are what teacher and policy expect at token
//! t, over the whole vocabulary or over the teacher's likeliest tokens. How the tokens came about carries
//! no gradient, also where the policy wrote them: that is GKD (Agarwal et al. 2024, arXiv:2306.13649).
//!
//! A guided teacher has the logits u + γ·(c − u): c behind the whole prompt, as the policy, and u behind its last
//! token alone (Ho and Salimans 2022, arXiv:2207.12598). The policy learns to do without the second reading.

use crate::io::interrupt;
use crate::model::{Decoder, Gradients, Tape};
use crate::train::update::likeliest::Likeliest;
use crate::train::update::record::{Record, ScoredTokens};
use crate::train::update::step::{Objective, gather_rows, scatter_rows, summed};
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    CopyRows, Divergence, Guidance, LogitTransform, VocabKl, VocabKlBwd, copy_rows, vocab_kl,
    vocab_kl_bwd,
};

/// What is learned from whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lesson<'a, T> {
    /// Whose distributions are learned. It reads the same ids.
    pub teacher: &'a Decoder<T>,
    /// D.
    pub divergence: Divergence,
    /// The tokens that count, if not all do.
    pub likeliest: Option<Likeliest>,
    /// γ of a guided teacher; 1 = it is not.
    pub guidance: f64,
    /// Temperature of both distributions, and how micro-batches are cut.
    pub objective: Objective<'a>,
}

/// Logits of one model that are in memory at a time.
const LOGITS: usize = 1 << 22;

/// Gradients of all trainable parameters, and the loss.
///
/// # Errors
/// What the models and the ops refuse; `Interrupted` between two micro-batches, once a signal asks
/// for a stop.
pub(crate) fn distill_backward<T: Float>(
    model: &Decoder<T>,
    records: &[Record],
    lesson: Lesson<'_, T>,
) -> Result<(Gradients, f64)> {
    let tokens: usize = records.iter().map(|record| record.scored().count()).sum();
    let weight = 1.0 / tokens.max(1) as f64;
    let cuts = lesson.objective.micro_batches(records);
    let one = |i: usize, part: &mut Gradients| {
        let part_of = cuts[i].clone();
        let first = part_of.start;
        micro_batch(model, (&records[part_of], first), lesson, weight, part)
    };
    let mut loss = 0.0;
    let gradients = summed(model, cuts.len(), one, |its: f64| loss += its)?;
    Ok((gradients, loss))
}

fn micro_batch<T: Float>(
    model: &Decoder<T>,
    (records, first): (&[Record], usize),
    lesson: Lesson<'_, T>,
    weight: f64,
    gradients: &mut Gradients,
) -> Result<f64> {
    interrupt::check()?;
    let (allocator, d) = (&model.allocator, model.config.hidden);
    let scored = lesson.objective.pack(records)?;
    let batch = scored.packed.place_masked(allocator, lesson.objective.dropout, first)?;
    let mut tape = Tape::new(lesson.objective.recompute);
    let hidden = model.forward(&batch, true, None, Some(&mut tape))?;
    let taught = lesson.teacher.forward(&batch, true, None, None)?;
    let unguided = match lesson.guidance == 1.0 {
        true => None,
        false => Some(Unguided::of(model, lesson.teacher, records)?),
    };
    let mut drows = allocator.alloc(scored.len() * d)?;
    let (mut loss, mut done) = (0.0, 0);
    // A row's numbers do not depend on the others beside it.
    for rows in scored.rows.chunks((LOGITS / model.config.vocab).max(1)) {
        let x = gather_rows(model, allocator, &hidden, d, rows)?;
        let width = lesson.teacher.config.hidden;
        let guide = gather_rows(lesson.teacher, allocator, &taught, width, rows)?;
        let reading = |unguided: &Unguided<T>| {
            let rows = &unguided.rows[done..done + rows.len()];
            gather_rows(lesson.teacher, allocator, &unguided.hidden, width, rows)
        };
        let other = unguided.as_ref().map(reading).transpose()?;
        let taught = (&guide, other.as_ref());
        let (its, dx) = divergence(model, &x, taught, lesson, weight, gradients)?;
        loss += its;
        let (x, mut all) = (dx.rows(d)?, drows.rows_mut(d)?);
        let y = all.narrow(done, rows.len())?;
        copy_rows(&model.device, CopyRows { x, from_rows: None, to_rows: None, y })?;
        done += rows.len();
    }
    drop((hidden, taught, unguided));
    let dhidden = scatter_rows(model, allocator, &drows, &scored.rows, batch.tokens())?;
    drop(drows);
    model.backward(&batch, tape, dhidden, gradients)?;
    Ok(loss)
}

/// A teacher's hidden states where it reads the last token of each prompt in the place of the whole.
struct Unguided<T: Float> {
    hidden: Buffer<T>,
    /// Row before each scored token.
    rows: Vec<i32>,
}

impl<T: Float> Unguided<T> {
    fn of(model: &Decoder<T>, teacher: &Decoder<T>, records: &[Record]) -> Result<Unguided<T>> {
        let records: Vec<Record> = records.iter().map(Record::behind_last_of_prompt).collect();
        let scored = ScoredTokens::of(&records);
        let batch = scored.packed.place(&model.allocator)?;
        Ok(Unguided { hidden: teacher.forward(&batch, true, None, None)?, rows: scored.rows })
    }
}

/// The weighted divergences of rows of hidden states, those of the policy and those of the teacher, with
/// its unguided ones if it is guided, and the gradient of the policy's.
fn divergence<T: Float>(
    model: &Decoder<T>,
    hidden: &Buffer<T>,
    (taught, unguided): (&Buffer<T>, Option<&Buffer<T>>),
    lesson: Lesson<'_, T>,
    weight: f64,
    gradients: &mut Gradients,
) -> Result<(f64, Buffer<T>)> {
    let (allocator, vocab) = (&model.allocator, model.config.vocab);
    let policy = model.logits(allocator, hidden)?;
    let reference = lesson.teacher.first_logits(allocator, taught, vocab)?;
    let unguided =
        unguided.map(|rows| lesson.teacher.first_logits(allocator, rows, vocab)).transpose()?;
    let guidance = match &unguided {
        Some(logits) => Some(Guidance { logits: logits.rows(vocab)?, gamma: lesson.guidance }),
        None => None,
    };
    let rows = policy.len() / vocab;
    let transform =
        LogitTransform { temperature: lesson.objective.temperature, ..LogitTransform::default() };
    if let Some(likeliest) = lesson.likeliest {
        let how = (transform, lesson.divergence);
        let (loss, dlogits) = likeliest.divergence(model, [&policy, &reference], how, weight)?;
        return Ok((loss, model.logits_backward(allocator, hidden, &dlogits, gradients)?));
    }
    let mut value: Buffer<f32> = allocator.alloc(rows)?;
    let args = VocabKl {
        policy: policy.rows(vocab)?,
        reference: reference.rows(vocab)?,
        guidance,
        vocab: vocab as i64,
        transform,
        divergence: lesson.divergence,
        value: value.all_mut(),
    };
    vocab_kl(&model.device, args)?;
    let dvalue = allocator.copy_of(&vec![weight as f32; rows])?;
    let mut dlogits: Buffer<T> = allocator.alloc(policy.len())?;
    let args = VocabKlBwd {
        policy: policy.rows(vocab)?,
        reference: reference.rows(vocab)?,
        guidance,
        vocab: vocab as i64,
        transform,
        divergence: lesson.divergence,
        dvalue: dvalue.all(),
        dpolicy: dlogits.rows_mut(vocab)?,
    };
    vocab_kl_bwd(&model.device, args)?;
    drop((policy, reference, unguided));
    let dhidden = model.logits_backward(allocator, hidden, &dlogits, gradients)?;
    let loss = value.to_host()?.into_iter().map(|value| weight * value as f64).sum();
    Ok((loss, dhidden))
}
