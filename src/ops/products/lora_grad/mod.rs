//! Gradients of a low-rank adapter (Hu et al. 2021, LoRA, arXiv:2106.09685, eq. 3).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::product::{Lora, check_adapter, check_pair};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Arguments of [`lora_grad`].
#[derive(Debug)]
pub struct LoraGrad<'a, T> {
    /// `[M, K]` input of the forward pass.
    pub x: View<'a, T>,
    /// `[M, N]` gradient of the output.
    pub dy: View<'a, T>,
    /// `[M, r]` scale·X·Aᵀ as the forward pass kept it.
    pub s: View<'a, f32>,
    /// The adapter.
    pub lora: Lora<'a, T>,
    /// `[M]` each row's adapter as in the forward pass; `None` if every row took adapter 0.
    pub adapter: Option<View<'a, i32>>,
    /// The adapter's index: only rows that took it count.
    pub index: i32,
    /// `[r, K]` gradient of `lora.a`; added to what is there.
    pub da: ViewMut<'a, f32>,
    /// `[N, r]` gradient of `lora.b`; added to what is there.
    pub db: ViewMut<'a, f32>,
}

/// da += dSᵀ·X and db += dYᵀ·S with dS = scale·dY·B, over the rows that took the adapter. Those rows
/// are cut into chunks of 128, counted from the first of them. A chunk's sum is one chain of f32 fused
/// multiply-adds over its rows in order; the sums are added in order, and to the old value last. dS is
/// a chain over n rounded to f32. f64 operands are accumulated in f64.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, a non-contiguous last dimension, a scale that is
/// not finite, a negative index, or an index other than 0 without `adapter`.
///
/// # Cost
/// Reads X once and dY twice, reads and writes the gradients: `M·(K + 2·N + r) + 2·r·(K + N)`
/// elements, `2·M·r·(K + 2·N)` flops.
///
/// # Example
/// ```
/// use gradus::{Device, View, ViewMut, ops::{Lora, LoraGrad, lora_grad}};
/// let (x, dy, s) = ([1.0f32, 2.0], [3.0f32], [0.5f32]);
/// let (a, b) = ([1.0f32, 0.0], [2.0f32]);
/// let (mut da, mut db) = ([0f32; 2], [0f32; 1]);
/// lora_grad(&Device::Cpu, LoraGrad {
///     x: View::new(&x, &[1, 2])?,
///     dy: View::new(&dy, &[1, 1])?,
///     s: View::new(&s, &[1, 1])?,
///     lora: Lora { a: View::new(&a, &[1, 2])?, b: View::new(&b, &[1, 1])?, scale: 0.5 },
///     adapter: None,
///     index: 0,
///     da: ViewMut::new(&mut da, &[1, 2])?,
///     db: ViewMut::new(&mut db, &[1, 1])?,
/// })?;
/// assert_eq!((da, db), ([3.0, 6.0], [1.5]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn lora_grad<T: Float>(device: &Device, args: LoraGrad<'_, T>) -> Result<()> {
    let check = Check("lora_grad");
    check.rank(device, "x", &args.x, 2)?;
    check.rank(device, "dy", &args.dy, 2)?;
    let (m, k, n) = (args.x.extent(0), args.x.extent(1), args.dy.extent(1));
    check.that(k > 0, "x", "0 columns", "at least one column")?;
    check.that(n > 0, "dy", "0 columns", "at least one column")?;
    check.shape(device, "dy", &args.dy, &[m, n])?;
    let rank = check_pair(check, device, "lora", &args.lora, None, [n, k])?;
    check_adapter(check, device, &args.adapter, m, i32::MAX as usize)?;
    check.that(args.index >= 0, "index", args.index, "an adapter's index, >= 0")?;
    let single = args.adapter.is_some() || args.index == 0;
    check.that(single, "index", args.index, "0, as every row took adapter 0 without `adapter`")?;
    check.shape(device, "s", &args.s, &[m, rank])?;
    check.shape(device, "da", &args.da, &[rank, k])?;
    check.shape(device, "db", &args.db, &[n, rank])?;
    on_device!(device, check, args: LoraGrad<T: Float> => cpu::lora_grad, gpu::lora_grad)
}
