//! Dropout on what adapters read, in training alone (Hu et al. 2021, arXiv:2106.09685; PEFT's
//! `lora_dropout`):
//!
//! ```text
//! y = x·Wᵀ + scale·(drop(x)·Aᵀ)·Bᵀ
//! ```
//! A mask is a function of the update, the linear map, the sequence's number in the batch and the token's
//! place: micro-batches, a resume and the backward pass find the same one, and none is stored.

use crate::model::batch::Packed;
use crate::model::linear::{LayerContext, LoraAdapter};
use crate::model::params::Gradients;
use gradus::device::{Allocator, Buffer, Device};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::{
    Convert, Dropout, Lora, LoraGrad, Matmul, MatmulDx, convert, dropout, lora_grad, matmul,
    matmul_dx,
};
use gradus::rng::fold;
use gradus::view::{View, ViewMut};

/// The masks of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterDropout {
    /// Share of the inputs that become 0, in [0, 1).
    pub p: f64,
    /// Names the update.
    pub key: u64,
}

/// Masks of the tokens of a batch.
#[derive(Debug)]
pub(crate) struct Masks {
    dropout: AdapterDropout,
    /// `[T]` number of each token's sequence, counted over all micro-batches.
    streams: Buffer<i32>,
    /// `[T]` place of each token in its sequence.
    positions: Buffer<i32>,
}

impl Masks {
    /// Masks of sequences that are number `first` and on of the update's.
    pub(crate) fn place(
        dropout: AdapterDropout,
        packed: &Packed,
        first: usize,
        allocator: &Allocator,
    ) -> Result<Masks> {
        let stream = |i: usize| std::iter::repeat_n((first + i) as i32, packed.span(i).len());
        let streams: Vec<i32> = (0..packed.sequences()).flat_map(stream).collect();
        let (streams, positions) =
            (allocator.copy_of(&streams)?, allocator.copy_of(&packed.positions)?);
        Ok(Masks { dropout, streams, positions })
    }
}

/// An adapter whose input is masked.
pub(crate) struct Dropped<'a, T> {
    pub at: LayerContext<'a, T>,
    pub masks: &'a Masks,
    pub adapter: LoraAdapter,
    /// Of the linear map, which has masks of its own.
    pub name: &'a str,
}

impl<T: Float> Dropped<'_, T> {
    /// scale·drop(x), in the place of `y` or added to it: the map from x, and the one of its gradient.
    fn mask(&self, x: View<'_, T>, accumulate: bool, y: &mut Buffer<T>) -> Result<()> {
        let AdapterDropout { p, key } = self.masks.dropout;
        let words: Vec<u64> = self.name.bytes().map(u64::from).collect();
        let args = Dropout {
            streams: self.masks.streams.all(),
            positions: self.masks.positions.all(),
            p,
            scale: self.adapter.scale,
            key: fold(key, &words),
            accumulate,
            y: y.rows_mut(x.extent(1))?,
            x,
        };
        dropout(self.at.device, args)
    }

    fn masked(&self, x: View<'_, T>) -> Result<Buffer<T>> {
        let mut dropped = self.at.allocator.alloc(x.extent(0) * x.extent(1))?;
        self.mask(x, false, &mut dropped)?;
        Ok(dropped)
    }

    /// base + s·Bᵀ, and s = scale·drop(x)·Aᵀ if it is kept.
    pub(crate) fn forward(
        &self,
        x: View<'_, T>,
        base: &Buffer<T>,
        keep: bool,
    ) -> Result<(Buffer<T>, Option<Buffer<f32>>)> {
        let (at, r) = (self.at, self.adapter.r);
        let (a, b) = (at.params.matrix(self.adapter.a)?, at.params.matrix(self.adapter.b)?);
        let (rows, k, n) = (x.extent(0), x.extent(1), b.extent(0));
        let dropped = self.masked(x)?;
        let mut s = at.allocator.alloc(rows * r)?;
        product(at.device, [dropped.rows(k)?, a], None, s.rows_mut(r)?)?;
        drop(dropped);
        let mut y = at.allocator.alloc(base.len())?;
        product(at.device, [s.rows(r)?, b], Some(base.rows(n)?), y.rows_mut(n)?)?;
        if !keep {
            return Ok((y, None));
        }
        let mut wide = at.allocator.alloc(s.len())?;
        convert(at.device, Convert { x: s.all(), y: wide.all_mut() })?;
        Ok((y, Some(wide)))
    }

    /// Adds the gradients of A and B.
    pub(crate) fn parameter_gradients(
        &self,
        x: View<'_, T>,
        dy: View<'_, T>,
        s: &Buffer<f32>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (at, r) = (self.at, self.adapter.r);
        let Some((da, db)) = gradients.pair_mut(self.adapter.a, self.adapter.b) else {
            return Ok(());
        };
        let (a, b) = (at.params.matrix(self.adapter.a)?, at.params.matrix(self.adapter.b)?);
        let (k, dropped) = (x.extent(1), self.masked(x)?);
        let args = LoraGrad {
            x: dropped.rows(k)?,
            dy,
            s: s.rows(r)?,
            // The mask has scaled already.
            lora: Lora { a, b, scale: 1.0 },
            adapter: None,
            index: 0,
            da: da.rows_mut(k)?,
            db: db.rows_mut(r)?,
        };
        lora_grad(at.device, args)
    }

    /// Adds scale·drop((dy·B)·A) to `dx`.
    pub(crate) fn input_gradient(&self, dy: View<'_, T>, dx: &mut Buffer<T>) -> Result<()> {
        let (at, r, rows) = (self.at, self.adapter.r, dy.extent(0));
        let (a, b) = (at.params.matrix(self.adapter.a)?, at.params.matrix(self.adapter.b)?);
        let k = a.extent(1);
        let (mut ds, mut wide) = (at.allocator.alloc(rows * r)?, at.allocator.alloc(rows * k)?);
        product_back(at.device, [dy, b], ds.rows_mut(r)?)?;
        product_back(at.device, [ds.rows(r)?, a], wide.rows_mut(k)?)?;
        self.mask(wide.rows(k)?, true, dx)
    }
}

/// residual + x·wᵀ.
fn product<T: Float>(
    device: &Device,
    [x, w]: [View<'_, T>; 2],
    residual: Option<View<'_, T>>,
    y: ViewMut<'_, T>,
) -> Result<()> {
    matmul(device, Matmul { x, w, bias: None, lora: &[], adapter: None, residual, s: None, y })
}

/// dy·w.
fn product_back<T: Float>(
    device: &Device,
    [dy, w]: [View<'_, T>; 2],
    dx: ViewMut<'_, T>,
) -> Result<()> {
    matmul_dx(device, MatmulDx { dy, w, lora: &[], adapter: None, accumulate: false, dx })
}
