//! `w[i] = code[nibble i] · absmax[i / blocksize]`, rounded once to the dtype that was quantized.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::support::dispatch::on_device;
use crate::quant::Nf4View;
use crate::view::ViewMut;

/// Arguments of [`nf4_dequantize`].
#[derive(Debug)]
pub struct Nf4Dequantize<'a, T> {
    /// `[N, K]` 4-bit matrix.
    pub w: Nf4View<'a>,
    /// `[N, K]` output.
    pub y: ViewMut<'a, T>,
}

/// `y[n, k] = RN_T(RN_dtype(code[nibble(n·K + k)] · absmax[(n·K + k) / blocksize]))`, the product
/// in f32. With `T` the matrix's own dtype, or a wider one, the second rounding is exact.
///
/// Double-quantized maxima are decoded as `table[c] · nested + offset` with both operations rounded
/// to f32: the bits of bitsandbytes' `dequantize_4bit`.
///
/// # Errors
/// `InvalidArgument` for parts of `w` that do not fit together or a `y` of another shape.
///
/// # Cost
/// Reads half a byte per element and 1 or 4 bytes per block, writes one `T` per element; one
/// product per element at most.
///
/// # Example
/// ```
/// use gradus::{DType, Device, View, ViewMut, ops::{Nf4Dequantize, nf4_dequantize}};
/// use gradus::quant::{Absmax, NF4_CODE, Nf4View};
/// let mut y = [0f32; 4];
/// let w = Nf4View {
///     packed: View::from(&[0xF0u8, 0x77][..]),
///     absmax: Absmax::F32(View::from(&[2f32][..])),
///     code: View::from(&NF4_CODE[..]),
///     n: 1,
///     k: 4,
///     blocksize: 64,
///     dtype: DType::F32,
/// };
/// nf4_dequantize(&Device::Cpu, Nf4Dequantize { w, y: ViewMut::new(&mut y, &[1, 4])? })?;
/// assert_eq!(y, [2.0, -2.0, 0.0, 0.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_dequantize<T: Float>(device: &Device, args: Nf4Dequantize<'_, T>) -> Result<()> {
    let check = Check("nf4_dequantize");
    args.w.check(check, device, "w")?;
    check.shape(device, "y", &args.y, &[args.w.n, args.w.k])?;
    check.disjoint(("y", &args.y), ("w.packed", &args.w.packed))?;
    on_device!(device, check, args: Nf4Dequantize<T: Float> => cpu::nf4_dequantize, gpu::nf4_dequantize)
}
