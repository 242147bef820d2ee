//! Y = X·deq(W)ᵀ for a 4-bit weight that is decoded while it is multiplied.

use crate::cpu::matmul::{self as cpu, Base};
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::matmul::{Lora, check_lora, check_s};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Arguments of [`nf4_matmul`].
#[derive(Debug)]
pub struct Nf4Matmul<'a, T> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// `[N, K]` weight.
    pub w: Nf4View<'a>,
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

/// Y = X·deq(W)ᵀ + S·Bᵀ + bias with deq(w) = RN(code · absmax) in f32, rounded once to the dtype
/// that was quantised (Dettmers et al. 2023, arXiv:2305.14314, eq. 5).
///
/// The bits are those of [`matmul`](crate::ops::matmul()) with the dequantised weight, at every M.
///
/// # Errors
/// As [`matmul`](crate::ops::matmul()); also parts of `w` that do not fit together.
///
/// # Cost
/// `2·M·N·K + 2·M·r·(N + K)` flops; reads N·K/2 bytes of codes.
pub fn nf4_matmul<T: Float>(device: &Device, args: Nf4Matmul<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul");
    check.rank(device, "x", &args.x, 2)?;
    args.w.check(check, device, "w")?;
    let (m, n, k) = (args.x.extent(0), args.w.n, args.w.k);
    check.shape(device, "x", &args.x, &[m, k])?;
    check.opt_shape(device, "bias", &args.bias, &[n])?;
    check.shape(device, "y", &args.y, &[m, n])?;
    let rank = check_lora(check, device, args.lora, &args.adapter, m, n, k)?;
    check_s(check, device, &args.s, m, rank)?;
    match device {
        Device::Cpu => {
            let base = Base::Nf4(args.w);
            cpu::matmul(args.x, base, args.bias, args.lora, args.adapter, args.s, args.y)
        }
    }
    Ok(())
}
