//! Y = R + X·deq(W)ᵀ + bias + scale·(X·Aᵀ)·Bᵀ with W in 4 bits (Dettmers et al. 2023, QLoRA,
//! arXiv:2305.14314, eq. 5). The packed bytes are the only copy of W: they are expanded a panel at
//! a time into `w = RN(code · absmax)`, rounded to the dtype that was quantised, at every number
//! of rows. The product has the numerics of [`matmul`](crate::ops::matmul()).

pub(crate) mod cpu;
mod dx;
pub(crate) mod gpu;

pub use dx::*;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::matmul::{Lora, check_kept, check_lora, check_residual};
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Arguments of [`nf4_matmul`].
#[derive(Debug)]
pub struct Nf4Matmul<'a, T> {
    /// `[M, K]` input.
    pub x: View<'a, T>,
    /// `[N, K]` 4-bit weight.
    pub w: Nf4View<'a>,
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
/// s\[i, q\] = scale·Σ_k x\[i, k\]·a\[q, k\] and w\[j, k\] = RN(code\[nibble\]·absmax\[block\]). Bit for bit
/// the result of dequantising W and calling [`matmul`](crate::ops::matmul()).
///
/// # Errors
/// As [`matmul`](crate::ops::matmul()), and for a weight whose parts do not fit together.
///
/// # Cost
/// As [`matmul`](crate::ops::matmul()), but W is read as `N·K / 2` bytes of codes and one maximum
/// per block.
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{Nf4Matmul, nf4_matmul}};
/// use gradus::quant::{Absmax, Nf4View};
/// let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
/// let (packed, absmax) = ([0x9A_u8, 0x7C], [0.5f32]); // codes 1, 2, -1, 4
/// let (x, mut y) = ([1.0f32, 10.0], [0f32; 2]);
/// nf4_matmul(&Device::Cpu, Nf4Matmul {
///     x: View::new(&x, &[1, 2])?,
///     w: Nf4View {
///         packed: View::new(&packed, &[2])?,
///         absmax: Absmax::F32(View::new(&absmax, &[1])?),
///         code: View::new(&code, &[16])?,
///         n: 2,
///         k: 2,
///         blocksize: 64,
///         dtype: DType::Bf16,
///     },
///     bias: None,
///     lora: &[],
///     adapter: None,
///     s: None,
///     residual: None,
///     y: ViewMut::new(&mut y, &[1, 2])?,
/// })?;
/// assert_eq!(y, [10.5, 19.5]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_matmul<T: Float>(device: &Device, args: Nf4Matmul<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul");
    check_nf4(check, device, &args.w)?;
    check.rank(device, "x", &args.x, 2)?;
    let (m, n, k) = (args.x.extent(0), args.w.n, args.w.k);
    check.shape(device, "x", &args.x, &[m, k])?;
    check.opt_shape(device, "bias", &args.bias, &[n])?;
    let rank = check_lora(check, device, args.lora, &args.adapter, [m, n, k])?;
    check_kept(check, device, &args.s, m, rank)?;
    check.shape(device, "y", &args.y, &[m, n])?;
    check_residual(check, device, &args.residual, &args.y, [m, n])?;
    on_device!(device, check, args: Nf4Matmul<T: Float> => cpu::nf4_matmul, gpu::nf4_matmul)
}

/// The parts of a 4-bit weight fit together, and there is something to multiply with.
pub(crate) fn check_nf4(check: Check, device: &Device, w: &Nf4View<'_>) -> Result<()> {
    let shape = format!("shape [{}, {}]", w.n, w.k);
    check.that(w.n > 0 && w.k > 0, "w", &shape, "at least one row and column")?;
    w.check(check, device, "w")
}
