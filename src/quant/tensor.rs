//! [`Nf4Tensor`]: a 4-bit matrix that owns its bytes.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};

use super::{Absmax, Nf4View, QuantType};

/// Block maxima of an [`Nf4Tensor`]; see [`Absmax`] for the meaning of the fields.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedAbsmax {
    /// One f32 per block.
    F32(Vec<f32>),
    /// 8 bits per block, one f32 per `nested_blocksize` blocks.
    Nested {
        /// One per block.
        codes: Vec<u8>,
        /// One per `nested_blocksize` blocks.
        nested: Vec<f32>,
        /// 256 values of the codes.
        table: Vec<f32>,
        /// Added to every decoded maximum.
        offset: f32,
        /// Maxima per nested block.
        nested_blocksize: usize,
    },
}

/// The fields of an [`Nf4Tensor`], as a checkpoint stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Parts {
    /// `ceil(n·k / 2)` bytes, the first of two elements in the high nibble.
    pub packed: Vec<u8>,
    /// Block maxima.
    pub absmax: OwnedAbsmax,
    /// 16 values of the codes.
    pub code: Vec<f32>,
    /// Rows (output features).
    pub n: usize,
    /// Columns (input features).
    pub k: usize,
    /// Values per block.
    pub blocksize: usize,
    /// Dtype of the original weight.
    pub dtype: DType,
    /// Code book.
    pub quant_type: QuantType,
}

/// An owned 4-bit matrix on the host. Its parts are known to fit together.
///
/// # Example
/// ```
/// use gradus::{Device, View, quant::{Nf4Options, Nf4Tensor}};
/// let weight: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
/// let options = Nf4Options { double_quant: false, ..Nf4Options::default() };
/// let quantised = Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&weight, 32)?, &options)?;
/// assert_eq!((quantised.n(), quantised.k()), (4, 32));
/// let back: Vec<f32> = quantised.dequantize(&Device::Cpu)?;
/// assert!(weight.iter().zip(&back).all(|(w, q)| (w - q).abs() < 0.16));
/// # Ok::<(), gradus::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Tensor {
    pub(crate) parts: Nf4Parts,
}

impl Nf4Tensor {
    /// Takes the parts of a checkpoint after checking that they fit together.
    ///
    /// # Errors
    /// `InvalidArgument` for a length that does not follow from `n`, `k` and the block sizes, a
    /// bad block size or dtype; `NonFinite` for a NaN or infinity in maxima, tables or offset.
    pub fn from_parts(parts: Nf4Parts) -> Result<Nf4Tensor> {
        let tensor = Nf4Tensor { parts };
        let check = Check("Nf4Tensor::from_parts");
        let parts = &tensor.parts;
        tensor.view().check(check, &Device::Cpu, "parts")?;
        finite(check, "parts.code", &parts.code)?;
        match &parts.absmax {
            OwnedAbsmax::F32(absmax) => finite(check, "parts.absmax", absmax)?,
            OwnedAbsmax::Nested { nested, table, .. } => {
                finite(check, "parts.absmax.nested", nested)?;
                finite(check, "parts.absmax.table", table)?;
            }
        }
        Ok(tensor)
    }

    /// The parts, for a checkpoint.
    pub fn into_parts(self) -> Nf4Parts {
        self.parts
    }

    /// The parts, borrowed.
    pub fn parts(&self) -> &Nf4Parts {
        &self.parts
    }

    /// The matrix as ops take it.
    pub fn view(&self) -> Nf4View<'_> {
        let p = &self.parts;
        let absmax = match &p.absmax {
            OwnedAbsmax::F32(absmax) => Absmax::F32(absmax.into()),
            OwnedAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                Absmax::Nested {
                    codes: codes.into(),
                    nested: nested.into(),
                    table: table.into(),
                    offset: *offset,
                    nested_blocksize: *nested_blocksize,
                }
            }
        };
        Nf4View {
            packed: (&p.packed).into(),
            absmax,
            code: (&p.code).into(),
            n: p.n,
            k: p.k,
            blocksize: p.blocksize,
            dtype: p.dtype,
        }
    }

    /// Rows (output features).
    pub fn n(&self) -> usize {
        self.parts.n
    }

    /// Columns (input features).
    pub fn k(&self) -> usize {
        self.parts.k
    }

    /// Dtype of the original weight.
    pub fn dtype(&self) -> DType {
        self.parts.dtype
    }

    /// Bytes held: codes, maxima and tables.
    pub fn bytes(&self) -> usize {
        let absmax = match &self.parts.absmax {
            OwnedAbsmax::F32(absmax) => 4 * absmax.len(),
            OwnedAbsmax::Nested { codes, nested, table, .. } => {
                codes.len() + 4 * (nested.len() + table.len() + 1)
            }
        };
        self.parts.packed.len() + absmax + 4 * self.parts.code.len()
    }

    /// `8 · bytes / (n · k)`; 0 for an empty matrix.
    pub fn bits_per_parameter(&self) -> f64 {
        let numel = self.parts.n * self.parts.k;
        if numel == 0 { 0.0 } else { 8.0 * self.bytes() as f64 / numel as f64 }
    }
}

fn finite(check: Check, arg: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NonFinite { op: check.0, arg: arg.to_string(), index }),
        None => Ok(()),
    }
}
