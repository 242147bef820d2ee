//! From the header's tensors to views, checked.

use std::cell::RefCell;

use gradus::device::Device;
use gradus::dtype::Element;
use gradus::view::{Dims, Location};
use gradus::{DType, Error, Result, View, ViewMut};

use crate::memory::{add_room, refused};
use crate::registry::Enumeration;
use crate::status::{flag, given, given_mut, list};
use crate::sys::{gradus_dtype, gradus_memory, gradus_tensor};

/// One past the last address that a program can have: 57 bits with five levels of page tables.
const ADDRESSES: usize = 1 << 57;

/// The tensors of one call. Outputs may not share memory with anything else; slices cannot, what comes
/// through pointers can.
pub(crate) struct Tensors<'a> {
    pub op: &'static str,
    pub device: &'a Device,
    /// A dry run: no memory is looked at, all of it counts as the device's.
    pub dry: bool,
    seen: RefCell<Vec<Seen>>,
}

/// A tensor's place in memory.
struct Seen {
    name: String,
    written: bool,
    place: Location,
    start: usize,
    bytes: usize,
    /// Bytes from one index of the outermost dimension to the next, and what one index spans.
    stride: usize,
    row: usize,
}

/// All zero.
pub(crate) fn is_absent(t: &gradus_tensor) -> bool {
    t.data.is_null() && t.rank == 0
}

impl<'a> Tensors<'a> {
    pub fn new(op: &'static str, device: &'a Device, dry: bool) -> Tensors<'a> {
        Tensors { op, device, dry, seen: RefCell::default() }
    }

    pub fn invalid(&self, name: &str, got: impl std::fmt::Display, expected: &str) -> Error {
        Error::invalid(self.op, name, got, expected)
    }

    /// The dtype that a call is made for.
    pub fn dtype(&self, name: &str, t: &gradus_tensor) -> Result<DType> {
        if is_absent(t) {
            return Err(self.invalid(name, "no tensor", "a tensor"));
        }
        dtype_of(t.dtype)
            .ok_or_else(|| self.invalid(&format!("{name}.dtype"), t.dtype, "a dtype, 0 to 6"))
    }

    /// A tensor that is read.
    pub fn read<T: Element>(&self, name: &str, t: &gradus_tensor) -> Result<View<'a, T>> {
        let (dims, place) = self.layout::<T>(name, t)?;
        // SAFETY: the header asks that the tensor's memory is readable for the call.
        let view = unsafe { View::from_raw(pointer(t), dims, place) };
        let view = view.map_err(|error| self.rename(error, name))?;
        self.note::<T>(name, &dims, place, t.data as usize, false)?;
        Ok(view)
    }

    /// A tensor that is written, and maybe read.
    pub fn write<T: Element>(&self, name: &str, t: &gradus_tensor) -> Result<ViewMut<'a, T>> {
        let (dims, place) = self.layout::<T>(name, t)?;
        // SAFETY: the header asks that the tensor's memory is the call's own; `disjoint` checks
        // that the call's other tensors stay out of it.
        let view = unsafe { ViewMut::from_raw(pointer(t), dims, place) };
        let view = view.map_err(|error| self.rename(error, name))?;
        self.note::<T>(name, &dims, place, t.data as usize, true)?;
        Ok(view)
    }

    pub fn opt_read<T: Element>(
        &self,
        name: &str,
        t: &gradus_tensor,
    ) -> Result<Option<View<'a, T>>> {
        if is_absent(t) { Ok(None) } else { self.read(name, t).map(Some) }
    }

    pub fn opt_write<T: Element>(
        &self,
        name: &str,
        t: &gradus_tensor,
    ) -> Result<Option<ViewMut<'a, T>>> {
        if is_absent(t) { Ok(None) } else { self.write(name, t).map(Some) }
    }

    fn layout<T: Element>(&self, name: &str, t: &gradus_tensor) -> Result<(Dims, Location)> {
        let found = self.dtype(name, t)?;
        if found != T::DTYPE {
            return Err(self.invalid(&format!("{name}.dtype"), found.name(), T::DTYPE.name()));
        }
        let rank = usize::try_from(t.rank).unwrap_or(0);
        if !(1..=4).contains(&rank) {
            return Err(self.invalid(&format!("{name}.rank"), t.rank, "1 to 4"));
        }
        let dims = Dims::strided(&t.shape[..rank], &t.strides[..rank]);
        let dims = dims.map_err(|error| self.rename(error, name))?;
        let bytes = extent(&dims).and_then(|span| span.checked_mul(size_of::<T>()));
        let end = bytes.and_then(|bytes| (t.data as usize).checked_add(bytes));
        if end.is_none_or(|end| end > ADDRESSES) {
            let got = format!("{dims:?} of {}", found.name());
            return Err(self.invalid(&format!("{name}.shape"), got, "a size that memory can have"));
        }
        if t.data.is_null() && dims.numel() > 0 {
            return Err(self.invalid(&format!("{name}.data"), "NULL", "a pointer"));
        }
        Ok((dims, self.place(name, t.memory)?))
    }

    fn place(&self, name: &str, memory: i32) -> Result<Location> {
        let name = format!("{name}.memory");
        let Some(memory) = enumerator(memory) else {
            return Err(self.invalid(&name, memory, "GRADUS_HOST (0) or GRADUS_DEVICE (1)"));
        };
        match (memory, self.device) {
            (gradus_memory::GRADUS_DEVICE, Device::Gpu(gpu)) => {
                Ok(Location::Device(gpu.info().ordinal))
            }
            (gradus_memory::GRADUS_HOST, Device::Gpu(gpu)) if self.dry => {
                Ok(Location::Device(gpu.info().ordinal))
            }
            (gradus_memory::GRADUS_HOST, _) => Ok(Location::Host),
            (gradus_memory::GRADUS_DEVICE, Device::Cpu) => {
                Err(self.invalid(&name, "GRADUS_DEVICE", "GRADUS_HOST on the CPU device"))
            }
        }
    }

    /// Errors of views name the tensor.
    fn rename(&self, error: Error, name: &str) -> Error {
        match error {
            Error::InvalidArgument { arg, got, expected, .. } => {
                Error::InvalidArgument { op: self.op, arg: format!("{name}.{arg}"), got, expected }
            }
            other => other,
        }
    }

    fn note<T>(
        &self,
        name: &str,
        dims: &Dims,
        place: Location,
        start: usize,
        written: bool,
    ) -> Result<()> {
        let size = size_of::<T>();
        let span = extent(dims).unwrap_or(0);
        // Without elements a stride may be anything.
        let stepped = span > 0 && dims.shape()[0] > 1;
        let stride = if stepped { dims.strides()[0] as usize } else { 0 };
        let row = span.saturating_sub((dims.shape()[0].max(1) as usize - 1) * stride);
        let mut kept = String::new();
        gradus::asking(|| kept.try_reserve_exact(name.len()))
            .map_err(|_| refused::<u8>(self.op, name.len()))?;
        kept.push_str(name);
        let mut seen = self.seen.borrow_mut();
        add_room(self.op, &mut seen, 1)?;
        seen.push(Seen {
            name: kept,
            written,
            place,
            start,
            bytes: span * size,
            stride: stride * size,
            row: row * size,
        });
        Ok(())
    }

    /// An error if an output shares memory with another tensor of the call.
    pub fn disjoint(&self) -> Result<()> {
        let seen = self.seen.borrow();
        for (i, out) in seen.iter().enumerate().filter(|(_, s)| s.written) {
            for (j, other) in seen.iter().enumerate() {
                // Two outputs meet once.
                if i == j || (other.written && j < i) || !out.meets(other) {
                    continue;
                }
                let got = format!("memory shared with `{}`", other.name);
                return Err(self.invalid(&out.name, got, "separate memory"));
            }
        }
        Ok(())
    }
}

/// A result in host memory that is not a tensor: written once the op has succeeded.
pub(crate) struct Slot<'a, V>(Option<&'a mut V>);

impl<V> Slot<'_, V> {
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    pub fn set(self, value: V) {
        if let Some(place) = self.0 {
            *place = value;
        }
    }
}

impl<'a> Tensors<'a> {
    /// A result that must be given.
    pub fn result<V>(&self, name: &str, at: *mut V) -> Result<Slot<'a, V>> {
        let place = given_mut(self.op, name, at)?;
        Ok(Slot((!self.dry).then_some(place)))
    }

    /// One that may be NULL.
    pub fn opt_result<V>(&self, name: &str, at: *mut V) -> Result<Slot<'a, V>> {
        if at.is_null() { Ok(Slot(None)) } else { self.result(name, at) }
    }

    /// 0 or 1.
    pub fn flag(&self, name: &str, value: i32) -> Result<bool> {
        flag(self.op, name, value)
    }

    /// One of an enum of the header.
    pub fn enumerator<E: Enumeration>(&self, name: &str, number: i32) -> Result<E> {
        let expected = || format!("0 to {}", E::ALL.len() - 1);
        enumerator(number).ok_or_else(|| self.invalid(name, number, &expected()))
    }

    /// One of what 0, 1, ... stand for.
    pub fn choice<E: Copy>(&self, name: &str, value: i32, of: &[E]) -> Result<E> {
        let found = usize::try_from(value).ok().and_then(|value| of.get(value).copied());
        found.ok_or_else(|| self.invalid(name, value, &format!("0 to {}", of.len() - 1)))
    }

    /// A count or an extent.
    pub fn size(&self, name: &str, value: i64) -> Result<usize> {
        usize::try_from(value).map_err(|_| self.invalid(name, value, "a number >= 0"))
    }

    /// Structs of which there are `count`.
    pub fn list<S>(&self, name: &str, at: *const S, count: i64) -> Result<&'a [S]> {
        list(self.op, name, at, count)
    }

    /// A struct that must be given.
    pub fn given<S>(&self, name: &str, at: *const S) -> Result<&'a S> {
        given(self.op, name, at)
    }
}

impl Seen {
    fn meets(&self, other: &Seen) -> bool {
        let apart =
            self.start + self.bytes <= other.start || other.start + other.bytes <= self.start;
        if self.place != other.place || self.bytes == 0 || other.bytes == 0 || apart {
            return false;
        }
        // Columns of one matrix: rows of both within one period, side by side.
        let period = self.stride;
        if period == 0 || period != other.stride || self.row > period || other.row > period {
            return true;
        }
        let ahead =
            (other.start as isize - self.start as isize).rem_euclid(period as isize) as usize;
        !(ahead >= self.row && ahead + other.row <= period)
    }
}

/// Elements from the first to one past the last.
fn extent(dims: &Dims) -> Option<usize> {
    if dims.numel() == 0 {
        return Some(0);
    }
    let last = dims
        .shape()
        .iter()
        .zip(dims.strides())
        .try_fold(0i64, |sum, (&n, &stride)| sum.checked_add((n - 1).checked_mul(stride)?))?;
    usize::try_from(last).ok()?.checked_add(1)
}

/// An empty tensor's pointer may be NULL, a view's may not.
fn pointer<T>(t: &gradus_tensor) -> *mut T {
    if t.data.is_null() { std::ptr::NonNull::dangling().as_ptr() } else { t.data as *mut T }
}

pub(crate) fn dtype_of(number: i32) -> Option<DType> {
    enumerator::<gradus_dtype>(number).map(DType::from)
}

/// The enumerator of a number.
pub(crate) fn enumerator<E: Enumeration>(number: i32) -> Option<E> {
    usize::try_from(number).ok().and_then(|number| E::ALL.get(number).copied())
}
