//! Memory of an op that is made of other ops. It is lent apart from the scratch memory, which those
//! ops take themselves.

use std::marker::PhantomData;

use crate::device::scratch::Loan;
use crate::device::{Device, Gpu, zeros};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Place, View, ViewMut};

/// Memory for one call: of the GPU's own, which keeps it for the next call, or of the host.
pub(crate) struct Workspace<'a>(Option<(&'a Gpu, Loan<'a>)>);

/// Elements of a workspace.
pub(crate) enum Slot<'w, T> {
    Host(Vec<T>),
    Gpu { ptr: u64, len: usize, place: Place, workspace: PhantomData<&'w ()> },
}

impl<'a> Workspace<'a> {
    /// The device's workspace; another thread's call waits for it.
    pub fn new(device: &'a Device) -> Workspace<'a> {
        Workspace(match device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some((gpu, gpu.lend_workspace())),
        })
    }

    /// Room for `len` elements: zeros on the CPU, whatever was there on a GPU.
    pub fn slot<T: Element>(&self, len: usize) -> Result<Slot<'_, T>> {
        let Some((gpu, loan)) = &self.0 else {
            return Ok(Slot::Host(zeros(len, "workspace of an op")?));
        };
        let bytes = len.saturating_mul(size_of::<T>());
        Ok(Slot::on(gpu, loan.take(bytes)?, len))
    }

    /// The same value `len` times, to be read only.
    pub fn constant<T: Element>(&self, value: T, len: usize) -> Result<Slot<'_, T>> {
        let mut values = zeros(len, "workspace of an op")?;
        values.fill(value);
        Ok(match &self.0 {
            None => Slot::Host(values),
            Some((gpu, loan)) => Slot::on(gpu, loan.table(bytemuck::cast_slice(&values))?, len),
        })
    }
}

impl<T: Element> Slot<'_, T> {
    fn on(gpu: &Gpu, ptr: u64, len: usize) -> Self {
        let place = Place::Device(gpu.info().ordinal);
        Slot::Gpu { ptr, len, place, workspace: PhantomData }
    }

    /// Contiguous view with `shape`; the slot may be longer.
    pub fn view(&self, shape: &[i64]) -> Result<View<'_, T>> {
        match self {
            Slot::Host(data) => View::new(data, shape),
            Slot::Gpu { ptr, len, place, .. } => {
                let dims = dims(shape, *len)?;
                // SAFETY: the slot covers `dims`, is shared, and is on loan for the view's life.
                unsafe { View::from_raw(*ptr as *const T, dims, *place) }
            }
        }
    }

    /// Exclusive contiguous view with `shape`; the slot may be longer.
    pub fn view_mut(&mut self, shape: &[i64]) -> Result<ViewMut<'_, T>> {
        match self {
            Slot::Host(data) => ViewMut::new(data, shape),
            Slot::Gpu { ptr, len, place, .. } => {
                let dims = dims(shape, *len)?;
                // SAFETY: as above, and exclusive.
                unsafe { ViewMut::from_raw(*ptr as *mut T, dims, *place) }
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
