//! Gradients of a low-rank adapter.

use crate::cpu::matmul as cpu;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::check::Check;
use crate::ops::matmul::{Lora, check_lora};
use crate::view::{View, ViewMut};

/// Arguments of [`lora_grad`].
#[derive(Debug)]
pub struct LoraGrad<'a, T> {
    /// `[M, K]` input of the forward pass.
    pub x: View<'a, T>,
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[M, r]` S = scale·X·Aᵀ of the forward pass.
    pub s: View<'a, f32>,
    /// The adapter.
    pub lora: Lora<'a, T>,
    /// Adapter of each row in the forward pass; `None` = every row used this one.
    pub adapter: Option<View<'a, i32>>,
    /// Index of this adapter: rows with another one do not count.
    pub index: i32,
    /// `[r, K]` gradient of A; added to what is there.
    pub da: ViewMut<'a, f32>,
    /// `[N, r]` gradient of B; added to what is there.
    pub db: ViewMut<'a, f32>,
}

/// dB += dYᵀ·S and dA += (scale·dY·B)ᵀ·X, chains over the rows in order.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a scale that is not finite, or a negative `index`.
///
/// # Cost
/// `4·M·r·(N + K)` flops.
pub fn lora_grad<T: Float>(device: &Device, args: LoraGrad<'_, T>) -> Result<()> {
    let check = Check("lora_grad");
    check.rank(device, "x", &args.x, 2)?;
    check.rank(device, "dy", &args.dy, 2)?;
    let (m, n, k) = (args.x.extent(0), args.dy.extent(1), args.x.extent(1));
    check.shape(device, "dy", &args.dy, &[m, n])?;
    let rank = check_lora(check, device, &[args.lora], &None, m, n, k)?;
    check.shape(device, "s", &args.s, &[m, rank])?;
    check.opt_shape(device, "adapter", &args.adapter, &[m])?;
    check.that(args.index >= 0, "index", args.index, "an adapter's index, >= 0")?;
    check.shape(device, "da", &args.da, &[rank, k])?;
    check.shape(device, "db", &args.db, &[n, rank])?;
    match device {
        Device::Cpu => cpu::lora_grad(args),
    }
    Ok(())
}
