//! Elements in the memory of whichever device an op runs on.

use std::sync::Arc;

use crate::device::{Arena, Device, DeviceBuffer};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{View, ViewMut, rows_in};

/// Elements in host memory for the CPU, in device memory for a GPU: results that stay where the
/// next op reads them.
#[derive(Debug)]
pub enum Buffer<T> {
    /// Host memory.
    Host(Vec<T>),
    /// Memory of a GPU.
    Gpu(DeviceBuffer<T>),
}

impl<T: Element> Buffer<T> {
    /// Room for `len` elements: zeros on the CPU, whatever was there on a GPU.
    pub fn new(device: &Device, len: usize) -> Result<Buffer<T>> {
        Ok(match device {
            Device::Cpu => Buffer::Host(zeros(len, "host memory of an op")?),
            Device::Gpu(gpu) => Buffer::Gpu(DeviceBuffer::new(gpu, len)?),
        })
    }

    /// A copy of host data.
    pub fn of(device: &Device, data: &[T]) -> Result<Buffer<T>> {
        Ok(match device {
            Device::Cpu => {
                let mut copy = zeros(data.len(), "host memory of an op")?;
                copy.copy_from_slice(data);
                Buffer::Host(copy)
            }
            Device::Gpu(gpu) => Buffer::Gpu(DeviceBuffer::from_host(gpu, data)?),
        })
    }

    /// Host data where `device` reads it: moved on the CPU, copied to a GPU.
    pub fn from_vec(device: &Device, data: Vec<T>) -> Result<Buffer<T>> {
        match device {
            Device::Cpu => Ok(Buffer::Host(data)),
            Device::Gpu(_) => Buffer::of(device, &data),
        }
    }

    /// Room in an arena; see [`Allocator::alloc`](crate::device::Allocator::alloc).
    pub(crate) fn in_arena(arena: &Arc<Arena>, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::Gpu(DeviceBuffer::in_arena(arena, len)?))
    }

    /// All elements as a vector.
    pub fn all(&self) -> View<'_, T> {
        match self {
            Buffer::Host(data) => data.into(),
            Buffer::Gpu(data) => data.all(),
        }
    }

    /// All elements as a vector, exclusively.
    pub fn all_mut(&mut self) -> ViewMut<'_, T> {
        match self {
            Buffer::Host(data) => data.into(),
            Buffer::Gpu(data) => data.all_mut(),
        }
    }

    /// Rows of `columns` elements.
    pub fn rows(&self, columns: usize) -> Result<View<'_, T>> {
        self.view(&[rows_in(self.len(), columns)?, columns as i64])
    }

    /// Rows of `columns` elements, exclusively.
    pub fn rows_mut(&mut self, columns: usize) -> Result<ViewMut<'_, T>> {
        let rows = rows_in(self.len(), columns)?;
        self.view_mut(&[rows, columns as i64])
    }

    /// Contiguous view with `shape`; the memory may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        match self {
            Buffer::Host(data) => View::new(data, shape),
            Buffer::Gpu(data) => data.view(shape),
        }
    }

    /// Exclusive contiguous view with `shape`; the memory may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        match self {
            Buffer::Host(data) => ViewMut::new(data, shape),
            Buffer::Gpu(data) => data.view_mut(shape),
        }
    }

    /// A copy in host memory, after all earlier work.
    pub fn to_host(&self) -> Result<Vec<T>> {
        match self {
            Buffer::Host(data) => Ok(data.clone()),
            Buffer::Gpu(data) => data.to_host(),
        }
    }

    /// Overwrites the memory with as many elements of host data.
    pub fn upload(&mut self, data: &[T]) -> Result<()> {
        match self {
            Buffer::Host(to) if to.len() == data.len() => to.copy_from_slice(data),
            Buffer::Host(to) => {
                let (got, expected) = (data.len(), to.len());
                return Err(Error::invalid("upload", "data", got, format!("{expected} elements")));
            }
            Buffer::Gpu(to) => to.upload(data)?,
        }
        Ok(())
    }

    /// Sets every element to 0.
    pub fn clear(&mut self) -> Result<()> {
        self.clear_first(self.len())
    }

    /// Sets the first `len` elements to 0.
    pub fn clear_first(&mut self, len: usize) -> Result<()> {
        match self {
            Buffer::Host(data) => data[..len].fill(T::zeroed()),
            Buffer::Gpu(data) => data.clear_first(len)?,
        }
        Ok(())
    }

    /// The elements, if they are in host memory.
    pub fn host(&self) -> Option<&[T]> {
        match self {
            Buffer::Host(data) => Some(data),
            Buffer::Gpu(_) => None,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Host(data) => data.len(),
            Buffer::Gpu(data) => data.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `len` zeros in host memory, or an error where `vec!` would abort. `what` names them in the error.
///
/// # Errors
/// `OutOfMemory` with `what` and the bytes asked for.
pub fn zeros<T: Element>(len: usize, what: &str) -> Result<Vec<T>> {
    let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    let refused = |()| Error::OutOfMemory { what: what.to_string(), bytes };
    // The system's own zeros: pages that nobody writes take no memory.
    bytemuck::allocation::try_zeroed_vec(len).map_err(refused)
}
