//! Device memory that frees itself.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::arena::Arena;
use crate::device::gpu::Gpu;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Location, View, ViewMut};

/// `len` elements of device memory.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    gpu: Arc<Gpu>,
    /// Where the memory goes back to; without one, to the driver.
    arena: Option<Arc<Arena>>,
    ptr: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// Memory that holds nothing yet.
    pub fn new(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceBuffer<T>> {
        let ptr = gpu.alloc("device buffer", bytes_of::<T>(len)?.max(1))?;
        Ok(DeviceBuffer { gpu: gpu.clone(), arena: None, ptr, len, element: PhantomData })
    }

    /// Memory from an arena that holds whatever was there.
    pub fn in_arena(arena: &Arc<Arena>, len: usize) -> Result<DeviceBuffer<T>> {
        let (gpu, ptr) = (arena.gpu().clone(), arena.take(bytes_of::<T>(len)?)?);
        Ok(DeviceBuffer { gpu, arena: Some(arena.clone()), ptr, len, element: PhantomData })
    }

    /// A copy of host data.
    pub fn from_host(gpu: &Arc<Gpu>, data: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = DeviceBuffer::new(gpu, data.len())?;
        buffer.upload(data)?;
        Ok(buffer)
    }

    /// Overwrites the buffer with as many elements of host data.
    pub fn upload(&mut self, data: &[T]) -> Result<()> {
        if data.len() != self.len {
            let got = format!("{} elements", data.len());
            return Err(Error::invalid("upload", "data", got, format!("{} elements", self.len)));
        }
        if data.is_empty() {
            return Ok(());
        }
        self.gpu.call(|d| d.upload(self.gpu.stream(), self.ptr, bytemuck::cast_slice(data)))
    }

    /// Sets the bytes of the first `len` elements to 0, in stream order.
    pub(crate) fn clear_first(&mut self, len: usize) -> Result<()> {
        match len.min(self.len) * size_of::<T>() {
            0 => Ok(()),
            bytes => self.gpu.call(|d| d.fill(self.gpu.stream(), self.ptr, 0, bytes)),
        }
    }

    /// A copy in host memory, after all earlier work of the stream.
    pub fn to_host(&self) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        if !data.is_empty() {
            let bytes = bytemuck::cast_slice_mut(&mut data);
            self.gpu.call(|d| d.download(self.gpu.stream(), bytes, self.ptr))?;
        }
        Ok(data)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements as a vector.
    pub fn all(&self) -> View<'_, T> {
        self.view(&[self.len as i64]).expect("a buffer is a valid vector")
    }

    /// All elements as a vector, exclusively.
    pub fn all_mut(&mut self) -> ViewMut<'_, T> {
        let len = self.len as i64;
        self.view_mut(&[len]).expect("a buffer is a valid vector")
    }

    /// Contiguous view with `shape`; the buffer may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        let dims = self.dims(shape)?;
        // SAFETY: the buffer is alive and shared for the view's lifetime and covers `dims`.
        unsafe { View::from_raw(self.ptr as *const T, dims, self.location()) }
    }

    /// Exclusive contiguous view with `shape`; the buffer may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        let dims = self.dims(shape)?;
        // SAFETY: the buffer is alive and exclusive for the view's lifetime and covers `dims`.
        unsafe { ViewMut::from_raw(self.ptr as *mut T, dims, self.location()) }
    }

    fn dims(&self, shape: &[i64]) -> Result<Dims> {
        let dims = Dims::contiguous(shape)?;
        if dims.numel() as u64 > self.len as u64 {
            let got = format!("{} elements", self.len);
            return Err(Error::invalid("view", "data", got, format!("{dims:?}")));
        }
        Ok(dims)
    }

    fn location(&self) -> Location {
        Location::Device(self.gpu.info().ordinal)
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        match &self.arena {
            Some(arena) => arena.give(self.ptr, self.len * size_of::<T>()),
            None => {
                let _ = self.gpu.synchronize();
                self.gpu.free(self.ptr);
            }
        }
    }
}

fn bytes_of<T>(len: usize) -> Result<usize> {
    let bytes = len.checked_mul(size_of::<T>());
    bytes.ok_or_else(|| Error::invalid("device_buffer", "len", len, "fewer than 2^64 bytes"))
}
