//! A critic whose loss moves the trunk that it reads, together with the policy's.

use std::ops::Range;

use crate::model::{Decoder, ValueHead};
use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{ValueLoss, value_loss};

/// The critic's term of an update: Σ weight·½·max((V − R)², (clipped V − R)²) over the scored tokens.
#[derive(Clone, Copy, Debug)]
pub struct CriticTerm<'a> {
    /// V(h).
    pub head: &'a ValueHead,
    /// `[N]` returns of all scored tokens of the batch.
    pub returns: &'a [f32],
    /// `[N]` values when the batch came in.
    pub value: &'a [f32],
    /// How far V may leave those; infinity = anywhere.
    pub clip: f64,
    /// Weight of each token.
    pub weight: f64,
}

/// What the term amounts to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CriticShare {
    /// Weighted loss.
    pub loss: f64,
    /// Gradient of the head; empty without a critic.
    pub gradient: Vec<f32>,
}

impl CriticShare {
    /// Adds the share of further tokens.
    pub(super) fn add(&mut self, other: &CriticShare) {
        self.loss += other.loss;
        self.gradient.resize(other.gradient.len().max(self.gradient.len()), 0.0);
        self.gradient.iter_mut().zip(&other.gradient).for_each(|(sum, g)| *sum += g);
    }
}

impl CriticTerm<'_> {
    /// The share of the tokens `span`, whose hidden states are `rows`; adds its gradient with respect to
    /// them to `drows`. The head is small and lives on the host, so that the states come there.
    pub(super) fn backward<T: Float>(
        &self,
        model: &Decoder<T>,
        span: Range<usize>,
        rows: &Buffer<T>,
        drows: &mut Buffer<T>,
    ) -> Result<CriticShare> {
        let hidden: Vec<f32> = rows.to_host()?.into_iter().map(T::to_f32).collect();
        let value = self.head.forward(&hidden)?;
        let mut dvalue = vec![0f32; value.len()];
        let mut share = CriticShare { loss: 0.0, gradient: vec![0.0; self.head.weight.len()] };
        let args = ValueLoss {
            value: (&value).into(),
            returns: self.returns[span.clone()].into(),
            old_value: Some(self.value[span].into()),
            mask: None,
            clip: self.clip,
            weight: self.weight,
            loss: &mut share.loss,
            dvalue: (&mut dvalue).into(),
        };
        value_loss(&model.device, args)?;
        self.head.backward(&hidden, &dvalue, &mut share.gradient);
        let weight = &self.head.weight[..self.head.weight.len() - 1];
        let mut gradient = drows.to_host()?;
        for (row, &dv) in gradient.chunks_exact_mut(weight.len()).zip(&dvalue) {
            let each = row.iter_mut().zip(weight);
            each.for_each(|(g, &w)| *g = T::from_f64(g.to_f64() + dv as f64 * w as f64));
        }
        drows.upload(&gradient)?;
        Ok(share)
    }
}
