//! Memory of an op that is made of other ops. It comes from a pool of its own, because those ops take
//! scratch memory themselves.

use std::marker::PhantomData;

use crate::device::scratch::PoolGuard;
use crate::device::{Device, Gpu, zeros};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Location, View, ViewMut};

/// Memory for one call: host memory, or a pool of the GPU, which keeps it for the next call.
pub(crate) struct Workspace<'a>(Option<(&'a Gpu, PoolGuard<'a>)>);

/// Elements in a workspace.
pub(crate) enum WorkspaceBuffer<'w, T> {
    Host(Vec<T>),
    Gpu { ptr: u64, len: usize, location: Location, workspace: PhantomData<&'w ()> },
}

impl<'a> Workspace<'a> {
    /// The device's workspace; a call of another thread waits until it is dropped.
    pub fn new(device: &'a Device) -> Workspace<'a> {
        Workspace(match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some((gpu, gpu.lock_workspace())),
        })
    }

    /// Room for `len` elements: zeros on the CPU, whatever was there on a GPU.
    pub fn buffer<T: Element>(&self, len: usize) -> Result<WorkspaceBuffer<'_, T>> {
        let Some((gpu, guard)) = &self.0 else {
            return Ok(WorkspaceBuffer::Host(zeros(len, "workspace of an op")?));
        };
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(WorkspaceBuffer::on(gpu, guard.take(bytes)?, len))
    }

    /// One value `len` times, to be read only.
    pub fn constant<T: Element>(&self, value: T, len: usize) -> Result<WorkspaceBuffer<'_, T>> {
        let mut values = zeros(len, "workspace of an op")?;
        values.fill(value);
        Ok(match &self.0 {
            None => WorkspaceBuffer::Host(values),
            Some((gpu, guard)) => {
                WorkspaceBuffer::on(gpu, guard.table(bytemuck::cast_slice(&values))?, len)
            }
        })
    }
}

impl<T: Element> WorkspaceBuffer<'_, T> {
    fn on(gpu: &Gpu, ptr: u64, len: usize) -> Self {
        let location = Location::Device(gpu.info().ordinal);
        WorkspaceBuffer::Gpu { ptr, len, location, workspace: PhantomData }
    }

    /// Contiguous view with `shape`; the buffer may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        match self {
            WorkspaceBuffer::Host(data) => View::new(data, shape),
            WorkspaceBuffer::Gpu { ptr, len, location, .. } => {
                let dims = dims(shape, *len)?;
                // SAFETY: the buffer covers `dims`, is shared, and stays in use for the view's life.
                unsafe { View::from_raw(*ptr as *const T, dims, *location) }
            }
        }
    }

    /// Exclusive contiguous view with `shape`; the buffer may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        match self {
            WorkspaceBuffer::Host(data) => ViewMut::new(data, shape),
            WorkspaceBuffer::Gpu { ptr, len, location, .. } => {
                let dims = dims(shape, *len)?;
                // SAFETY: as above, and exclusive.
                unsafe { ViewMut::from_raw(*ptr as *mut T, dims, *location) }
            }
        }
    }
}

fn dims(shape: &[i64], len: usize) -> Result<Dims> {
    let dims = Dims::contiguous(shape)?;
    if dims.numel() as u64 > len as u64 {
        return Err(Error::invalid("workspace", "data", len, format!("elements for {dims:?}")));
    }
    Ok(dims)
}
