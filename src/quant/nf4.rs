//! 4-bit block-quantised matrices in the bitsandbytes layout.
//!
//! A matrix `[N, K]` is flattened row-major and cut into blocks of `blocksize` consecutive values
//! (blocks may cross rows, the last may be short). Element `2i` is the high nibble of byte `i`,
//! element `2i + 1` the low one. `w = code[nibble] · absmax[block]` in f32, rounded once to
//! the dtype that was quantised.

use crate::dtype::DType;
use crate::view::View;

/// The code book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantType {
    /// Normal-float 4 (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E).
    Nf4,
    /// bitsandbytes' 4-bit float (e2m1 in its own index order).
    Fp4,
}

/// How to quantise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nf4Options {
    /// Code book.
    pub quant_type: QuantType,
    /// Values per block: a power of two, 32 to 4096.
    pub blocksize: usize,
    /// Quantise the block maxima too, to 8 bits in blocks of 256 (QLoRA §3).
    pub double_quant: bool,
}

impl Default for Nf4Options {
    fn default() -> Nf4Options {
        Nf4Options { quant_type: QuantType::Nf4, blocksize: 64, double_quant: true }
    }
}

/// Block maxima, plain or double-quantised.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<'a> {
    /// `[ceil(N·K / blocksize)]`, one per block.
    F32(View<'a, f32>),
    /// `absmax[i] = fma(table[codes[i]], nested[i / nested_blocksize], offset)`.
    Nested {
        /// `[blocks]` 8-bit codes.
        codes: View<'a, u8>,
        /// `[ceil(blocks / nested_blocksize)]` maxima of the maxima.
        nested: View<'a, f32>,
        /// `[256]` code book of the maxima.
        table: View<'a, f32>,
        /// Mean that was taken off before quantising.
        offset: f32,
        /// Maxima per nested block; bitsandbytes fixes it at 256.
        nested_blocksize: usize,
    },
}

/// A borrowed 4-bit matrix.
#[derive(Clone, Copy, Debug)]
pub struct Nf4View<'a> {
    /// `[ceil(N·K / 2)]` packed codes.
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
    /// Dtype of the original weight: dequantised values are rounded to it.
    pub dtype: DType,
}

/// An owned 4-bit matrix on the host.
#[derive(Clone, Debug)]
pub struct Nf4Tensor {
    _private: (),
}
