//! A linear map y = x·Wᵀ (+ bias) (+ scale·(x·Aᵀ)·Bᵀ) whose weight is dense or 4-bit.

use crate::model::dropout::{Dropped, Masks};
use crate::model::params::{Gradients, ParamId, Parameters};
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, lora_grad, matmul,
    matmul_dw, matmul_dx, nf4_matmul, nf4_matmul_dx,
};
use gradus::quant::Nf4Matrix;
use gradus::view::View;

/// The stored weight `[n, k]`.
#[derive(Debug)]
pub enum Weight {
    /// Values in the parameter list.
    Dense(ParamId),
    /// 4-bit codes, frozen.
    Nf4(Nf4Matrix),
}

/// A low-rank update scale·B·A (Hu et al. 2021, arXiv:2106.09685).
#[derive(Clone, Copy, Debug)]
pub struct LoraAdapter {
    /// `[r, k]`.
    pub a: ParamId,
    /// `[n, r]`, zero at the start.
    pub b: ParamId,
    /// Rank.
    pub r: usize,
    /// alpha / r.
    pub scale: f64,
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// Parameter name without the `.weight` suffix.
    pub name: String,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// The weight.
    pub weight: Weight,
    /// `[n]`, if any.
    pub bias: Option<ParamId>,
    /// The adapter, if any.
    pub lora: Option<LoraAdapter>,
    /// Stays dense when the model is quantized: its folder says so.
    pub keep_dense: bool,
}

/// What every layer works with: the device, the memory of its results, the parameters.
#[derive(Debug)]
pub(crate) struct LayerContext<'a, T> {
    pub device: &'a Device,
    pub allocator: &'a Allocator,
    pub params: &'a Parameters<T>,
    /// Of what adapters read, if they drop something.
    pub masks: Option<&'a Masks>,
}

impl<T> Clone for LayerContext<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for LayerContext<'_, T> {}

/// The input of a linear map and, with an adapter, scale·x·Aᵀ: what its gradients need.
pub(crate) struct SavedInput<'a, T> {
    pub x: &'a Buffer<T>,
    pub s: Option<&'a Buffer<f32>>,
}

/// How a forward pass goes through a linear map.
pub(crate) struct LinearCall<'a, T> {
    /// With the adapter, or as the base model (the reference policy).
    pub adapt: bool,
    /// scale·x·Aᵀ is kept for the gradients.
    pub keep: bool,
    /// Added to the result.
    pub residual: Option<&'a Buffer<T>>,
}

impl Linear {
    fn lora_view<'a, T: Float>(
        &self,
        params: &'a Parameters<T>,
        adapt: bool,
    ) -> Result<Option<Lora<'a, T>>> {
        let Some(lora) = self.lora.filter(|_| adapt) else { return Ok(None) };
        let (a, b) = (params.matrix(lora.a)?, params.matrix(lora.b)?);
        Ok(Some(Lora { a, b, scale: lora.scale }))
    }

    /// y = self(x) for `[rows, k]` input, and s = scale·x·Aᵀ if it is kept.
    pub(crate) fn forward<T: Float>(
        &self,
        at: LayerContext<'_, T>,
        x: &Buffer<T>,
        call: LinearCall<'_, T>,
    ) -> Result<(Buffer<T>, Option<Buffer<f32>>)> {
        let x = x.rows(self.k)?;
        let rows = x.extent(0);
        let dropped = self.dropped(at).filter(|_| call.adapt);
        let lora = self.lora_view(at.params, call.adapt && dropped.is_none())?;
        let mut out = at.allocator.alloc(rows * self.n)?;
        let mut kept = match (&lora, self.lora) {
            (Some(_), Some(lora)) if call.keep => Some(at.allocator.alloc(rows * lora.r)?),
            (Some(_), Some(_) | None) | (None, Some(_) | None) => None,
        };
        let rank = self.lora.map_or(0, |lora| lora.r);
        let s = kept.as_mut().map(|s| s.rows_mut(rank)).transpose()?;
        let residual = call.residual.map(|x| x.rows(self.n)).transpose()?;
        let y = out.rows_mut(self.n)?;
        let bias = self.bias.map(|id| at.params.vector(id));
        let (lora, adapter) = (lora.as_slice(), None);
        match &self.weight {
            Weight::Dense(id) => {
                let w = at.params.matrix(at.params.chosen(*id, call.adapt))?;
                matmul(at.device, Matmul { x, w, bias, lora, adapter, residual, s, y })?;
            }
            Weight::Nf4(w) => {
                let w = w.view();
                nf4_matmul(at.device, Nf4Matmul { x, w, bias, lora, adapter, residual, s, y })?;
            }
        }
        match dropped {
            Some(dropped) => dropped.forward(x, &out, call.keep),
            None => Ok((out, kept)),
        }
    }

    /// The adapter, if its input is masked.
    fn dropped<'a, T>(&'a self, at: LayerContext<'a, T>) -> Option<Dropped<'a, T>> {
        let (masks, adapter) = (at.masks?, self.lora?);
        Some(Dropped { at, masks, adapter, name: &self.name })
    }

    /// Adds the gradients of the parameters, given the gradient `dy` of the output.
    pub(crate) fn parameter_gradients<T: Float>(
        &self,
        at: LayerContext<'_, T>,
        saved: SavedInput<'_, T>,
        dy: &Buffer<T>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (x, dy) = (saved.x.rows(self.k)?, dy.rows(self.n)?);
        if let (Some(dropped), Some(s)) = (self.dropped(at), saved.s) {
            dropped.parameter_gradients(x, dy, s, gradients)?;
        } else if let (Some(adapter), Some(lora), Some(s)) =
            (self.lora, self.lora_view(at.params, true)?, saved.s)
            && let Some((da, db)) = gradients.pair_mut(adapter.a, adapter.b)
        {
            let (da, db) = (da.rows_mut(self.k)?, db.rows_mut(adapter.r)?);
            let s = s.rows(adapter.r)?;
            lora_grad(at.device, LoraGrad { x, dy, s, lora, adapter: None, index: 0, da, db })?;
        }
        match &self.weight {
            Weight::Dense(id) => self.dense_gradient(at.device, *id, x, dy, gradients),
            Weight::Nf4(_) => Ok(()),
        }
    }

    /// Writes, or with `accumulate` adds, the gradient of the input to `dx`.
    pub(crate) fn input_gradient<T: Float>(
        &self,
        at: LayerContext<'_, T>,
        dy: &Buffer<T>,
        accumulate: bool,
        dx: &mut Buffer<T>,
    ) -> Result<()> {
        let dy = dy.rows(self.n)?;
        let dropped = self.dropped(at);
        let lora = self.lora_view(at.params, dropped.is_none())?;
        let (lora, adapter, to) = (lora.as_slice(), None, dx.rows_mut(self.k)?);
        match &self.weight {
            Weight::Dense(id) => {
                let w = at.params.matrix(*id)?;
                matmul_dx(at.device, MatmulDx { dy, w, lora, adapter, accumulate, dx: to })?;
            }
            Weight::Nf4(w) => {
                let (w, dx) = (w.view(), to);
                nf4_matmul_dx(at.device, Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx })?;
            }
        }
        dropped.map_or(Ok(()), |dropped| dropped.input_gradient(dy, dx))
    }

    fn dense_gradient<T: Float>(
        &self,
        device: &Device,
        weight: ParamId,
        x: View<'_, T>,
        dy: View<'_, T>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        match self.bias.and_then(|bias| gradients.pair_mut(weight, bias)) {
            Some((dw, dbias)) => {
                let (dw, dbias) = (dw.rows_mut(self.k)?, Some(dbias.all_mut()));
                matmul_dw(device, MatmulDw { dy, x, dw, dbias })
            }
            None => match gradients.get_mut(weight) {
                Some(dw) => {
                    let dw = dw.rows_mut(self.k)?;
                    matmul_dw(device, MatmulDw { dy, x, dw, dbias: None })
                }
                None => Ok(()),
            },
        }
    }
}
