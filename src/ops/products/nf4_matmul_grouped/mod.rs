//! Y\[e\] = X\[e\]·deq(W\[e\])ᵀ for the rows of every expert of a mixture (Shazeer et al. 2017,
//! arXiv:1701.06538, eq. 1) with 4-bit weights, and its gradient with respect to X: one launch for
//! all experts, whatever the router decided.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::nf4_matmul::Nf4MatmulDx;
use crate::ops::products::nf4_matmul::{Nf4Matmul, check_nf4};
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::{View, ViewMut};

/// Arguments of [`nf4_matmul_grouped`].
#[derive(Debug)]
pub struct Nf4MatmulGrouped<'a, T> {
    /// `[M, K]` input, rows sorted by expert.
    pub x: View<'a, T>,
    /// `[E + 1]`: expert e has rows `offsets[e]..offsets[e + 1]`; none is legal.
    pub offsets: View<'a, i64>,
    /// E weights of the same shape `[N, K]`.
    pub w: &'a [Nf4View<'a>],
    /// `[M, N]` output.
    pub y: ViewMut<'a, T>,
}

/// Arguments of [`nf4_matmul_grouped_dx`].
#[derive(Debug)]
pub struct Nf4MatmulGroupedDx<'a, T> {
    /// `[M, N]` gradient of the output, rows sorted by expert.
    pub dy: View<'a, T>,
    /// `[E + 1]` as in the forward pass.
    pub offsets: View<'a, i64>,
    /// The weights of the forward pass.
    pub w: &'a [Nf4View<'a>],
    /// Add to `dx` instead of overwriting it.
    pub accumulate: bool,
    /// `[M, K]` gradient of the input.
    pub dx: ViewMut<'a, T>,
}

/// y\[i\] = w\[e\]·x\[i\] for the expert e that row i belongs to. A row has the bits that
/// [`nf4_matmul`](crate::ops::nf4_matmul()) gives it with that weight.
///
/// Offsets may lie in device memory, where the router left them: nothing waits for them. Offsets that
/// are not sorted are bounded to `0..=M` there; what such a call computes is not defined.
///
/// # Errors
/// `InvalidArgument` for no weights, weights of different shapes or whose parts do not fit together,
/// offsets in host memory that fall or do not end at M, or other shapes that do not fit.
/// `Unsupported` for offsets in device memory with operands that tensor cores do not multiply: f32,
/// f64, or a weight that was quantized from another dtype.
///
/// # Cost
/// `2·M·N·K` flops; W of every expert that has rows is read as in
/// [`nf4_matmul`](crate::ops::nf4_matmul()).
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{Nf4MatmulGrouped, nf4_matmul_grouped}};
/// use gradus::quant::{Absmax, Nf4View};
/// let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
/// let (ones, twos, absmax) = ([0x99_u8], [0xAA_u8], [1.0f32]);
/// let expert = |packed| -> gradus::Result<Nf4View<'_>> {
///     Ok(Nf4View {
///         packed: View::new(packed, &[1])?,
///         absmax: Absmax::F32(View::new(&absmax, &[1])?),
///         code: View::new(&code, &[16])?,
///         n: 1,
///         k: 2,
///         blocksize: 64,
///         dtype: DType::F32,
///     })
/// };
/// let (x, mut y) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [0f32; 3]);
/// nf4_matmul_grouped(&Device::Cpu, Nf4MatmulGrouped {
///     x: View::new(&x, &[3, 2])?,
///     offsets: View::new(&[0, 1, 3], &[3])?,
///     w: &[expert(&ones)?, expert(&twos)?],
///     y: ViewMut::new(&mut y, &[3, 1])?,
/// })?;
/// assert_eq!(y, [3.0, 14.0, 22.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_matmul_grouped<T: Float>(device: &Device, args: Nf4MatmulGrouped<'_, T>) -> Result<()> {
    let check = Check("nf4_matmul_grouped");
    let [n, k] = check_experts(check, device, args.w)?;
    check.rank(device, "x", &args.x, 2)?;
    let m = args.x.extent(0);
    check.shape(device, "x", &args.x, &[m, k])?;
    check_offsets(check, device, &args.offsets, args.w.len(), m)?;
    check.shape(device, "y", &args.y, &[m, n])?;
    on_device!(device, check, args: Nf4MatmulGrouped<T: Float> => cpu::nf4_matmul_grouped, gpu::nf4_matmul_grouped)
}

/// dx\[i\] = w\[e\]ᵀ·dy\[i\] for the expert e that row i belongs to: the bits of
/// [`nf4_matmul_dx`](crate::ops::nf4_matmul_dx()) with that weight.
///
/// # Errors
/// As [`nf4_matmul_grouped`].
///
/// # Cost
/// That of [`nf4_matmul_grouped`], plus reading dX when accumulating.
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{Nf4MatmulGroupedDx, nf4_matmul_grouped_dx}};
/// use gradus::quant::{Absmax, Nf4View};
/// let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 8.0);
/// let (ones, twos, absmax) = ([0x99_u8], [0xAA_u8], [1.0f32]);
/// let expert = |packed| -> gradus::Result<Nf4View<'_>> {
///     Ok(Nf4View {
///         packed: View::new(packed, &[1])?,
///         absmax: Absmax::F32(View::new(&absmax, &[1])?),
///         code: View::new(&code, &[16])?,
///         n: 1,
///         k: 2,
///         blocksize: 64,
///         dtype: DType::F32,
///     })
/// };
/// let (dy, mut dx) = ([1f32, 2.0, 3.0], [0f32; 6]);
/// nf4_matmul_grouped_dx(&Device::Cpu, Nf4MatmulGroupedDx {
///     dy: View::new(&dy, &[3, 1])?,
///     offsets: View::new(&[0, 1, 3], &[3])?,
///     w: &[expert(&ones)?, expert(&twos)?],
///     accumulate: false,
///     dx: ViewMut::new(&mut dx, &[3, 2])?,
/// })?;
/// assert_eq!(dx, [1.0, 1.0, 4.0, 4.0, 6.0, 6.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_matmul_grouped_dx<T: Float>(
    device: &Device,
    args: Nf4MatmulGroupedDx<'_, T>,
) -> Result<()> {
    let check = Check("nf4_matmul_grouped_dx");
    let [n, k] = check_experts(check, device, args.w)?;
    check.rank(device, "dy", &args.dy, 2)?;
    let m = args.dy.extent(0);
    check.shape(device, "dy", &args.dy, &[m, n])?;
    check_offsets(check, device, &args.offsets, args.w.len(), m)?;
    check.shape(device, "dx", &args.dx, &[m, k])?;
    on_device!(device, check, args: Nf4MatmulGroupedDx<T: Float> => cpu::nf4_matmul_grouped_dx, gpu::nf4_matmul_grouped_dx)
}

impl<T: Float> Nf4MatmulGrouped<'_, T> {
    /// One product after another, for offsets in host memory.
    pub(crate) fn each(mut self, one: impl Fn(Nf4Matmul<'_, T>) -> Result<()>) -> Result<()> {
        for (e, &w) in self.w.iter().enumerate() {
            let (first, count) = rows(&self.offsets, e);
            let (bias, lora, adapter, s, residual) = (None, [].as_slice(), None, None, None);
            let (x, y) = (self.x.narrow(first, count)?, self.y.narrow(first, count)?);
            one(Nf4Matmul { x, w, bias, lora, adapter, s, residual, y })?;
        }
        Ok(())
    }
}

impl<T: Float> Nf4MatmulGroupedDx<'_, T> {
    /// One gradient after another, for offsets in host memory.
    pub(crate) fn each(mut self, one: impl Fn(Nf4MatmulDx<'_, T>) -> Result<()>) -> Result<()> {
        for (e, &w) in self.w.iter().enumerate() {
            let (first, count) = rows(&self.offsets, e);
            let (lora, adapter, accumulate) = ([].as_slice(), None, self.accumulate);
            let (dy, dx) = (self.dy.narrow(first, count)?, self.dx.narrow(first, count)?);
            one(Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx })?;
        }
        Ok(())
    }
}

/// First row and number of rows of an expert.
fn rows(offsets: &View<'_, i64>, e: usize) -> (usize, usize) {
    let (first, end) = (offsets.at(e) as usize, offsets.at(e + 1) as usize);
    (first, end - first)
}

/// The experts' common shape.
fn check_experts(check: Check, device: &Device, w: &[Nf4View<'_>]) -> Result<[usize; 2]> {
    check.that(!w.is_empty(), "w", "no weights", "one weight per expert")?;
    let shape = [w[0].n, w[0].k];
    for (e, w) in w.iter().enumerate() {
        check_nf4(check, device, w)?;
        let got = format!("[{}, {}] as expert {e}", w.n, w.k);
        check.that([w.n, w.k] == shape, "w", got, &format!("{shape:?}, as expert 0"))?;
    }
    Ok(shape)
}

fn check_offsets(
    check: Check,
    device: &Device,
    offsets: &View<'_, i64>,
    experts: usize,
    m: usize,
) -> Result<()> {
    check.shape(device, "offsets", offsets, &[experts + 1])?;
    check.cu_seqlens(device, "offsets", offsets, m).map(|_| ())
}
