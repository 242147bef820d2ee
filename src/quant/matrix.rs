//! [`Nf4Matrix`]: a 4-bit matrix in the memory of the device that multiplies with it.

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::quant::{Absmax, Nf4Parts, Nf4Tensor, Nf4View, QuantType, parts};

/// A 4-bit matrix whose bytes lie where the ops read them. The bytes are those of the
/// [`Nf4Tensor`] it was made of.
#[derive(Debug)]
pub struct Nf4Matrix {
    parts: Nf4Parts<Buffer<u8>, Buffer<f32>>,
}

impl Nf4Matrix {
    /// Moves `tensor` to `device`.
    ///
    /// # Errors
    /// `OutOfMemory`, or what the driver says.
    pub fn new(device: &Device, tensor: Nf4Tensor) -> Result<Nf4Matrix> {
        let (bytes, floats) = (|b| Buffer::from_vec(device, b), |f| Buffer::from_vec(device, f));
        tensor.into_parts().try_map(bytes, floats).map(|parts| Nf4Matrix { parts })
    }

    /// The code book.
    pub fn quant_type(&self) -> QuantType {
        self.parts.quant_type
    }

    /// A copy in host memory, for a checkpoint.
    ///
    /// # Errors
    /// What the driver says.
    pub fn to_parts(&self) -> Result<Nf4Parts> {
        self.parts.as_ref().try_map(Buffer::to_host, Buffer::to_host)
    }

    /// The matrix as ops take it.
    pub fn view(&self) -> Nf4View<'_> {
        parts::view(&self.parts)
    }

    /// Addresses of the codes of the maxima (or 0), the maxima, the packed codes and the code book. Two matrices
    /// with equal addresses are one. A recorded [`Graph`](crate::device::Graph) holds addresses: compare these
    /// before running it again.
    pub fn addresses(&self) -> [usize; 4] {
        let view = self.view();
        let [codes, maxima] = match view.absmax {
            Absmax::F32(absmax) => [0, absmax.as_ptr() as usize],
            Absmax::Nested { codes, nested, .. } => {
                [codes.as_ptr() as usize, nested.as_ptr() as usize]
            }
        };
        [view.packed.as_ptr() as usize, codes, maxima, view.code.as_ptr() as usize]
    }

    /// Bytes held: codes, maxima and tables.
    pub fn bytes(&self) -> usize {
        self.view().bytes()
    }
}
