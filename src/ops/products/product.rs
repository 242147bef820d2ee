//! Arguments and checks of a product with any weight and its adapters.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
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

/// Arguments of [`matmul`](crate::ops::matmul()) with a dense weight, [`nf4_matmul`](crate::ops::nf4_matmul()) with
/// a 4-bit one.
#[derive(Debug)]
pub struct Product<'a, T, W> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// `[N, K]` weight: a [`View`] or a [`Nf4View`](crate::quant::Nf4View).
    pub w: W,
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

/// Arguments of [`matmul_dx`](crate::ops::matmul_dx()) with a dense weight, [`nf4_matmul_dx`](crate::ops::nf4_matmul_dx())
/// with a 4-bit one.
#[derive(Debug)]
pub struct ProductDx<'a, T, W> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[N, K]` weight: a [`View`] or a [`Nf4View`](crate::quant::Nf4View).
    pub w: W,
    /// Adapters of the forward pass.
    pub lora: &'a [Lora<'a, T>],
    /// `[M]` each row's adapter as in the forward pass.
    pub adapter: Option<View<'a, i32>>,
    /// Add to `dx` instead of overwriting it.
    pub accumulate: bool,
    /// `[M, K]` gradient of the input.
    pub dx: ViewMut<'a, T>,
}

/// What multiplies the rows of a product: an `[N, K]` matrix in some format.
pub(crate) trait Weight<T> {
    /// Checks the weight and the matrix that it multiplies: `x` `[M, K]`. Returns M, N, K.
    fn check(&self, check: Check, device: &Device, x: &View<'_, T>) -> Result<[usize; 3]>;

    /// Checks the weight and the gradient that it multiplies: `dy` `[M, N]`. Returns M, N, K.
    fn check_dx(&self, check: Check, device: &Device, dy: &View<'_, T>) -> Result<[usize; 3]>;
}

/// The operands of a product fit together.
pub(crate) fn check_product<T: Float, W: Weight<T>>(
    check: Check,
    device: &Device,
    a: &Product<'_, T, W>,
) -> Result<()> {
    let [m, n, k] = a.w.check(check, device, &a.x)?;
    check.opt_shape(device, "bias", &a.bias, &[n])?;
    let rank = check_lora(check, device, a.lora, &a.adapter, [m, n, k])?;
    let missing = a.s.is_some() && rank == 0;
    check.that(!missing, "s", "an output without adapters", "None, or at least one adapter")?;
    check.opt_shape(device, "s", &a.s, &[m, rank])?;
    check.shape(device, "y", &a.y, &[m, n])?;
    check.opt_shape(device, "residual", &a.residual, &[m, n])?;
    a.residual.as_ref().map_or(Ok(()), |r| check.disjoint(("y", &a.y), ("residual", r)))
}

/// The operands of a gradient with respect to the input fit together.
pub(crate) fn check_product_dx<T: Float, W: Weight<T>>(
    check: Check,
    device: &Device,
    a: &ProductDx<'_, T, W>,
) -> Result<()> {
    let [m, n, k] = a.w.check_dx(check, device, &a.dy)?;
    check_lora(check, device, a.lora, &a.adapter, [m, n, k])?;
    check.shape(device, "dx", &a.dx, &[m, k])
}

/// Adapters of a `[n, k]` weight for `m` rows: one rank, finite scales, indices in range.
/// Returns the rank, 0 without adapters.
fn check_lora<T: Float>(
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
