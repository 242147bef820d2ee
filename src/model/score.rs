//! The head: logits for the sampler, log-probs with gradients for the trainer.

use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::linear::Weight;
use crate::model::params::Gradients;
use crate::ops::{
    Head, LinearLogProb, LinearLogProbBwd, LogitTransform, ScoreScale, linear_logprob,
    linear_logprob_bwd, score_scale,
};
use crate::view::{View, ViewMut};

/// Log-probs of target tokens, with what the backward pass needs.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// `[R]` log-prob of each target at the scoring temperature.
    pub logp: Vec<f32>,
    /// `[R]` entropy of each row's distribution, in nats.
    pub entropy: Vec<f32>,
    /// `[R, hidden]` ∂logp/∂hidden, kept only for a frozen head.
    score: Vec<f32>,
    temperature: f64,
}

impl Decoder {
    /// `[R, vocab]` logits of `[R, hidden]` final hidden states.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.head.forward(&self.device, &self.params, hidden, true, &mut logits, None)?;
        Ok(logits)
    }

    /// Log-probs of `targets` (`[R]`) under the rows `hidden` (`[R, hidden]`). A target's log-prob
    /// has the bits the sampler reported for it.
    pub fn score(&self, hidden: &[f32], targets: &[i32], temperature: f64) -> Result<Scores> {
        let n = targets.len();
        let frozen = !self.head_trains();
        let mut scores = Scores {
            logp: vec![0.0; n],
            entropy: vec![0.0; n],
            score: vec![0.0; if frozen { hidden.len() } else { 0 }],
            temperature,
        };
        let d = self.config.hidden;
        let args = LinearLogProb {
            entropy: Some(ViewMut::from(&mut scores.entropy)),
            score: if frozen { Some(ViewMut::rows_of(&mut scores.score, d)?) } else { None },
            transform: transform(temperature),
            ..LinearLogProb::new(
                View::rows_of(hidden, d)?,
                self.head_view()?,
                targets.into(),
                ViewMut::from(&mut scores.logp),
            )
        };
        linear_logprob(&self.device, args)?;
        Ok(scores)
    }

    /// Gradient of Σ dlogp·logp with respect to `hidden`; a trainable head's own gradient is added
    /// to `gradients`.
    pub fn score_backward(
        &self,
        hidden: &[f32],
        targets: &[i32],
        scores: &Scores,
        dlogp: &[f32],
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let d = self.config.hidden;
        let mut dhidden = vec![0.0; hidden.len()];
        let out = ViewMut::rows_of(&mut dhidden, d)?;
        if !self.head_trains() {
            let score = View::rows_of(&scores.score, d)?;
            score_scale(&self.device, ScoreScale { score, dlogp: dlogp.into(), dhidden: out })?;
            return Ok(dhidden);
        }
        let Weight::Dense(id) = self.head.weight else { return Ok(dhidden) };
        let args = LinearLogProbBwd {
            hidden: View::rows_of(hidden, d)?,
            head: self.head_view()?,
            lora: &[],
            targets: targets.into(),
            vocab: self.config.vocab as i64,
            transform: transform(scores.temperature),
            dlogp: dlogp.into(),
            dentropy: None,
            dhidden: out,
            dweight: match gradients.get_mut(id) {
                Some(dweight) => Some(ViewMut::rows_of(dweight, d)?),
                None => None,
            },
        };
        linear_logprob_bwd(&self.device, args)?;
        Ok(dhidden)
    }

    fn head_trains(&self) -> bool {
        matches!(self.head.weight, Weight::Dense(id) if self.params.get(id).trainable)
    }

    fn head_view(&self) -> Result<Head<'_, f32>> {
        Ok(match &self.head.weight {
            Weight::Dense(id) => Head::Dense(View::rows_of(self.params.data(*id), self.head.k)?),
            Weight::Nf4(w) => Head::Nf4(w.view()),
        })
    }
}

fn transform(temperature: f64) -> LogitTransform {
    LogitTransform { temperature, ..LogitTransform::default() }
}
