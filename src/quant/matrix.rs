//! [`Nf4Matrix`]: a 4-bit matrix in the memory of the device that multiplies with it.

use crate::device::{Buffer, Device};
use crate::dtype::DType;
use crate::error::Result;
use crate::quant::{Absmax, Nf4Parts, Nf4Tensor, Nf4View, OwnedAbsmax, QuantType};

/// A 4-bit matrix whose bytes lie where the ops read them. The bytes are those of the
/// [`Nf4Tensor`] it was made of.
#[derive(Debug)]
pub struct Nf4Matrix {
    packed: Buffer<u8>,
    absmax: Maxima,
    code: Buffer<f32>,
    n: usize,
    k: usize,
    blocksize: usize,
    dtype: DType,
    quant_type: QuantType,
}

/// Block maxima; see [`Absmax`].
#[derive(Debug)]
enum Maxima {
    F32(Buffer<f32>),
    Nested {
        codes: Buffer<u8>,
        nested: Buffer<f32>,
        table: Buffer<f32>,
        offset: f32,
        nested_blocksize: usize,
    },
}

impl Nf4Matrix {
    /// Moves `tensor` to `device`.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn new(device: &Device, tensor: Nf4Tensor) -> Result<Nf4Matrix> {
        let p = tensor.into_parts();
        let absmax = match p.absmax {
            OwnedAbsmax::F32(absmax) => Maxima::F32(Buffer::from_vec(device, absmax)?),
            OwnedAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                Maxima::Nested {
                    codes: Buffer::from_vec(device, codes)?,
                    nested: Buffer::from_vec(device, nested)?,
                    table: Buffer::from_vec(device, table)?,
                    offset,
                    nested_blocksize,
                }
            }
        };
        Ok(Nf4Matrix {
            packed: Buffer::from_vec(device, p.packed)?,
            absmax,
            code: Buffer::from_vec(device, p.code)?,
            n: p.n,
            k: p.k,
            blocksize: p.blocksize,
            dtype: p.dtype,
            quant_type: p.quant_type,
        })
    }

    /// The code book.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// A copy in host memory, for a checkpoint.
    pub fn to_parts(&self) -> Result<Nf4Parts> {
        let absmax = match &self.absmax {
            Maxima::F32(absmax) => OwnedAbsmax::F32(absmax.to_host()?),
            Maxima::Nested { codes, nested, table, offset, nested_blocksize } => {
                OwnedAbsmax::Nested {
                    codes: codes.to_host()?,
                    nested: nested.to_host()?,
                    table: table.to_host()?,
                    offset: *offset,
                    nested_blocksize: *nested_blocksize,
                }
            }
        };
        Ok(Nf4Parts {
            packed: self.packed.to_host()?,
            absmax,
            code: self.code.to_host()?,
            n: self.n,
            k: self.k,
            blocksize: self.blocksize,
            dtype: self.dtype,
            quant_type: self.quant_type,
        })
    }

    /// The matrix as ops take it.
    pub fn view(&self) -> Nf4View<'_> {
        let absmax = match &self.absmax {
            Maxima::F32(absmax) => Absmax::F32(absmax.all()),
            Maxima::Nested { codes, nested, table, offset, nested_blocksize } => Absmax::Nested {
                codes: codes.all(),
                nested: nested.all(),
                table: table.all(),
                offset: *offset,
                nested_blocksize: *nested_blocksize,
            },
        };
        Nf4View {
            packed: self.packed.all(),
            absmax,
            code: self.code.all(),
            n: self.n,
            k: self.k,
            blocksize: self.blocksize,
            dtype: self.dtype,
        }
    }

    /// Addresses of codes of the maxima (or 0), maxima, packed codes and code book: two matrices with the
    /// same ones are one. For whoever keeps a recorded [`Graph`](crate::device::Graph), which holds addresses.
    pub fn addresses(&self) -> [usize; 4] {
        let [codes, maxima] = match &self.absmax {
            Maxima::F32(absmax) => [0, absmax.all().as_ptr() as usize],
            Maxima::Nested { codes, nested, .. } => {
                [codes.all().as_ptr() as usize, nested.all().as_ptr() as usize]
            }
        };
        [self.packed.all().as_ptr() as usize, codes, maxima, self.code.all().as_ptr() as usize]
    }

    /// Bytes held: codes, maxima and tables.
    pub fn bytes(&self) -> usize {
        let absmax = match &self.absmax {
            Maxima::F32(absmax) => 4 * absmax.len(),
            Maxima::Nested { codes, nested, table, .. } => {
                codes.len() + 4 * (nested.len() + table.len() + 1)
            }
        };
        self.packed.len() + absmax + 4 * self.code.len()
    }
}
