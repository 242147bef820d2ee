//! dX = dY·deq(W): the only weight-side backward that QLoRA needs.

use crate::cpu::matmul::{self as cpu, Base};
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::matmul::{Lora, check_lora};
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Arguments of [`nf4_matmul_dx`].
#[derive(Debug)]
pub struct Nf4MatmulDx<'a, T> {
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[N, K]` weight.
    pub w: Nf4View<'a>,
    /// Adapters of the forward pass.
    pub lora: &'a [Lora<'a, T>],
    /// Adapter of each row in the forward pass.
    pub adapter: Option<View<'a, i32>>,
    /// Adds to `dx` instead of replacing it.
    pub accumulate: bool,
    /// `[M, K]` gradient of the input.
    pub dx: ViewMut<'a, T>,
}

/// dX = dY·deq(W) + (scale·dY·B)·A, with the bits of [`matmul_dx`](crate::ops::matmul_dx()) on the
/// dequantised weight.
///
/// # Errors
/// As [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Cost
/// `2·M·N·K + 2·M·r·(N + K)` flops; reads N·K/2 bytes of codes.
pub fn nf4_matmul_dx<T: Float>(device: &Device, args: Nf4MatmulDx<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul_dx");
    check.rank(device, "dy", &args.dy, 2)?;
    args.w.check(check, device, "w")?;
    let (m, n, k) = (args.dy.extent(0), args.w.n, args.w.k);
    check.shape(device, "dy", &args.dy, &[m, n])?;
    check.shape(device, "dx", &args.dx, &[m, k])?;
    check_lora(check, device, args.lora, &args.adapter, m, n, k)?;
    match device {
        Device::Cpu => {
            let base = Base::Nf4(args.w);
            cpu::matmul_dx(args.dy, base, args.lora, args.adapter, args.accumulate, args.dx)
        }
    }
    Ok(())
}
