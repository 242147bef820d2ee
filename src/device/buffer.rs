//! Device memory that frees itself.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::gpu::Gpu;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Place, View, ViewMut};

/// `len` elements of device memory.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    gpu: Arc<Gpu>,
    ptr: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> DeviceBuffer<T> {
    /// Memory that holds nothing yet.
    pub fn new(gpu: &Arc<Gpu>, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| Error::invalid("device_buffer", "len", len, "fewer than 2^64 bytes"))?;
        let ptr = gpu.alloc("device buffer", bytes.max(1))?;
        Ok(DeviceBuffer { gpu: gpu.clone(), ptr, len, element: PhantomData })
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

    /// Contiguous view with `shape`; the buffer may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        let dims = self.dims(shape)?;
        // SAFETY: the buffer is alive and shared for the view's lifetime and covers `dims`.
        unsafe { View::from_raw(self.ptr as *const T, dims, self.place()) }
    }

    /// Exclusive contiguous view with `shape`; the buffer may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        let dims = self.dims(shape)?;
        // SAFETY: the buffer is alive and exclusive for the view's lifetime and covers `dims`.
        unsafe { ViewMut::from_raw(self.ptr as *mut T, dims, self.place()) }
    }

    fn dims(&self, shape: &[i64]) -> Result<Dims> {
        let dims = Dims::contiguous(shape)?;
        if dims.numel() as u64 > self.len as u64 {
            let got = format!("{} elements", self.len);
            return Err(Error::invalid("view", "data", got, format!("{dims:?}")));
        }
        Ok(dims)
    }

    fn place(&self) -> Place {
        Place::Device(self.gpu.info().ordinal)
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        let _ = self.gpu.synchronize();
        self.gpu.free(self.ptr);
    }
}
