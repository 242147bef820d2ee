//! What a row of the table measures.

use gradus::device::Buffer;
use gradus::dtype::{Element, Float};
use gradus::{DType, Device, Result};

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
    /// The family that the op belongs to.
    pub family: &'static str,
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
    /// False where several sets of operands would cost more time or memory than the row is worth.
    pub turns: bool,
    /// Puts a set of operands on a device.
    pub make: Make,
}

impl Case {
    /// A row of `[family, op]`; `[bytes, flops]` of one call, and what builds its operands.
    pub fn new<T: Float>(
        [family, op]: [&'static str; 2],
        shape: String,
        [bytes, flops]: [usize; 2],
        work: Work,
        make: impl Fn(&Device) -> Result<Body> + 'static,
    ) -> Case {
        let (bytes, flops) = (bytes as u64, flops as u64);
        Case {
            family,
            op,
            shape,
            dtype: T::DTYPE,
            bytes,
            flops,
            work,
            turns: true,
            make: Box::new(make),
        }
    }

    /// The same with one set of operands, which a GPU's L2 may hold.
    pub fn with_one_set(self) -> Case {
        Case { turns: false, ..self }
    }

    /// `op shape dtype`.
    pub fn name(&self) -> String {
        format!("{} {} {}", self.op, self.shape, self.dtype.name())
    }
}

/// Products in the units of a dtype.
pub fn products<T: Float>() -> Work {
    match T::DTYPE {
        DType::Bf16 | DType::F16 => Work::Products,
        _ => Work::F32,
    }
}

/// `n` values from -1 to 1, the same again after 2003, which no tile or block divides.
pub fn wave<T: Float>(device: &Device, n: usize, seed: usize) -> Result<Buffer<T>> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.0 - 1.0;
    repeated(device, n, 2003, |i| T::from_f64(value(i)))
}

/// `n` values of a function of the index modulo `period`: large operands are copied together, as
/// computing each element would take longer than measuring.
pub fn repeated<T: Element>(
    device: &Device,
    n: usize,
    period: usize,
    f: impl Fn(usize) -> T,
) -> Result<Buffer<T>> {
    let mut data: Vec<T> = (0..period.min(n)).map(f).collect();
    data.reserve_exact(n - data.len());
    while data.len() < n {
        // All but the last length are multiples of the period.
        data.extend_from_within(..data.len().min(n - data.len()));
    }
    Buffer::from_vec(device, data)
}

/// `n` values of a function of the index.
pub fn table<T: Element>(device: &Device, n: usize, f: impl Fn(usize) -> T) -> Result<Buffer<T>> {
    Buffer::of(device, &(0..n).map(f).collect::<Vec<T>>())
}

/// A matrix's shape.
pub fn shape(rows: usize, columns: usize) -> [i64; 2] {
    [rows as i64, columns as i64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_operands_repeat_a_period() {
        for n in [0, 1, 6, 7, 8, 20, 100] {
            let values = repeated(&Device::Cpu, n, 7, |i| i as i32).unwrap();
            assert!(values.host().unwrap().iter().enumerate().all(|(i, &v)| v == i as i32 % 7));
            assert_eq!(values.len(), n);
        }
    }
}
