//! Matrix products with a weight `[N, K]`: Y = X·Wᵀ, dX = dY·W, dW = dYᵀ·X, with bias and low-rank
//! adapters in the same accumulators.

use crate::cpu::matmul::{self as cpu, Base};
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::view::{View, ViewMut};

/// A low-rank update scale·B·A of a weight (Hu et al. 2021, arXiv:2106.09685, eq. 3).
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a, T> {
    /// `[r, K]`.
    pub a: View<'a, T>,
    /// `[N, r]`.
    pub b: View<'a, T>,
    /// alpha / r; finite.
    pub scale: f64,
}

/// Arguments of [`matmul`].
#[derive(Debug)]
pub struct Matmul<'a, T> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// `[N, K]` weight.
    pub w: View<'a, T>,
    /// `[N]` added to every row, if any.
    pub bias: Option<View<'a, T>>,
    /// Adapters, all of one rank r; empty = none.
    pub lora: &'a [Lora<'a, T>],
    /// `[M]` adapter of each row, −1 = the base alone. `None` = adapter 0 for every row.
    pub adapter: Option<View<'a, i32>>,
    /// `[M, r]` S = scale·X·Aᵀ, kept for the backward pass, if wanted; 0 for rows without adapter.
    pub s: Option<ViewMut<'a, f32>>,
    /// `[M, N]` output.
    pub y: ViewMut<'a, T>,
}

/// Y = X·Wᵀ + S·Bᵀ + bias with S = scale·X·Aᵀ.
///
/// Every output is one chain of f32 fused multiply-adds in increasing k, continued by the r steps
/// of its adapter on S rounded to f32; the bias is added last and the sum rounded once to `T`. A
/// row's bits do not depend on the other rows: alone, in a batch, with any number of threads. (f64
/// views accumulate in f64.) |Y − exact| <= (K + r + 2)·2⁻²⁴·(|X||W|ᵀ + |S||B|ᵀ) + rounding to `T`.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a scale that is not finite, or an adapter index
/// outside `-1..lora.len()`.
///
/// # Cost
/// `2·M·N·K + 2·M·r·(N + K)` flops; W is read once per call and packed panel by panel.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Matmul, matmul}};
/// let (x, w, mut y) = ([1.0f32, 2.0], [3.0f32, 4.0, 5.0, 6.0], [0f32; 2]);
/// matmul(&Device::Cpu, Matmul {
///     x: View::new(&x, &[1, 2])?,
///     w: View::new(&w, &[2, 2])?,
///     bias: None,
///     lora: &[],
///     adapter: None,
///     s: None,
///     y: ViewMut::new(&mut y, &[1, 2])?,
/// })?;
/// assert_eq!(y, [11.0, 17.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul<T: Float>(device: &Device, args: Matmul<'_, T>) -> Result<()> {
    let check = Check("matmul");
    check.rank(device, "x", &args.x, 2)?;
    check.rank(device, "w", &args.w, 2)?;
    let (m, n, k) = (args.x.extent(0), args.w.extent(0), args.w.extent(1));
    check.shape(device, "x", &args.x, &[m, k])?;
    check.opt_shape(device, "bias", &args.bias, &[n])?;
    check.shape(device, "y", &args.y, &[m, n])?;
    let rank = check_lora(check, device, args.lora, &args.adapter, m, n, k)?;
    check_s(check, device, &args.s, m, rank)?;
    match device {
        Device::Cpu => {
            let base = Base::Dense(args.w);
            cpu::matmul(args.x, base, args.bias, args.lora, args.adapter, args.s, args.y)
        }
    }
    Ok(())
}

/// Arguments of [`matmul_dx`].
#[derive(Debug)]
pub struct MatmulDx<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[N, K]` weight.
    pub w: View<'a, T>,
    /// Adapters of the forward pass.
    pub lora: &'a [Lora<'a, T>],
    /// Adapter of each row in the forward pass.
    pub adapter: Option<View<'a, i32>>,
    /// Adds to `dx` instead of replacing it.
    pub accumulate: bool,
    /// `[M, K]` gradient of the input.
    pub dx: ViewMut<'a, T>,
}

/// dX = dY·W + (scale·dY·B)·A, chains over n as in [`matmul`].
///
/// # Errors
/// As [`matmul`].
///
/// # Cost
/// `2·M·N·K + 2·M·r·(N + K)` flops.
pub fn matmul_dx<T: Float>(device: &Device, args: MatmulDx<'_, T>) -> Result<()> {
    let check = Check("matmul_dx");
    check.rank(device, "dy", &args.dy, 2)?;
    check.rank(device, "w", &args.w, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.w.extent(0), args.w.extent(1));
    check.shape(device, "dy", &args.dy, &[m, n])?;
    check.shape(device, "dx", &args.dx, &[m, k])?;
    check_lora(check, device, args.lora, &args.adapter, m, n, k)?;
    match device {
        Device::Cpu => {
            let base = Base::Dense(args.w);
            cpu::matmul_dx(args.dy, base, args.lora, args.adapter, args.accumulate, args.dx)
        }
    }
    Ok(())
}

/// Arguments of [`matmul_dw`].
#[derive(Debug)]
pub struct MatmulDw<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[M, K]` input of the forward pass.
    pub x: View<'a, T>,
    /// `[N, K]` gradient of the weight; added to what is there.
    pub dw: ViewMut<'a, f32>,
    /// `[N]` gradient of the bias, if wanted; added to what is there.
    pub dbias: Option<ViewMut<'a, f32>>,
}

/// dW += dYᵀ·X, chains over the rows in order; dbias += Σ_m dY[m].
///
/// # Errors
/// As [`matmul`].
///
/// # Cost
/// `2·M·N·K` flops.
pub fn matmul_dw<T: Float>(device: &Device, args: MatmulDw<'_, T>) -> Result<()> {
    let check = Check("matmul_dw");
    check.rank(device, "dy", &args.dy, 2)?;
    check.rank(device, "x", &args.x, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.dy.extent(1), args.x.extent(1));
    check.shape(device, "x", &args.x, &[m, k])?;
    check.shape(device, "dw", &args.dw, &[n, k])?;
    check.opt_shape(device, "dbias", &args.dbias, &[n])?;
    match device {
        Device::Cpu => cpu::matmul_dw(args),
    }
    Ok(())
}

/// Checks adapters against `[M, K] -> [M, N]`; returns their rank, 0 without any.
pub(crate) fn check_lora<T: Float>(
    check: Check,
    device: &Device,
    lora: &[Lora<'_, T>],
    adapter: &Option<View<'_, i32>>,
    m: usize,
    n: usize,
    k: usize,
) -> Result<usize> {
    let rank = lora.first().map_or(0, |l| l.a.extent(0));
    for l in lora {
        check.shape(device, "lora.a", &l.a, &[rank, k])?;
        check.shape(device, "lora.b", &l.b, &[n, rank])?;
        check.that(l.scale.is_finite(), "lora.scale", l.scale, "a finite number")?;
    }
    check.that(lora.is_empty() || rank > 0, "lora.a", "rank 0", "a rank of at least 1")?;
    check.opt_shape(device, "adapter", adapter, &[m])?;
    if let Some(adapter) = adapter {
        for i in 0..m {
            let index = adapter.at(i);
            if index < -1 || index >= lora.len() as i32 {
                let expected = format!("-1..{} (-1 = base)", lora.len());
                let got = format!("{index} at index {i}");
                return Err(Error::invalid(check.0, "adapter", got, expected));
            }
        }
    }
    Ok(rank)
}

/// `s`, if wanted, is `[M, r]` and there is an adapter to fill it.
pub(crate) fn check_s(
    check: Check,
    device: &Device,
    s: &Option<ViewMut<'_, f32>>,
    m: usize,
    rank: usize,
) -> Result<()> {
    check.that(s.is_none() || rank > 0, "s", "an output", "none: there is no adapter")?;
    check.opt_shape(device, "s", s, &[m, rank])
}
