//! Memory of whichever device an op runs on.

use crate::device::{Device, DeviceBuffer};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{View, ViewMut};

/// Elements in host memory for the CPU, in device memory for a GPU: results that stay where the
/// next op reads them.
#[derive(Debug)]
pub enum Memory<T> {
    /// Host memory.
    Host(Vec<T>),
    /// Memory of a GPU.
    Gpu(DeviceBuffer<T>),
}

impl<T: Element> Memory<T> {
    /// Room for `len` elements: zeros on the CPU, whatever was there on a GPU.
    pub fn new(device: &Device, len: usize) -> Result<Memory<T>> {
        Ok(match device {
            Device::Cpu => Memory::Host(zeros(len, "host memory of an op")?),
            Device::Gpu(gpu) => Memory::Gpu(DeviceBuffer::new(gpu, len)?),
        })
    }

    /// A copy of host data.
    pub fn of(device: &Device, data: &[T]) -> Result<Memory<T>> {
        Ok(match device {
            Device::Cpu => {
                let mut copy = zeros(data.len(), "host memory of an op")?;
                copy.copy_from_slice(data);
                Memory::Host(copy)
            }
            Device::Gpu(gpu) => Memory::Gpu(DeviceBuffer::from_host(gpu, data)?),
        })
    }

    /// Contiguous view with `shape`; the memory may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        match self {
            Memory::Host(data) => View::new(data, shape),
            Memory::Gpu(data) => data.view(shape),
        }
    }

    /// Exclusive contiguous view with `shape`; the memory may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        match self {
            Memory::Host(data) => ViewMut::new(data, shape),
            Memory::Gpu(data) => data.view_mut(shape),
        }
    }

    /// A copy in host memory, after all earlier work.
    pub fn to_host(&self) -> Result<Vec<T>> {
        match self {
            Memory::Host(data) => Ok(data.clone()),
            Memory::Gpu(data) => data.to_host(),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Memory::Host(data) => data.len(),
            Memory::Gpu(data) => data.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `len` zeros, or an error where `vec!` would abort.
pub(crate) fn zeros<T: Element>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    values
        .try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { what: what.to_string(), bytes })?;
    values.resize(len, T::zeroed());
    Ok(values)
}
