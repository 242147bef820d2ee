//! Y = R + X·Wᵀ + bias + scale·(X·Aᵀ)·Bᵀ: a linear layer with low-rank adapters (Hu et al. 2021,
//! LoRA, arXiv:2106.09685, eq. 3) and the residual it is added to, its gradients, and one set of
//! numerics for every number of rows.
//!
//! On the CPU, and for f32 and f64 on a GPU, each output element is one chain of fused multiply-adds,
//! started from 0: K steps of the weight in increasing k, then the r steps of the row's adapter on
//! S = scale·X·Aᵀ, which is itself such a chain rounded to f32. Products of bf16 and f16 on a GPU go
//! through tensor cores in the one order that `kernels/products/tensor.cuh` begins with. Then the bias is
//! added, then the residual, and the sum is rounded once to the output's dtype: in f32 those are the
//! bits of an addition afterwards. Nothing else enters, so a row's result has the same bits alone, in
//! any batch, at any position, on any number of threads. f64 operands are accumulated in f64.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// A low-rank adapter: the layer's weight becomes W + scale·B·A.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a, T> {
    /// `[r, K]` down projection.
    pub a: View<'a, T>,
    /// `[N, r]` up projection.
    pub b: View<'a, T>,
    /// Usually alpha / r; finite.
    pub scale: f64,
}

/// Arguments of [`matmul`].
#[derive(Debug)]
pub struct Matmul<'a, T> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// `[N, K]` weight.
    pub w: View<'a, T>,
    /// `[N]` added to each row.
    pub bias: Option<View<'a, T>>,
    /// Adapters, all of the same rank; empty for none.
    pub lora: &'a [Lora<'a, T>],
    /// `[M]` index into `lora` of each row's adapter, -1 for the base weight alone. `None` gives
    /// every row adapter 0.
    pub adapter: Option<View<'a, i32>>,
    /// `[M, r]` scale·X·Aᵀ, if wanted for [`lora_grad`](crate::ops::lora_grad()); 0 in rows without
    /// an adapter.
    pub s: Option<ViewMut<'a, f32>>,
    /// `[M, N]` added last; may not be `y`.
    pub residual: Option<View<'a, T>>,
    /// `[M, N]` output.
    pub y: ViewMut<'a, T>,
}

/// y\[i, j\] = Σ_k x\[i, k\]·w\[j, k\] + Σ_q s\[i, q\]·b\[j, q\] + bias\[j\] + residual\[i, j\] with
/// s\[i, q\] = scale·Σ_k x\[i, k\]·a\[q, k\].
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, adapters of
/// different ranks, a scale that is not finite, an adapter index out of range or a residual that
/// shares memory with `y`.
///
/// # Cost
/// Reads X, W and the adapters, writes Y: `M·K + N·K + r·(K + N) + M·N` elements, `M·N` more with a
/// residual; `2·M·N·K + 2·M·r·(K + N)` flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Lora, Matmul, matmul}};
/// let (x, w) = ([1.0f32, 2.0], [3.0f32, 4.0, 5.0, 6.0]);
/// let (a, b) = ([1.0f32, 0.0], [0.0f32, 1.0]);
/// let lora = [Lora { a: View::new(&a, &[1, 2])?, b: View::new(&b, &[2, 1])?, scale: 0.5 }];
/// let mut y = [0f32; 2];
/// matmul(&Device::Cpu, Matmul {
///     x: View::new(&x, &[1, 2])?,
///     w: View::new(&w, &[2, 2])?,
///     bias: None,
///     lora: &lora,
///     adapter: None,
///     s: None,
///     residual: None,
///     y: ViewMut::new(&mut y, &[1, 2])?,
/// })?;
/// assert_eq!(y, [11.0, 17.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn matmul<T: Float>(device: &Device, args: Matmul<'_, T>) -> Result<()> {
    let check = Check("matmul");
    check.rank(device, "x", &args.x, 2)?;
    check.rank(device, "w", &args.w, 2)?;
    let (m, k, n) = (args.x.extent(0), args.x.extent(1), args.w.extent(0));
    check_extents(check, n, k)?;
    check.shape(device, "w", &args.w, &[n, k])?;
    check.opt_shape(device, "bias", &args.bias, &[n])?;
    let rank = check_lora(check, device, args.lora, &args.adapter, [m, n, k])?;
    check_kept(check, device, &args.s, m, rank)?;
    check.shape(device, "y", &args.y, &[m, n])?;
    check_residual(check, device, &args.residual, &args.y, [m, n])?;
    on_device!(device, check, args: Matmul<T: Float> => cpu::matmul, gpu::matmul)
}

/// Arguments of [`matmul_dx`].
#[derive(Debug)]
pub struct MatmulDx<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[N, K]` weight.
    pub w: View<'a, T>,
    /// As in the forward pass.
    pub lora: &'a [Lora<'a, T>],
    /// As in the forward pass.
    pub adapter: Option<View<'a, i32>>,
    /// Add to `dx` instead of overwriting it.
    pub accumulate: bool,
    /// `[M, K]` gradient of the input.
    pub dx: ViewMut<'a, T>,
}

/// dx\[i, k\] = Σ_j dy\[i, j\]·w\[j, k\] + Σ_q ds\[i, q\]·a\[q, k\] with
/// ds\[i, q\] = scale·Σ_j dy\[i, j\]·b\[j, q\]: the gradient of [`matmul`] with respect to `x`.
/// With `accumulate` the old value is added last, before the rounding.
///
/// # Errors
/// As [`matmul`].
///
/// # Cost
/// That of [`matmul`], plus reading dX when accumulating.
pub fn matmul_dx<T: Float>(device: &Device, args: MatmulDx<'_, T>) -> Result<()> {
    let check = Check("matmul_dx");
    check.rank(device, "dy", &args.dy, 2)?;
    check.rank(device, "w", &args.w, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.dy.extent(1), args.w.extent(1));
    check_extents(check, n, k)?;
    check.shape(device, "w", &args.w, &[n, k])?;
    check_lora(check, device, args.lora, &args.adapter, [m, n, k])?;
    check.shape(device, "dx", &args.dx, &[m, k])?;
    on_device!(device, check, args: MatmulDx<T: Float> => cpu::matmul_dx, gpu::matmul_dx)
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

/// dw\[j, k\] += Σ_i dy\[i, j\]·x\[i, k\], dbias\[j\] += Σ_i dy\[i, j\]. The chain runs over the rows in
/// order and the old value is added last; `dbias` is summed in f64.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit or a non-contiguous last dimension.
///
/// # Cost
/// Reads dY and X, reads and writes dW: `M·(N + K) + 2·N·K` elements, `2·M·N·K` flops.
pub fn matmul_dw<T: Float>(device: &Device, args: MatmulDw<'_, T>) -> Result<()> {
    let check = Check("matmul_dw");
    check.rank(device, "dy", &args.dy, 2)?;
    check.rank(device, "x", &args.x, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.dy.extent(1), args.x.extent(1));
    check.that(n > 0, "dy", "0 columns", "at least one column")?;
    check.that(k > 0, "x", "0 columns", "at least one column")?;
    check.shape(device, "x", &args.x, &[m, k])?;
    check.shape(device, "dw", &args.dw, &[n, k])?;
    check.opt_shape(device, "dbias", &args.dbias, &[n])?;
    on_device!(device, check, args: MatmulDw<T: Float> => cpu::matmul_dw, gpu::matmul_dw)
}

/// A weight has at least one element.
pub(crate) fn check_extents(check: Check, n: usize, k: usize) -> Result<()> {
    check.that(n > 0 && k > 0, "w", format!("shape [{n}, {k}]"), "at least one row and column")
}

/// Adapters of a `[n, k]` weight for `m` rows: one rank, finite scales, indices in range.
/// Returns the rank, 0 without adapters.
pub(crate) fn check_lora<T: Float>(
    check: Check,
    device: &Device,
    lora: &[Lora<'_, T>],
    adapter: &Option<View<'_, i32>>,
    [m, n, k]: [usize; 3],
) -> Result<usize> {
    let mut rank = None;
    for (i, lora) in lora.iter().enumerate() {
        rank = Some(check_pair(check, device, &format!("lora[{i}]"), lora, rank, [n, k])?);
    }
    check_adapter(check, device, adapter, m, lora.len())?;
    Ok(rank.unwrap_or(0))
}

/// One adapter of a `[n, k]` weight, of the given rank if there is one; returns its rank.
pub(crate) fn check_pair<T: Float>(
    check: Check,
    device: &Device,
    name: &str,
    lora: &Lora<'_, T>,
    rank: Option<usize>,
    [n, k]: [usize; 2],
) -> Result<usize> {
    let a = format!("{name}.a");
    check.rank(device, &a, &lora.a, 2)?;
    let rank = rank.unwrap_or(lora.a.extent(0));
    check.that(rank > 0, &a, "rank 0", "at least one row")?;
    check.shape(device, &a, &lora.a, &[rank, k])?;
    check.shape(device, &format!("{name}.b"), &lora.b, &[n, rank])?;
    check.factor(&format!("{name}.scale"), lora.scale)?;
    Ok(rank)
}

/// Every row names one of `count` adapters or -1.
pub(crate) fn check_adapter(
    check: Check,
    device: &Device,
    adapter: &Option<View<'_, i32>>,
    rows: usize,
    count: usize,
) -> Result<()> {
    check.opt_shape(device, "adapter", adapter, &[rows])?;
    let Some(adapter) = adapter.as_ref().filter(|a| a.is_host()) else { return Ok(()) };
    for row in 0..rows {
        let index = adapter.at(row);
        if index != -1 && usize::try_from(index).map_or(true, |i| i >= count) {
            let expected = format!("-1 or the index of one of {count} adapters");
            return check.that(false, "adapter", format!("{index} in row {row}"), &expected);
        }
    }
    Ok(())
}

/// The residual has the output's shape and memory of its own.
pub(crate) fn check_residual<T: Float>(
    check: Check,
    device: &Device,
    residual: &Option<View<'_, T>>,
    y: &ViewMut<'_, T>,
    shape: [usize; 2],
) -> Result<()> {
    check.opt_shape(device, "residual", residual, &shape)?;
    residual.as_ref().map_or(Ok(()), |r| check.disjoint(("y", y), ("residual", r)))
}

/// `s` has the adapters' rank, and there are adapters.
pub(crate) fn check_kept(
    check: Check,
    device: &Device,
    s: &Option<ViewMut<'_, f32>>,
    m: usize,
    rank: usize,
) -> Result<()> {
    let missing = s.is_some() && rank == 0;
    check.that(!missing, "s", "an output without adapters", "None, or at least one adapter")?;
    check.opt_shape(device, "s", s, &[m, rank])
}
