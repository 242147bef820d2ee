//! The head: logits for the sampler, log-probs with gradients for the trainer.

use crate::model::decoder::Decoder;
use crate::model::linear::{LinearCall, SavedInput, Weight};
use crate::model::params::Gradients;
use gradus::device::{Allocator, Buffer};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    Head, LinearLogProb, LinearLogProbBwd, LogitTransform, Matmul, ScoreScale, linear_logprob,
    linear_logprob_bwd, matmul, score_scale,
};

/// What scores are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreUse {
    /// Nothing is differentiated.
    Values,
    /// The log-probs are differentiated.
    LogProbs,
    /// Log-probs and entropies are.
    WithEntropy,
}

/// Gradients of a loss with respect to log-probs and entropies.
#[derive(Debug)]
pub struct ScoreGradients {
    /// `[R]` ∂loss/∂logp.
    pub logp: Buffer<f32>,
    /// `[R]` ∂loss/∂entropy, if the loss depends on it.
    pub entropy: Option<Buffer<f32>>,
}

/// Log-probs of target tokens, with what the backward pass needs.
#[derive(Debug)]
pub struct Scores<T = f32> {
    /// `[R]` log-prob of each target at the scoring temperature.
    pub logp: Buffer<f32>,
    /// `[R]` entropy of each row's distribution, in nats.
    pub entropy: Buffer<f32>,
    /// `[R, hidden]` ∂logp/∂hidden, kept only for a frozen head and log-probs alone.
    score: Option<Buffer<T>>,
    temperature: f64,
}

impl<T: Float> Decoder<T> {
    /// `[R, vocab]` logits of `[R, hidden]` final hidden states.
    pub fn logits(&self, allocator: &Allocator, hidden: &Buffer<T>) -> Result<Buffer<T>> {
        let call = LinearCall { adapt: true, keep: false, residual: None };
        Ok(self.head.forward(self.layer_context(allocator), hidden, call)?.0)
    }

    /// `[R, vocab]` logits of the first `vocab` ids, for a head that may have more.
    ///
    /// # Errors
    /// `InvalidArgument` for fewer ids than that, or for a 4-bit head of more.
    pub(crate) fn first_logits(
        &self,
        allocator: &Allocator,
        hidden: &Buffer<T>,
        vocab: usize,
    ) -> Result<Buffer<T>> {
        let Weight::Dense(id) = self.head.weight else {
            if vocab == self.config.vocab {
                return self.logits(allocator, hidden);
            }
            let got = format!("{} ids in 4 bits", self.config.vocab);
            return Err(Error::invalid("first_logits", "head", got, format!("{vocab} ids")));
        };
        let x = hidden.rows(self.config.hidden)?;
        let w = self.params.matrix(id)?.narrow(0, vocab)?;
        let mut out = allocator.alloc(x.extent(0) * vocab)?;
        let (y, lora) = (out.rows_mut(vocab)?, [].as_slice());
        let (bias, adapter, residual, s) = (None, None, None, None);
        matmul(&self.device, Matmul { x, w, bias, lora, adapter, residual, s, y })?;
        Ok(out)
    }

    /// Gradient with respect to `hidden`, given the one of [`Decoder::logits`]; a trainable head's own
    /// gradient is added to `gradients`.
    ///
    /// # Errors
    /// What the ops say.
    pub(crate) fn logits_backward(
        &self,
        allocator: &Allocator,
        hidden: &Buffer<T>,
        dlogits: &Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<Buffer<T>> {
        let at = self.layer_context(allocator);
        self.head.parameter_gradients(at, SavedInput { x: hidden, s: None }, dlogits, gradients)?;
        let mut dhidden = allocator.alloc(hidden.len())?;
        self.head.input_gradient(at, dlogits, false, &mut dhidden)?;
        Ok(dhidden)
    }

    /// Log-probs of `targets` (`[R]`) under the rows `hidden` (`[R, hidden]`). A target's log-prob
    /// has the bits the sampler reported for it.
    pub fn score(
        &self,
        allocator: &Allocator,
        hidden: &Buffer<T>,
        targets: &Buffer<i32>,
        temperature: f64,
        wanted: ScoreUse,
    ) -> Result<Scores<T>> {
        self.score_as(allocator, hidden, targets, temperature, wanted, true)
    }

    /// Scores `hidden` as [`Decoder::score`] does, with the head of the adapters, or without `adapt` with
    /// that of the base model.
    pub(crate) fn score_as(
        &self,
        allocator: &Allocator,
        hidden: &Buffer<T>,
        targets: &Buffer<i32>,
        temperature: f64,
        wanted: ScoreUse,
        adapt: bool,
    ) -> Result<Scores<T>> {
        let (n, d) = (targets.len(), self.config.hidden);
        let vector = wanted == ScoreUse::LogProbs && !self.head_trains();
        let mut scores = Scores {
            logp: allocator.alloc(n)?,
            entropy: allocator.alloc(n)?,
            score: vector.then(|| allocator.alloc(hidden.len())).transpose()?,
            temperature,
        };
        let args = LinearLogProb {
            entropy: Some(scores.entropy.all_mut()),
            score: scores.score.as_mut().map(|score| score.rows_mut(d)).transpose()?,
            transform: transform(temperature),
            ..LinearLogProb::new(
                hidden.rows(d)?,
                self.head_view(adapt)?,
                targets.all(),
                scores.logp.all_mut(),
            )
        };
        linear_logprob(&self.device, args)?;
        Ok(scores)
    }

    /// Gradient of Σ d.logp·logp + Σ d.entropy·entropy with respect to `hidden`; a trainable head's
    /// own gradient is added to `gradients`.
    ///
    /// # Errors
    /// `InvalidArgument` for entropies of scores that were not made for that; what the ops say.
    pub fn score_backward(
        &self,
        allocator: &Allocator,
        hidden: &Buffer<T>,
        targets: &Buffer<i32>,
        scores: &Scores<T>,
        gradient: &ScoreGradients,
        gradients: &mut Gradients,
    ) -> Result<Buffer<T>> {
        let d = self.config.hidden;
        let mut dhidden = allocator.alloc(hidden.len())?;
        let (out, dlogp) = (dhidden.rows_mut(d)?, gradient.logp.all());
        if let Some(score) = &scores.score {
            if gradient.entropy.is_some() {
                let expected = "none: the scores were made for log-probs alone";
                return Err(Error::invalid("score_backward", "entropy", "a gradient", expected));
            }
            let score = score.rows(d)?;
            score_scale(&self.device, ScoreScale { score, dlogp, dhidden: out })?;
            return Ok(dhidden);
        }
        let dweight = match self.head.weight {
            Weight::Dense(id) => gradients.get_mut(id),
            Weight::Nf4(_) => None,
        };
        let args = LinearLogProbBwd {
            hidden: hidden.rows(d)?,
            head: self.head_view(true)?,
            lora: &[],
            targets: targets.all(),
            vocab: self.config.vocab as i64,
            transform: transform(scores.temperature),
            dlogp,
            dentropy: gradient.entropy.as_ref().map(Buffer::all),
            dhidden: out,
            dweight: dweight.map(|dweight| dweight.rows_mut(d)).transpose()?,
        };
        linear_logprob_bwd(&self.device, args)?;
        Ok(dhidden)
    }

    fn head_trains(&self) -> bool {
        matches!(self.head.weight, Weight::Dense(id) if self.params.get(id).trainable)
    }

    fn head_view(&self, adapt: bool) -> Result<Head<'_, T>> {
        Ok(match &self.head.weight {
            Weight::Dense(id) => Head::Dense(self.params.matrix(self.params.chosen(*id, adapt))?),
            Weight::Nf4(w) => Head::Nf4(w.view()),
        })
    }
}

fn transform(temperature: f64) -> LogitTransform {
    LogitTransform { temperature, ..LogitTransform::default() }
}
