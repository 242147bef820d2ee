//! A linear map y = x·Wᵀ (+ bias) (+ scale·(x·Aᵀ)·Bᵀ) whose weight is dense or 4-bit.

use crate::model::dropout::{Dropped, Masks};
use crate::model::params::{Gradients, ParamId, Parameters};
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::{Error, Result};
use gradus::ops::{
    FanMap, Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, ProductFan, Swiglu,
    lora_grad, matmul, matmul_dw, matmul_dx, matmul_fan, nf4_matmul, nf4_matmul_dx, nf4_matmul_fan,
    swiglu,
};
use gradus::quant::{Nf4Matrix, Nf4View};
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

/// A map's result and, if it is kept, scale·x·Aᵀ.
pub(crate) type Output<T> = (Buffer<T>, Option<Buffer<f32>>);

/// Maps of one input.
pub(crate) struct Fan<'a, T, const N: usize> {
    pub maps: [&'a Linear; N],
    pub at: LayerContext<'a, T>,
    /// `[rows, k]`.
    pub x: &'a Buffer<T>,
    /// As for one map.
    pub adapt: bool,
    pub keep: bool,
}

impl<'a, T: Float, const N: usize> Fan<'a, T, N> {
    /// The results, bit for bit those of each map by itself, and silu(first) ⊙ second, if there is a place for it.
    pub(crate) fn forward(&self, gated: Option<&mut Buffer<T>>) -> Result<[Output<T>; N]> {
        let (at, rows) = (self.at, self.x.len() / self.maps[0].k);
        let dense = |map: &&&Linear| matches!(map.weight, Weight::Dense(_));
        let count = self.maps.iter().filter(dense).count();
        let masked = self.adapt && at.masks.is_some();
        if masked || !(count == 0 || count == N) {
            // Adapters read something else than the weights do, or some weights are 4-bit and some are not.
            return self.one_by_one(gated);
        }
        let place = |map: &&Linear| -> Result<Output<T>> {
            let kept = map.kept(at, rows, self.adapt && self.keep)?;
            Ok((at.allocator.alloc(rows * map.n)?, kept))
        };
        let mut outputs: Vec<Output<T>> = self.maps.iter().map(place).collect::<Result<_>>()?;
        if count == 0 {
            let args = self.arguments(&mut outputs, gated, Linear::nf4)?;
            nf4_matmul_fan(at.device, args)?;
        } else {
            let weight = |map: &'a Linear| map.dense(at.params, self.adapt);
            matmul_fan(at.device, self.arguments(&mut outputs, gated, weight)?)?;
        }
        let Ok(outputs) = outputs.try_into() else { unreachable!("one for each map") };
        Ok(outputs)
    }

    /// What the op takes for maps whose weights `weight` finds.
    fn arguments<'o, W>(
        &self,
        outputs: &'o mut [Output<T>],
        gated: Option<&'o mut Buffer<T>>,
        weight: impl Fn(&'a Linear) -> Result<W>,
    ) -> Result<ProductFan<'o, T, W>>
    where
        'a: 'o,
    {
        let of = |(map, (y, s)): (&&'a Linear, &'o mut Output<T>)| -> Result<FanMap<'o, T, W>> {
            let rank = map.lora.map_or(0, |lora| lora.r);
            Ok(FanMap {
                w: weight(map)?,
                bias: map.bias.map(|id| self.at.params.vector(id)),
                lora: map.lora_view(self.at.params, self.adapt)?,
                s: s.as_mut().map(|s| s.rows_mut(rank)).transpose()?,
                y: y.rows_mut(map.n)?,
            })
        };
        Ok(ProductFan {
            x: self.x.rows(self.maps[0].k)?,
            maps: self.maps.iter().zip(outputs).map(of).collect::<Result<_>>()?,
            gated: gated.map(|y| y.rows_mut(self.maps[0].n)).transpose()?,
        })
    }

    fn one_by_one(&self, gated: Option<&mut Buffer<T>>) -> Result<[Output<T>; N]> {
        let call = || LinearCall { adapt: self.adapt, keep: self.keep, residual: None };
        let each = |map: &&Linear| map.forward(self.at, self.x, call());
        let outputs: Vec<Output<T>> = self.maps.iter().map(each).collect::<Result<_>>()?;
        if let (Some(y), [(gate, _), (up, _)]) = (gated, &outputs[..]) {
            let width = self.maps[0].n;
            let (gate, up) = (gate.rows(width)?, up.rows(width)?);
            swiglu(self.at.device, Swiglu { gate, up, y: y.rows_mut(width)? })?;
        }
        let Ok(outputs) = outputs.try_into() else { unreachable!("one for each map") };
        Ok(outputs)
    }
}

impl Linear {
    /// The 4-bit weight.
    fn nf4(&self) -> Result<Nf4View<'_>> {
        match &self.weight {
            Weight::Nf4(w) => Ok(w.view()),
            Weight::Dense(_) => {
                let got = format!("{}, which is dense", self.name);
                Err(Error::invalid("forward", "weight", got, "a 4-bit weight"))
            }
        }
    }

    /// The dense weight.
    fn dense<'a, T: Float>(&self, params: &'a Parameters<T>, adapt: bool) -> Result<View<'a, T>> {
        match self.weight {
            Weight::Dense(id) => params.matrix(params.chosen(id, adapt)),
            Weight::Nf4(_) => {
                let got = format!("{} in 4 bits", self.name);
                Err(Error::invalid("forward", "weight", got, "a dense weight"))
            }
        }
    }

    /// Room for scale·x·Aᵀ of `rows` rows, if there is an adapter and it is wanted.
    fn kept<T: Float>(
        &self,
        at: LayerContext<'_, T>,
        rows: usize,
        wanted: bool,
    ) -> Result<Option<Buffer<f32>>> {
        self.lora.filter(|_| wanted).map(|lora| at.allocator.alloc(rows * lora.r)).transpose()
    }

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
        let mut kept = self.kept(at, rows, call.adapt && call.keep && dropped.is_none())?;
        let rank = self.lora.map_or(0, |lora| lora.r);
        let s = kept.as_mut().map(|s| s.rows_mut(rank)).transpose()?;
        let residual = call.residual.map(|x| x.rows(self.n)).transpose()?;
        let y = out.rows_mut(self.n)?;
        let bias = self.bias.map(|id| at.params.vector(id));
        let (lora, adapter) = (lora.as_slice(), None);
        match &self.weight {
            Weight::Dense(_) => {
                let w = self.dense(at.params, call.adapt)?;
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
