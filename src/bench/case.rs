//! What a row of the table measures.

use crate::device::Memory;
use crate::dtype::{Element, Float};
use crate::{DType, Device, Result};

/// One call of an op on operands it owns.
pub type Body = Box<dyn FnMut(&Device) -> Result<()>>;

/// Puts an op's operands on a device.
pub type Make = Box<dyn Fn(&Device) -> Result<Body>>;

/// Which units do the flops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// f32 arithmetic.
    F32,
    /// f64 arithmetic.
    F64,
    /// Products of 16-bit operands: tensor cores on a GPU, f32 on the CPU.
    Products,
}

/// An op on one shape.
pub struct Case {
    /// The op's name.
    pub op: &'static str,
    /// Extents and settings, for people.
    pub shape: String,
    /// Of the operands.
    pub dtype: DType,
    /// Least bytes read and written.
    pub bytes: u64,
    /// Operations of floating point.
    pub flops: u64,
    /// Which units do them.
    pub work: Work,
    /// Puts the operands on a device.
    pub make: Make,
}

impl Case {
    /// `[bytes, flops]` of one call, and what builds its operands.
    pub fn new<T: Float>(
        op: &'static str,
        shape: String,
        [bytes, flops]: [usize; 2],
        work: Work,
        make: impl Fn(&Device) -> Result<Body> + 'static,
    ) -> Case {
        let (bytes, flops) = (bytes as u64, flops as u64);
        Case { op, shape, dtype: T::DTYPE, bytes, flops, work, make: Box::new(make) }
    }
}

/// Products in the units of a dtype.
pub fn products<T: Float>() -> Work {
    match T::DTYPE {
        DType::Bf16 | DType::F16 => Work::Products,
        _ => Work::F32,
    }
}

/// `n` values from -1 to 1 without a short period.
pub fn wave<T: Float>(device: &Device, n: usize, seed: usize) -> Result<Memory<T>> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.0 - 1.0;
    Memory::of(device, &(0..n).map(|i| T::from_f64(value(i))).collect::<Vec<T>>())
}

/// `n` values of a function of the index.
pub fn table<T: Element>(device: &Device, n: usize, f: impl Fn(usize) -> T) -> Result<Memory<T>> {
    Memory::of(device, &(0..n).map(f).collect::<Vec<T>>())
}

/// A matrix's shape.
pub fn shape(rows: usize, columns: usize) -> [i64; 2] {
    [rows as i64, columns as i64]
}
