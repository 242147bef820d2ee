//! dX = dY·deq(W) + scale·(dY·B)·A with W in 4 bits: the gradient of
//! [`nf4_matmul`](crate::ops::nf4_matmul()) with respect to its input, on the same values of W.

use super::{cpu, gpu};
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::matmul::{Lora, check_lora};
use crate::ops::products::nf4_matmul::check_nf4;
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Arguments of [`nf4_matmul_dx`].
#[derive(Debug)]
pub struct Nf4MatmulDx<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[N, K]` 4-bit weight.
    pub w: Nf4View<'a>,
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
/// ds\[i, q\] = scale·Σ_j dy\[i, j\]·b\[j, q\]. Bit for bit the result of dequantising W and calling
/// [`matmul_dx`](crate::ops::matmul_dx).
///
/// # Errors
/// As [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Cost
/// That of [`nf4_matmul`](crate::ops::nf4_matmul()), plus reading dX when accumulating.
pub fn nf4_matmul_dx<T: Float>(device: &Device, args: Nf4MatmulDx<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul_dx");
    check_nf4(check, device, &args.w)?;
    check.rank(device, "dy", &args.dy, 2)?;
    let (m, n, k) = (args.dy.extent(0), args.w.n, args.w.k);
    check.shape(device, "dy", &args.dy, &[m, n])?;
    check_lora(check, device, args.lora, &args.adapter, [m, n, k])?;
    check.shape(device, "dx", &args.dx, &[m, k])?;
    on_device!(device, check, args: Nf4MatmulDx<T: Float> => cpu::nf4_matmul_dx, gpu::nf4_matmul_dx)
}
