//! Y = R + X·deq(W)ᵀ + bias + scale·(X·Aᵀ)·Bᵀ with W in 4 bits (Dettmers et al. 2023, QLoRA,
//! arXiv:2305.14314, eq. 5). The packed bytes are the only copy of W: they are expanded a panel at
//! a time into `w = RN(code · absmax)`, rounded to the dtype that was quantized, at every number
//! of rows. The product has the numerics of [`matmul`](crate::ops::matmul()).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::product::{Product, ProductDx, Weight, check_product, check_product_dx};
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::View;

/// Arguments of [`nf4_matmul`].
pub type Nf4Matmul<'a, T> = Product<'a, T, Nf4View<'a>>;

/// Arguments of [`nf4_matmul_dx`].
pub type Nf4MatmulDx<'a, T> = ProductDx<'a, T, Nf4View<'a>>;

impl<T: Float> Weight<T> for Nf4View<'_> {
    fn check(&self, check: Check, device: &Device, x: &View<'_, T>) -> Result<[usize; 3]> {
        check_nf4(check, device, self)?;
        check.rank(device, "x", x, 2)?;
        let m = x.extent(0);
        check.shape(device, "x", x, &[m, self.k]).map(|()| [m, self.n, self.k])
    }

    fn check_dx(&self, check: Check, device: &Device, dy: &View<'_, T>) -> Result<[usize; 3]> {
        check_nf4(check, device, self)?;
        check.rank(device, "dy", dy, 2)?;
        let m = dy.extent(0);
        check.shape(device, "dy", dy, &[m, self.n]).map(|()| [m, self.n, self.k])
    }
}

/// The parts of a 4-bit weight fit together, and there is something to multiply with.
pub(crate) fn check_nf4(check: Check, device: &Device, w: &Nf4View<'_>) -> Result<()> {
    let shape = format!("shape [{}, {}]", w.n, w.k);
    check.that(w.n > 0 && w.k > 0, "w", &shape, "at least one row and column")?;
    w.check(check, device, "w")
}

/// y\[i, j\] = Σ_k x\[i, k\]·w\[j, k\] + Σ_q s\[i, q\]·b\[j, q\] + bias\[j\] + residual\[i, j\] with
/// s\[i, q\] = scale·Σ_k x\[i, k\]·a\[q, k\] and w\[j, k\] = RN(code\[nibble\]·absmax\[block\]). Bit for bit
/// the result of dequantizing W and calling [`matmul`](crate::ops::matmul()).
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
    check_product(check, device, &args)?;
    on_device!(device, check, args: Nf4Matmul<T: Float> => cpu::nf4_matmul, gpu::nf4_matmul)
}

/// dx\[i, k\] = Σ_j dy\[i, j\]·w\[j, k\] + Σ_q ds\[i, q\]·a\[q, k\] with
/// ds\[i, q\] = scale·Σ_j dy\[i, j\]·b\[j, q\]. Bit for bit the result of dequantizing W and calling
/// [`matmul_dx`](crate::ops::matmul_dx).
///
/// # Errors
/// As [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Cost
/// That of [`nf4_matmul`](crate::ops::nf4_matmul()), plus reading dX when accumulating.
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{Nf4MatmulDx, nf4_matmul_dx}};
/// use gradus::quant::{Absmax, Nf4View};
/// let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
/// let (packed, absmax) = ([0x9A_u8, 0x7C], [0.5f32]); // w = [[0.5, 1], [-0.5, 2]]
/// let (dy, mut dx) = ([1f32, 2.0], [0f32; 2]);
/// nf4_matmul_dx(&Device::Cpu, Nf4MatmulDx {
///     dy: View::new(&dy, &[1, 2])?,
///     w: Nf4View {
///         packed: View::new(&packed, &[2])?,
///         absmax: Absmax::F32(View::new(&absmax, &[1])?),
///         code: View::new(&code, &[16])?,
///         n: 2,
///         k: 2,
///         blocksize: 64,
///         dtype: DType::Bf16,
///     },
///     lora: &[],
///     adapter: None,
///     accumulate: false,
///     dx: ViewMut::new(&mut dx, &[1, 2])?,
/// })?;
/// assert_eq!(dx, [-0.5, 5.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_matmul_dx<T: Float>(device: &Device, args: Nf4MatmulDx<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul_dx");
    check_product_dx(check, device, &args)?;
    on_device!(device, check, args: Nf4MatmulDx<T: Float> => cpu::nf4_matmul_dx, gpu::nf4_matmul_dx)
}
