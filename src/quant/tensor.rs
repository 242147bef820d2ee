//! [`Nf4Tensor`]: a 4-bit matrix that owns its bytes.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};

use super::{Nf4Parts, Nf4View, OwnedAbsmax, parts};

/// An owned 4-bit matrix on the host. Its parts are known to fit together.
///
/// # Example
/// ```
/// use gradus::{Device, View, quant::{Nf4Options, Nf4Tensor}};
/// let weight: Vec<f32> = (0..128).map(|i| (i as f32 * 0.7).sin()).collect();
/// let options = Nf4Options { double_quant: false, ..Nf4Options::default() };
/// let quantized = Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&weight, 32)?, &options)?;
/// assert_eq!((quantized.n(), quantized.k()), (4, 32));
/// let back: Vec<f32> = quantized.dequantize(&Device::Cpu)?;
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
        parts::view(&self.parts)
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
        self.view().bytes()
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
