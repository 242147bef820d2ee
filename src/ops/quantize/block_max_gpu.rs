//! Block maxima as kernels read them (`kernels/quantize/nf4.cuh`).

use bytemuck::Zeroable;

use crate::device::params::nf4::BlockMax;
use crate::device::{Column, LaunchArgs};
use crate::dtype::DType;
use crate::error::Result;
use crate::quant::{Absmax, Nf4View};

impl BlockMax {
    pub fn new(launch: &mut LaunchArgs<'_>, w: &Nf4View<'_>) -> Result<BlockMax> {
        let mut max = BlockMax {
            nested_blocksize: 1,
            block_shift: w.blocksize.trailing_zeros() as i32,
            ..BlockMax::zeroed()
        };
        match &w.absmax {
            Absmax::F32(absmax) => max.absmax = launch.column(absmax)?,
            Absmax::Nested { codes, nested, table, offset, nested_blocksize } => {
                max.codes = launch.column(codes)?;
                max.nested = launch.column(nested)?;
                max.table = launch.column(table)?;
                (max.offset, max.nested_blocksize) = (*offset, *nested_blocksize as i64);
            }
        }
        Ok(max)
    }

    /// Whether a maximum spans whole blocks of 64 values, and nested ones a power of two of maxima.
    pub fn is_regular(&self) -> bool {
        self.block_shift >= 6 && (self.nested_blocksize as u64).is_power_of_two()
    }

    /// Whether four 8-bit maxima of 64 values each can be read at once and share a nested maximum.
    pub fn in_quads(&self) -> bool {
        let Column { at, stride } = self.codes;
        let aligned = !at.is_null() && at.address().is_multiple_of(4) && stride == 1;
        aligned && self.block_shift == 6 && self.nested_blocksize % 4 == 0
    }

    /// Logarithm of the nested block size, if it is a power of two.
    pub fn nested_shift(&self) -> i32 {
        self.nested_blocksize.trailing_zeros() as i32
    }

    /// The dtype that was quantized in the kernels' numbers.
    pub fn dtype_code(dtype: DType) -> i32 {
        match dtype {
            DType::Bf16 => 1,
            DType::F16 => 2,
            DType::F32 => 0,
            DType::U8 | DType::I32 | DType::I64 | DType::F64 => {
                unreachable!("views of 4-bit weights are checked")
            }
        }
    }
}
