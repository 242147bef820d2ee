//! 4-bit block-quantized matrices in the bitsandbytes layout.
//!
//! A matrix `[N, K]` is flattened row-major and cut into blocks of `blocksize` consecutive values
//! (blocks may cross rows, the last may be short). Element `2i` is the high nibble of byte `i`,
//! element `2i + 1` the low one. `w = code[nibble] · absmax[block]` in f32, rounded once to
//! the dtype that was quantized.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::view::View;

use super::Absmax;

/// The code book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantType {
    /// Normal-float 4 (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E).
    Nf4,
    /// bitsandbytes' 4-bit float (e2m1 in its own index order).
    Fp4,
}

/// How to quantize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nf4Options {
    /// Code book.
    pub quant_type: QuantType,
    /// Values per block: a power of two, 32 to 4096.
    pub blocksize: usize,
    /// Quantize the block maxima too, to 8 bits in blocks of 256 (QLoRA §3).
    pub double_quant: bool,
}

impl Default for Nf4Options {
    fn default() -> Nf4Options {
        Nf4Options { quant_type: QuantType::Nf4, blocksize: 64, double_quant: true }
    }
}

/// A borrowed 4-bit matrix.
#[derive(Clone, Copy, Debug)]
pub struct Nf4View<'a> {
    /// `[ceil(N·K / 2)]` packed codes, side by side. The other parts may have strides.
    pub packed: View<'a, u8>,
    /// Block maxima.
    pub absmax: Absmax<'a>,
    /// `[16]` code book.
    pub code: View<'a, f32>,
    /// Rows (output features).
    pub n: usize,
    /// Columns (input features).
    pub k: usize,
    /// Values per block.
    pub blocksize: usize,
    /// Dtype of the original weight: dequantized values are rounded to it.
    pub dtype: DType,
}

impl Nf4View<'_> {
    /// Bytes of all parts: codes, maxima, tables and offset.
    pub(super) fn bytes(&self) -> usize {
        let absmax = match &self.absmax {
            Absmax::F32(absmax) => 4 * absmax.numel(),
            Absmax::Nested { codes, nested, table, .. } => {
                codes.numel() + 4 * (nested.numel() + table.numel() + 1)
            }
        };
        (self.packed.numel() + absmax + 4 * self.code.numel()) as usize
    }

    /// Maximum of block `i`, decoded. Panics out of range.
    #[inline]
    pub(crate) fn absmax_at(&self, i: usize) -> f32 {
        match &self.absmax {
            Absmax::F32(absmax) => absmax.at(i),
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let scale = nested.at(i / nested_blocksize);
                table.at(codes.at(i) as usize) * scale + offset
            }
        }
    }

    /// Maxima of blocks `first ..`, as many as `out` takes. Panics out of range.
    pub(crate) fn maxima(&self, first: usize, out: &mut [f32]) {
        match &self.absmax {
            Absmax::F32(absmax) if absmax.as_slice().is_some() => {
                let all = absmax.as_slice().unwrap_or(&[]);
                out.copy_from_slice(&all[first..][..out.len()]);
            }
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let (Some(codes), Some(nested), Some(table)) =
                    (codes.as_slice(), nested.as_slice(), table.as_slice())
                else {
                    return self.maxima_one_by_one(first, out);
                };
                let codes = &codes[first..][..out.len()];
                let mut done = 0;
                while done < out.len() {
                    let (block, inside) =
                        ((first + done) / nested_blocksize, (first + done) % nested_blocksize);
                    let end = out.len().min(done + nested_blocksize - inside);
                    for (out, &code) in out[done..end].iter_mut().zip(&codes[done..end]) {
                        *out = table[code as usize] * nested[block] + offset;
                    }
                    done = end;
                }
            }
            _ => self.maxima_one_by_one(first, out),
        }
    }

    fn maxima_one_by_one(&self, first: usize, out: &mut [f32]) {
        out.iter_mut().enumerate().for_each(|(i, out)| *out = self.absmax_at(first + i));
    }

    /// Refuses a view whose parts do not fit together: the one check of all ops. `arg` is the name it
    /// has in the op.
    pub(crate) fn check(&self, check: Check, device: &Device, arg: &str) -> Result<()> {
        let name = |field: &str| format!("{arg}.{field}");
        let numel = check_geometry(check, arg, self.n, self.k, self.blocksize, self.dtype)?;
        let blocks = numel.div_ceil(self.blocksize);
        check.shape(device, &name("packed"), &self.packed, &[numel.div_ceil(2)])?;
        check.contiguous(&name("packed"), &self.packed)?;
        check.shape(device, &name("code"), &self.code, &[16])?;
        match &self.absmax {
            Absmax::F32(absmax) => check.shape(device, &name("absmax"), absmax, &[blocks]),
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let size = *nested_blocksize;
                let field = name("absmax.nested_blocksize");
                check.that(size > 0, &field, size, "at least 1 (bitsandbytes uses 256)")?;
                check.shape(device, &name("absmax.codes"), codes, &[blocks])?;
                check.shape(device, &name("absmax.nested"), nested, &[blocks.div_ceil(size)])?;
                check.shape(device, &name("absmax.table"), table, &[256])?;
                check.that(offset.is_finite(), &name("absmax.offset"), offset, "a finite number")
            }
        }
    }
}

/// Checks extents, block size and dtype of a 4-bit matrix `[n, k]`; returns the number of elements.
///
/// # Errors
/// `InvalidArgument` for 2^63 elements or more, a block size that is not a power of two from 32 to 4096, a dtype
/// other than f16, bf16 and f32.
pub fn check_geometry(
    check: Check,
    arg: &str,
    n: usize,
    k: usize,
    blocksize: usize,
    dtype: DType,
) -> Result<usize> {
    let numel = n.checked_mul(k).filter(|&numel| numel <= i64::MAX as usize);
    let Some(numel) = numel else {
        return Err(Error::invalid(check.0, arg, format!("{n} x {k}"), "fewer than 2^63 elements"));
    };
    check_blocksize(check, &format!("{arg}.blocksize"), blocksize)?;
    let floats = matches!(dtype, DType::F16 | DType::Bf16 | DType::F32);
    check.that(floats, &format!("{arg}.dtype"), dtype.name(), "f16, bf16 or f32")?;
    Ok(numel)
}

/// Refuses a block size that bitsandbytes does not know.
///
/// # Errors
/// `InvalidArgument` unless it is a power of two from 32 to 4096.
pub fn check_blocksize(check: Check, arg: &str, blocksize: usize) -> Result<()> {
    let ok = blocksize.is_power_of_two() && (32..=4096).contains(&blocksize);
    check.that(ok, arg, blocksize, "a power of two from 32 to 4096")
}
