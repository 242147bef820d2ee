//! `code[i] = argmin_c |x[i] / absmax[block] − book[c]|`, `absmax[block] = max |x|` over a block
//! (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, eq. 1 and §3), and the second quantization of
//! the block maxima.
//!
//! Codes and maxima equal those of bitsandbytes 0.50.2 on the CPU bit for bit:
//! * a full block is scaled by the f32 reciprocal of its maximum, a short last block by division;
//! * the code changes where the scaled value exceeds the f32 midpoint of two neighbors, a tie
//!   takes the lower neighbor;
//! * a maximum below 1e-38 counts as 1e-38 for the scaling; only a short last block stores it so.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::{DType, Float};
use crate::error::{Error, Result};
use crate::quant::QuantType;
use crate::quant::nf4::{check_blocksize, check_geometry};
use crate::view::{View, ViewMut};

/// Maxima per block of the second quantization.
pub(crate) const NESTED_BLOCKSIZE: usize = 256;

/// Arguments of [`nf4_quantize`].
#[derive(Debug)]
pub struct Nf4Quantize<'a, T> {
    /// `[N, K]` weight in f16, bf16 or f32; blocks run over it in row-major order.
    pub x: View<'a, T>,
    /// Code book.
    pub quant_type: QuantType,
    /// Values per block: a power of two, 32 to 4096.
    pub blocksize: usize,
    /// `[ceil(N·K / 2)]` codes, contiguous. An odd last nibble gets the code of zero.
    pub packed: ViewMut<'a, u8>,
    /// `[ceil(N·K / blocksize)]` block maxima.
    pub absmax: ViewMut<'a, f32>,
}

/// Nibble `i` of `packed` is the code nearest to `x[i] / absmax[i / blocksize]`.
///
/// # Errors
/// `NonFinite` with the flat index `n·K + k` of the first NaN or infinity in `x`;
/// `InvalidArgument` for shapes that do not fit or a bad block size.
///
/// # Cost
/// Reads x twice, writes half a byte per element and 4 bytes per block; 15 comparisons and one
/// multiplication per element.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{Nf4Quantize, nf4_quantize}, quant::QuantType};
/// let (mut packed, mut absmax) = ([0u8; 2], [0f32; 1]);
/// nf4_quantize(&Device::Cpu, Nf4Quantize {
///     x: View::new(&[2.0f32, -2.0, 0.0, 0.0], &[1, 4])?,
///     quant_type: QuantType::Nf4,
///     blocksize: 64,
///     packed: packed[..].as_mut().into(),
///     absmax: absmax[..].as_mut().into(),
/// })?;
/// assert_eq!((packed, absmax), ([0xF0, 0x77], [2.0]));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_quantize<T: Float>(device: &Device, args: Nf4Quantize<'_, T>) -> Result<()> {
    let check = Check("nf4_quantize");
    check.rank(device, "x", &args.x, 2)?;
    check.that(T::DTYPE != DType::F64, "x", "f64", "f16, bf16 or f32")?;
    check_blocksize(check, "blocksize", args.blocksize)?;
    let (n, k) = (args.x.extent(0), args.x.extent(1));
    let numel = check_geometry(check, "x", n, k, args.blocksize, T::DTYPE)?;
    check.shape(device, "packed", &args.packed, &[numel.div_ceil(2)])?;
    check.contiguous("packed", &args.packed)?;
    check.shape(device, "absmax", &args.absmax, &[numel.div_ceil(args.blocksize)])?;
    check.disjoint(("packed", &args.packed), ("x", &args.x))?;
    check.disjoint(("absmax", &args.absmax), ("x", &args.x))?;
    check.disjoint(("absmax", &args.absmax), ("packed", &args.packed))?;
    let not_finite = |index| Error::NonFinite { op: check.0, arg: "x".to_string(), index };
    match device {
        Device::Cpu => {
            alloc::or_out_of_memory(check.0, || cpu::quantize(args))?.map_err(not_finite)
        }
        Device::Gpu(gpu) => gpu::nf4_quantize(gpu, check, args),
    }
}

/// Arguments of [`nf4_quantize_absmax`].
#[derive(Debug)]
pub struct Nf4QuantizeAbsmax<'a> {
    /// `[blocks]` block maxima, finite and >= 0.
    pub absmax: View<'a, f32>,
    /// `[256]` ascending values of the codes: [`crate::quant::dynamic_map`] with `signed = true`.
    pub table: View<'a, f32>,
    /// `[blocks]` 8-bit codes.
    pub codes: ViewMut<'a, u8>,
    /// `[ceil(blocks / 256)]` maxima of |absmax − offset| per 256 blocks.
    pub nested: ViewMut<'a, f32>,
    /// Mean of `absmax`; 0 if there are none.
    pub offset: &'a mut f32,
}

/// `offset = mean(absmax)`; `codes[i]` is the code nearest to `(absmax[i] − offset) / nested[i / 256]`.
///
/// The mean is a f32 sum in the order of torch on one thread (8 interleaved lanes, 4 accumulators
/// each, cascaded every 16 or more steps), divided by the count: torch splits sums of 32768 values
/// and more over its threads, so there its last bit depends on the machine and ours does not.
/// "Nearest" is bitsandbytes': the scaled value is first rounded to a uniform grid of 65536 points
/// on [-1, 1].
///
/// # Errors
/// `NonFinite` for NaN or infinity in `absmax` or `table`; `InvalidArgument` for shapes that do
/// not fit, a negative maximum, a mean beyond the range of f32, or a table that falls.
///
/// # Cost
/// 6 bytes per block; 8 comparisons per block.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Nf4QuantizeAbsmax, nf4_quantize_absmax}, quant::dynamic_map};
/// let absmax = vec![1f32, 3.0];
/// let (mut codes, mut nested, mut offset) = (vec![0u8; 2], vec![0f32], 0.0);
/// nf4_quantize_absmax(&Device::Cpu, Nf4QuantizeAbsmax {
///     absmax: (&absmax).into(),
///     table: dynamic_map(true)[..].into(),
///     codes: (&mut codes).into(),
///     nested: (&mut nested).into(),
///     offset: &mut offset,
/// })?;
/// assert_eq!((&codes[..], nested[0], offset), (&[0, 255][..], 1.0, 2.0));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn nf4_quantize_absmax(device: &Device, args: Nf4QuantizeAbsmax<'_>) -> Result<()> {
    let check = Check("nf4_quantize_absmax");
    check.rank(device, "absmax", &args.absmax, 1)?;
    let blocks = args.absmax.extent(0);
    check.shape(device, "table", &args.table, &[256])?;
    check.shape(device, "codes", &args.codes, &[blocks])?;
    check.shape(device, "nested", &args.nested, &[blocks.div_ceil(NESTED_BLOCKSIZE)])?;
    check.disjoint(("codes", &args.codes), ("absmax", &args.absmax))?;
    check.disjoint(("nested", &args.nested), ("absmax", &args.absmax))?;
    check.disjoint(("codes", &args.codes), ("table", &args.table))?;
    check.disjoint(("nested", &args.nested), ("table", &args.table))?;
    check.disjoint(("nested", &args.nested), ("codes", &args.codes))?;
    if args.absmax.is_host() && args.table.is_host() {
        check_maxima(check, &args)?;
    }
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::quantize_absmax(args))?,
        Device::Gpu(gpu) => gpu::nf4_quantize_absmax(gpu, args)?,
    }
    Ok(())
}

/// Maxima are finite, not negative and have a mean; the table ascends.
fn check_maxima(check: Check, args: &Nf4QuantizeAbsmax<'_>) -> Result<()> {
    let copies = || (args.absmax.to_vec(), args.table.to_vec());
    let (absmax, table) = alloc::or_out_of_memory(check.0, copies)?;
    for (arg, values) in [("absmax", &absmax), ("table", &table)] {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NonFinite { op: check.0, arg: arg.to_string(), index });
        }
    }
    if let Some(i) = absmax.iter().position(|&v| v < 0.0) {
        let got = format!("{} at index {i}", absmax[i]);
        return Err(Error::invalid(check.0, "absmax", got, "maxima of magnitudes, >= 0"));
    }
    if let Some(i) = (1..256).find(|&i| table[i] < table[i - 1]) {
        let got = format!("{} after {} at index {i}", table[i], table[i - 1]);
        return Err(Error::invalid(check.0, "table", got, "ascending values"));
    }
    let offset = cpu::mean(&absmax);
    check.that(offset.is_finite(), "absmax", "a sum beyond f32", "a mean in the range of f32")
}
