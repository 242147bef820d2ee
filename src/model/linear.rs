//! A linear map y = x·Wᵀ (+ bias) (+ scale·(x·Aᵀ)·Bᵀ) whose weight is dense or 4-bit.

use crate::device::Device;
use crate::error::Result;
use crate::model::params::{Gradients, ParamId, Parameters};
use crate::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, lora_grad, matmul,
    matmul_dw, matmul_dx, nf4_matmul, nf4_matmul_dx,
};
use crate::quant::Nf4Tensor;
use crate::view::{View, ViewMut};

/// The stored weight `[n, k]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// f32 values in the parameter list.
    Dense(ParamId),
    /// 4-bit codes, frozen.
    Nf4(Nf4Tensor),
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
#[derive(Clone, Debug)]
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
}

impl Linear {
    fn lora_view<'a>(&self, params: &'a Parameters, adapt: bool) -> Option<Lora<'a, f32>> {
        let lora = self.lora.filter(|_| adapt)?;
        Some(Lora {
            a: View::rows_of(params.data(lora.a), self.k).ok()?,
            b: View::rows_of(params.data(lora.b), lora.r).ok()?,
            scale: lora.scale,
        })
    }

    /// y = self(x) for `[rows, k]` input. With `adapt` false the adapter is left out (the
    /// reference model). `s` receives scale·x·Aᵀ for the backward pass.
    pub fn forward(
        &self,
        device: &Device,
        params: &Parameters,
        x: &[f32],
        adapt: bool,
        y: &mut Vec<f32>,
        s: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let rows = x.len() / self.k;
        y.resize(rows * self.n, 0.0);
        let lora = self.lora_view(params, adapt);
        let rank = self.lora.map_or(0, |l| l.r);
        let s = match s {
            Some(s) if lora.is_some() => {
                s.resize(rows * rank, 0.0);
                Some(ViewMut::rows_of(s, rank)?)
            }
            _ => None,
        };
        let x = View::rows_of(x, self.k)?;
        let y = ViewMut::rows_of(y, self.n)?;
        let bias = self.bias.map(|id| View::from(params.data(id)));
        let (lora, adapter) = (lora.as_slice(), None);
        match &self.weight {
            Weight::Dense(id) => {
                let w = View::rows_of(params.data(*id), self.k)?;
                matmul(device, Matmul { x, w, bias, lora, adapter, s, residual: None, y })
            }
            Weight::Nf4(w) => {
                let w = w.view();
                nf4_matmul(device, Nf4Matmul { x, w, bias, lora, adapter, s, residual: None, y })
            }
        }
    }

    /// Backward of [`Linear::forward`] at input `x`: adds the parameter gradients and, if wanted,
    /// writes (or with `accumulate` adds) the input gradient.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        device: &Device,
        params: &Parameters,
        x: &[f32],
        s: &[f32],
        dy: &[f32],
        gradients: &mut Gradients,
        dx: Option<(&mut Vec<f32>, bool)>,
    ) -> Result<()> {
        let x = View::rows_of(x, self.k)?;
        let dy = View::rows_of(dy, self.n)?;
        let lora = self.lora_view(params, true);
        if let (Some(adapter), Some(lora)) = (self.lora, lora)
            && let Some((da, db)) = gradients.pair_mut(adapter.a, adapter.b)
        {
            let (da, db) = (ViewMut::rows_of(da, self.k)?, ViewMut::rows_of(db, adapter.r)?);
            let s = View::rows_of(s, adapter.r)?;
            lora_grad(device, LoraGrad { x, dy, s, lora, adapter: None, index: 0, da, db })?;
        }
        if let Weight::Dense(id) = &self.weight {
            self.dense_gradient(device, *id, x, dy, gradients)?;
        }
        let Some((dx, accumulate)) = dx else { return Ok(()) };
        dx.resize(x.extent(0) * self.k, 0.0);
        let dx = ViewMut::rows_of(dx, self.k)?;
        let (lora, adapter) = (lora.as_slice(), None);
        match &self.weight {
            Weight::Dense(id) => {
                let w = View::rows_of(params.data(*id), self.k)?;
                matmul_dx(device, MatmulDx { dy, w, lora, adapter, accumulate, dx })
            }
            Weight::Nf4(w) => {
                let w = w.view();
                nf4_matmul_dx(device, Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx })
            }
        }
    }

    fn dense_gradient(
        &self,
        device: &Device,
        weight: ParamId,
        x: View<'_, f32>,
        dy: View<'_, f32>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        match self.bias.and_then(|bias| gradients.pair_mut(weight, bias)) {
            Some((dw, dbias)) => {
                let (dw, dbias) = (ViewMut::rows_of(dw, self.k)?, Some(ViewMut::from(dbias)));
                matmul_dw(device, MatmulDw { dy, x, dw, dbias })
            }
            None => match gradients.get_mut(weight) {
                Some(dw) => {
                    let dw = ViewMut::rows_of(dw, self.k)?;
                    matmul_dw(device, MatmulDw { dy, x, dw, dbias: None })
                }
                None => Ok(()),
            },
        }
    }
}
