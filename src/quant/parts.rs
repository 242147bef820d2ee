//! The parts of a 4-bit matrix, wherever they lie: [`Nf4Parts`] and [`BlockAbsmax`].

use crate::device::Buffer;
use crate::dtype::{DType, Element};
use crate::error::Result;
use crate::view::View;

use super::{Nf4View, QuantType};

/// Block maxima, plain or double-quantized. `B` holds bytes and `F` floats: views in [`Absmax`], vectors in
/// [`OwnedAbsmax`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BlockAbsmax<B, F> {
    /// `[ceil(N·K / blocksize)]`, one per block.
    F32(F),
    /// `absmax[i] = table[codes[i]] · nested[i / nested_blocksize] + offset`, product and sum each
    /// rounded to f32, as bitsandbytes' own dequantization does.
    Nested {
        /// `[blocks]` 8-bit codes.
        codes: B,
        /// `[ceil(blocks / nested_blocksize)]` maxima of the maxima.
        nested: F,
        /// `[256]` code book of the maxima.
        table: F,
        /// Mean that was subtracted before quantizing.
        offset: f32,
        /// Maxima per nested block; bitsandbytes fixes it at 256.
        nested_blocksize: usize,
    },
}

/// Block maxima as an op takes them.
pub type Absmax<'a> = BlockAbsmax<View<'a, u8>, View<'a, f32>>;

/// Block maxima in host memory, as a checkpoint stores them.
pub type OwnedAbsmax = BlockAbsmax<Vec<u8>, Vec<f32>>;

impl<B, F> BlockAbsmax<B, F> {
    fn as_ref(&self) -> BlockAbsmax<&B, &F> {
        match self {
            BlockAbsmax::F32(absmax) => BlockAbsmax::F32(absmax),
            BlockAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let (offset, nested_blocksize) = (*offset, *nested_blocksize);
                BlockAbsmax::Nested { codes, nested, table, offset, nested_blocksize }
            }
        }
    }

    /// The maxima in another kind of memory.
    fn try_map<B2, F2>(
        self,
        bytes: impl Fn(B) -> Result<B2>,
        floats: impl Fn(F) -> Result<F2>,
    ) -> Result<BlockAbsmax<B2, F2>> {
        Ok(match self {
            BlockAbsmax::F32(absmax) => BlockAbsmax::F32(floats(absmax)?),
            BlockAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                let (codes, nested, table) = (bytes(codes)?, floats(nested)?, floats(table)?);
                BlockAbsmax::Nested { codes, nested, table, offset, nested_blocksize }
            }
        })
    }
}

/// The parts of a 4-bit matrix `[N, K]`: vectors, as a checkpoint stores them, unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Parts<B = Vec<u8>, F = Vec<f32>> {
    /// `ceil(n·k / 2)` bytes, the first of two elements in the high nibble.
    pub packed: B,
    /// Block maxima.
    pub absmax: BlockAbsmax<B, F>,
    /// 16 values of the codes.
    pub code: F,
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

impl<B, F> Nf4Parts<B, F> {
    pub(super) fn as_ref(&self) -> Nf4Parts<&B, &F> {
        let Nf4Parts { packed, absmax, code, n, k, blocksize, dtype, quant_type } = self;
        let (&n, &k, &blocksize, &dtype, &quant_type) = (n, k, blocksize, dtype, quant_type);
        Nf4Parts { packed, absmax: absmax.as_ref(), code, n, k, blocksize, dtype, quant_type }
    }

    /// The matrix in another kind of memory.
    pub(super) fn try_map<B2, F2>(
        self,
        bytes: impl Fn(B) -> Result<B2>,
        floats: impl Fn(F) -> Result<F2>,
    ) -> Result<Nf4Parts<B2, F2>> {
        let Nf4Parts { packed, absmax, code, n, k, blocksize, dtype, quant_type } = self;
        let absmax = absmax.try_map(&bytes, &floats)?;
        let (packed, code) = (bytes(packed)?, floats(code)?);
        Ok(Nf4Parts { packed, absmax, code, n, k, blocksize, dtype, quant_type })
    }
}

/// Memory that holds a part.
pub(super) trait Storage<T> {
    fn view(&self) -> View<'_, T>;
}

impl<T: Element> Storage<T> for Vec<T> {
    fn view(&self) -> View<'_, T> {
        self.into()
    }
}

impl<T: Element> Storage<T> for Buffer<T> {
    fn view(&self) -> View<'_, T> {
        self.all()
    }
}

/// The matrix as ops take it.
pub(super) fn view<B: Storage<u8>, F: Storage<f32>>(parts: &Nf4Parts<B, F>) -> Nf4View<'_> {
    let absmax = match &parts.absmax {
        BlockAbsmax::F32(absmax) => Absmax::F32(absmax.view()),
        BlockAbsmax::Nested { codes, nested, table, offset, nested_blocksize } => {
            let (codes, nested, table) = (codes.view(), nested.view(), table.view());
            let (offset, nested_blocksize) = (*offset, *nested_blocksize);
            Absmax::Nested { codes, nested, table, offset, nested_blocksize }
        }
    };
    let (n, k, blocksize, dtype) = (parts.n, parts.k, parts.blocksize, parts.dtype);
    Nf4View { packed: parts.packed.view(), absmax, code: parts.code.view(), n, k, blocksize, dtype }
}
