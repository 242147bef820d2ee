//! One token of every running sequence: through the model, to logits, to a draw.

use crate::device::{Memory, Space};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::model::{Decoder, KvCache, Packed};
use crate::ops::{CopyRows, LogitTransform, Sample, copy_rows, sample};
use crate::train::rollout::Sampling;

/// Tokens drawn, with their log-probs under the full vocabulary.
pub(crate) struct Draw {
    pub token: Vec<i32>,
    pub logp: Vec<f32>,
}

/// A decode step and what it needs from one call to the next.
pub(crate) struct Decode<'a, T: Float> {
    model: &'a Decoder<T>,
    sampling: &'a Sampling,
    slots: usize,
}

impl<'a, T: Float> Decode<'a, T> {
    /// Steps of at most `slots` sequences.
    pub fn new(
        model: &'a Decoder<T>,
        sampling: &'a Sampling,
        slots: usize,
    ) -> Result<Decode<'a, T>> {
        Ok(Decode { model, sampling, slots })
    }

    /// Copies rows of logits into those from `first` on of `all`.
    pub fn keep_logits(
        &self,
        space: &Space,
        logits: &Memory<T>,
        first: usize,
        all: &mut Memory<T>,
    ) -> Result<()> {
        let vocab = self.model.config.vocab;
        let count = logits.len() / vocab;
        let to: Vec<i32> = (first..first + count).map(|row| row as i32).collect();
        let to = space.copy_of(&to)?;
        let (x, y) = (logits.rows(vocab)?, all.rows_mut(vocab)?);
        copy_rows(&self.model.device, CopyRows { x, from: None, to: Some(to.all()), y })
    }

    /// Draws a token from every row of `logits`.
    pub fn draw(&self, space: &Space, logits: &Memory<T>, uniform: &[f64]) -> Result<Draw> {
        let n = uniform.len();
        let uniform = space.copy_of(uniform)?;
        let (mut token, mut logp) = (space.take(n)?, space.take(n)?);
        self.sample(logits, &uniform, &mut token, &mut logp)?;
        fetched(&token, &logp, n)
    }

    /// The next token of the sequences in `slots`, whose last ones are `packed`.
    pub fn step(
        &mut self,
        cache: &mut KvCache<T>,
        packed: &Packed,
        slots: &[usize],
        uniform: &[f64],
    ) -> Result<Draw> {
        let space = &self.model.space;
        let batch = cache.batch(space, packed, slots)?;
        let hidden = self.model.forward(&batch, true, Some(cache), None)?;
        let logits = self.model.logits(space, &hidden)?;
        self.draw(space, &logits, uniform)
    }

    fn sample(
        &self,
        logits: &Memory<T>,
        uniform: &Memory<f64>,
        token: &mut Memory<i32>,
        logp: &mut Memory<f32>,
    ) -> Result<()> {
        let vocab = self.model.config.vocab;
        let s = self.sampling;
        let args = Sample {
            logits: logits.rows(vocab)?,
            vocab: vocab as i64,
            transform: LogitTransform { temperature: s.temperature, ..Default::default() },
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            greedy: s.greedy,
            uniform: uniform.all(),
            token: token.all_mut(),
            logp: logp.all_mut(),
            logp_kept: None,
            kept_mass: None,
        };
        sample(&self.model.device, args)
    }
}

/// The first `n` tokens and log-probs. On a GPU a row that nothing can be drawn from shows as a
/// negative token.
fn fetched(token: &Memory<i32>, logp: &Memory<f32>, n: usize) -> Result<Draw> {
    let (mut token, mut logp) = (token.to_host()?, logp.to_host()?);
    token.truncate(n);
    logp.truncate(n);
    if let Some(row) = token.iter().position(|&t| t < 0) {
        let got = format!("row {row} without a finite maximum or with NaN");
        let expected = "rows that something can be drawn from";
        return Err(Error::invalid("sample", "logits", got, expected));
    }
    Ok(Draw { token, logp })
}
