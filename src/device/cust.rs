//! Buffers and streams of the crate `cust`, borrowed (feature `cust`). `cust` retains a device's primary
//! context, as gradus does, so addresses and streams of either are valid for the other.
//!
//! `cust` looks for a CUDA toolkit when it is built; `cargo check --features cust` only wants a
//! directory: `mkdir -p target/no-cuda/lib64 && CUDA_LIBRARY_PATH=target/no-cuda cargo check --features cust`.

use std::sync::Arc;

use cust::memory::{DeviceCopy, DeviceSlice};

use crate::device::{CudaDriver, Gpu, Stream};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{Dims, Location, View, ViewMut};

/// The GPU whose work goes to a stream of `cust`, on the device with this ordinal.
///
/// # Errors
/// As [`Device::cuda`](crate::Device::cuda).
///
/// # Safety
/// The stream belongs to that device and outlives what is returned.
pub unsafe fn on_stream(stream: &cust::stream::Stream, ordinal: i32) -> Result<Gpu> {
    Gpu::on_stream(Arc::new(CudaDriver::open(ordinal)?), Stream(stream.as_inner() as u64))
}

/// Contiguous view of device memory of `cust` as elements of the same size: `u16` for bf16 and f16,
/// whose `half` is an older one there.
///
/// # Errors
/// `InvalidArgument` where sizes differ or the slice is shorter than the shape.
pub fn view<'a, T: Element, U: DeviceCopy>(
    slice: &'a DeviceSlice<U>,
    shape: &[i64],
    ordinal: i32,
) -> Result<View<'a, T>> {
    let dims = dims::<T, U>(slice, shape)?;
    let at = slice.as_device_ptr().as_raw() as *const T;
    // SAFETY: the slice covers `dims`, is device memory, and is borrowed for 'a.
    unsafe { View::from_raw(at, dims, Location::Device(ordinal)) }
}

/// Contiguous view of device memory of `cust` that an op writes.
///
/// # Errors
/// As [`view`].
pub fn view_mut<'a, T: Element, U: DeviceCopy>(
    slice: &'a mut DeviceSlice<U>,
    shape: &[i64],
    ordinal: i32,
) -> Result<ViewMut<'a, T>> {
    let dims = dims::<T, U>(slice, shape)?;
    let at = slice.as_device_ptr().as_raw() as *mut T;
    // SAFETY: as above, and the borrow is exclusive.
    unsafe { ViewMut::from_raw(at, dims, Location::Device(ordinal)) }
}

fn dims<T: Element, U: DeviceCopy>(slice: &DeviceSlice<U>, shape: &[i64]) -> Result<Dims> {
    if size_of::<U>() != size_of::<T>() {
        let expected = format!("{} bytes, as {} has", size_of::<T>(), T::DTYPE.name());
        let got = format!("elements of {} bytes", size_of::<U>());
        return Err(Error::invalid("cust", "slice", got, expected));
    }
    let dims = Dims::contiguous(shape)?;
    if dims.numel() as usize > slice.len() {
        let got = format!("{} elements", slice.len());
        return Err(Error::invalid("cust", "slice", got, format!("{} for {dims:?}", dims.numel())));
    }
    Ok(dims)
}
