//! 4-bit weights in the layout of bitsandbytes.

use gradus::device::Buffer;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType, dynamic_map};
use gradus::{DType, Device, Result};

use super::case::{Case, Work, repeated, shape, wave};

const BLOCK: usize = 64;

/// Maxima a block of maxima, where they are quantized too.
const NESTED: usize = 256;

pub fn cases() -> Vec<Case> {
    #[allow(unused_mut, reason = "bf16 is left out of builds with debug assertions")]
    let mut cases = of::<f32>();
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>());
    cases
}

pub fn of<T: Float>() -> Vec<Case> {
    vec![quantize::<T>(1536, 1536), dequantize::<T>(1536, 1536, false)]
}

/// A 4-bit matrix on a device, in the bitsandbytes layout.
pub struct Weight {
    packed: Buffer<u8>,
    absmax: Buffer<f32>,
    /// Codes, maxima and table of double-quantized maxima.
    nested: Option<(Buffer<u8>, Buffer<f32>, Buffer<f32>)>,
    code: Buffer<f32>,
    n: usize,
    k: usize,
    /// What the values are rounded to.
    dtype: DType,
}

impl Weight {
    pub fn new(device: &Device, n: usize, k: usize, nested: bool) -> Result<Weight> {
        let blocks = n * k / BLOCK;
        let plain = if nested { 0 } else { blocks };
        let maxima = || -> Result<_> {
            Ok((
                repeated(device, blocks, 256, |i| (i * 151 % 256) as u8)?,
                repeated(device, blocks.div_ceil(NESTED), 7, |i| 0.01 + i as f32 * 0.01)?,
                Buffer::of(device, dynamic_map(true))?,
            ))
        };
        Ok(Weight {
            packed: repeated(device, n * k / 2, 256, |i| (i * 151 % 256) as u8)?,
            absmax: repeated(device, plain, 7, |i| 0.01 + i as f32 * 0.01)?,
            nested: nested.then(maxima).transpose()?,
            code: Buffer::of(device, QuantType::Nf4.code())?,
            n,
            k,
            dtype: DType::Bf16,
        })
    }

    /// The same of a weight that had another dtype.
    pub fn of_dtype(self, dtype: DType) -> Weight {
        Weight { dtype, ..self }
    }

    pub fn view(&self) -> Result<Nf4View<'_>> {
        let (n, k) = (self.n, self.k);
        let absmax = match &self.nested {
            None => Absmax::F32(self.absmax.all()),
            Some((codes, nested, table)) => Absmax::Nested {
                codes: codes.all(),
                nested: nested.all(),
                table: table.all(),
                offset: 0.05,
                nested_blocksize: NESTED,
            },
        };
        Ok(Nf4View {
            packed: self.packed.view(&[(n * k / 2) as i64])?,
            absmax,
            code: self.code.view(&[16])?,
            n,
            k,
            blocksize: BLOCK,
            dtype: self.dtype,
        })
    }

    /// Half a byte a value and its share of the maxima: f32, or a byte and a 256th of an f32.
    pub fn bytes(n: usize, k: usize, nested: bool) -> usize {
        let blocks = n * k / BLOCK;
        n * k / 2 + if nested { blocks + 4 * blocks.div_ceil(NESTED) } else { 4 * blocks }
    }
}

/// An element read twice, half a byte and a block's maximum written.
fn quantize<T: Float>(n: usize, k: usize) -> Case {
    let costs = [size_of::<T>() * n * k + Weight::bytes(n, k, false), 0];
    Case::new::<T>(
        ["quantize", "nf4_quantize"],
        format!("{n} x {k}"),
        costs,
        Work::F32,
        move |device| {
            let (x, mut w) = (wave::<T>(device, n * k, 1)?, Weight::new(device, n, k, false)?);
            Ok(Box::new(move |device| {
                let args = Nf4Quantize {
                    x: x.view(&shape(n, k))?,
                    quant_type: QuantType::Nf4,
                    blocksize: BLOCK,
                    packed: w.packed.view_mut(&[(n * k / 2) as i64])?,
                    absmax: w.absmax.view_mut(&[(n * k / BLOCK) as i64])?,
                };
                nf4_quantize(device, args)
            }))
        },
    )
}

/// W as [`Weight::bytes`] read, an element a value written.
pub fn dequantize<T: Float>(n: usize, k: usize, nested: bool) -> Case {
    dequantize_to::<T>([n, k], nested, DType::Bf16)
}

/// The same with the dtype that values are rounded to first.
pub fn dequantize_to<T: Float>([n, k]: [usize; 2], nested: bool, dtype: DType) -> Case {
    let costs = [size_of::<T>() * n * k + Weight::bytes(n, k, nested), n * k];
    let name = format!("{n} x {k}") + if nested { " dq" } else { "" };
    Case::new::<T>(["quantize", "nf4_dequantize"], name, costs, Work::F32, move |device| {
        let w = Weight::new(device, n, k, nested)?.of_dtype(dtype);
        let mut y = Buffer::<T>::new(device, n * k)?;
        Ok(Box::new(move |device| {
            nf4_dequantize(device, Nf4Dequantize { w: w.view()?, y: y.view_mut(&shape(n, k))? })
        }))
    })
}
