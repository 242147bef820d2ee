//! Borrowed, strided views: the currency of every op. A view is a pointer, up to four extents and
//! strides (in elements, `i64`), and the location the memory lives in. It never owns and never copies.
//!
//! Rules that all ops share: vectors (rank 1) may have any stride; in matrices and higher ranks
//! the last dimension is contiguous (stride 1) and the outer strides are free. A view that breaks
//! the rule is refused with a message, never read wrongly.

use std::fmt;
use std::marker::PhantomData;

use crate::alloc::Gather;
use crate::dtype::Element;
use crate::error::{Error, Result};

mod dims;

pub use dims::Dims;

/// Highest rank of a view.
pub const MAX_RANK: usize = 4;

/// Where a view's memory lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Host memory.
    Host,
    /// Memory of the GPU with this ordinal.
    Device(i32),
}

/// A shared view of elements of type `T`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    ptr: *const T,
    dims: Dims,
    location: Location,
    life: PhantomData<&'a [T]>,
}

/// An exclusive view of elements of type `T`; no two indices name the same element.
pub struct ViewMut<'a, T> {
    ptr: *mut T,
    dims: Dims,
    location: Location,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a View is a shared borrow of T: Sync data, a ViewMut an exclusive borrow of T: Send data.
unsafe impl<T: Sync> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for ViewMut<'_, T> {}
// SAFETY: a shared ViewMut only gives shared access.
unsafe impl<T: Sync> Sync for ViewMut<'_, T> {}

fn check_fits(dims: &Dims, len: usize) -> Result<()> {
    let span = dims.span().unwrap_or(i64::MAX);
    if span as u64 > len as u64 {
        let got = format!("{len} elements");
        return Err(Error::invalid("view", "data", got, format!("{span} for shape {dims:?}")));
    }
    Ok(())
}

impl<'a, T: Element> View<'a, T> {
    /// Contiguous view of `data` with `shape`; `data` may be longer.
    pub fn new(data: &'a [T], shape: &[i64]) -> Result<View<'a, T>> {
        let dims = Dims::contiguous(shape)?;
        check_fits(&dims, data.len())?;
        Ok(View { ptr: data.as_ptr(), dims, location: Location::Host, life: PhantomData })
    }

    /// View of `data` with explicit strides in elements. Stride 0 repeats (expanded view).
    pub fn strided(data: &'a [T], shape: &[i64], strides: &[i64]) -> Result<View<'a, T>> {
        let dims = Dims::strided(shape, strides)?;
        check_fits(&dims, data.len())?;
        Ok(View { ptr: data.as_ptr(), dims, location: Location::Host, life: PhantomData })
    }

    /// Contiguous matrix of `cols` columns; the rows follow from the length.
    pub fn rows_of(data: &'a [T], cols: usize) -> Result<View<'a, T>> {
        let rows = rows_in(data.len(), cols)?;
        View::new(data, &[rows, cols as i64])
    }

    /// View of foreign memory.
    ///
    /// # Safety
    /// For the lifetime `'a` every element that `dims` reaches from `ptr` is readable in `location`
    /// and nobody writes it.
    pub unsafe fn from_raw(ptr: *const T, dims: Dims, location: Location) -> Result<View<'a, T>> {
        check_raw(ptr as usize, std::mem::align_of::<T>(), &dims)?;
        Ok(View { ptr, dims, location, life: PhantomData })
    }

    /// All elements, if the view is contiguous host memory.
    pub fn as_slice(&self) -> Option<&'a [T]> {
        if self.location != Location::Host || !self.dims.is_contiguous() {
            return None;
        }
        if self.numel() == 0 {
            return Some(&[]);
        }
        // SAFETY: the constructor checked that numel contiguous elements are readable for 'a.
        Some(unsafe { std::slice::from_raw_parts(self.ptr, self.numel() as usize) })
    }

    /// Element `i` of a vector. Panics out of range.
    #[inline]
    pub fn at(&self, i: usize) -> T {
        debug_assert_eq!(self.rank(), 1);
        self.assert_host();
        assert!((i as i64) < self.dims.shape[0], "index {i} of {:?}", self.dims);
        // SAFETY: i is in range, so the offset is inside the span checked at construction.
        unsafe { *self.ptr.offset((i as i64 * self.dims.strides[0]) as isize) }
    }

    /// Row `i` of a matrix with contiguous rows. Panics out of range.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        debug_assert!(self.rank() == 2 && self.dims.has_unit_rows());
        self.assert_host();
        assert!((i as i64) < self.dims.shape[0], "row {i} of {:?}", self.dims);
        let offset = i as i64 * self.dims.strides[0];
        // SAFETY: row i lies inside the span checked at construction and has stride 1.
        unsafe {
            std::slice::from_raw_parts(
                self.ptr.offset(offset as isize),
                self.dims.shape[1] as usize,
            )
        }
    }

    /// Innermost row `[i, j, :]` of a rank-3 view with contiguous rows. Panics out of range.
    #[inline]
    pub fn row2(&self, i: usize, j: usize) -> &'a [T] {
        debug_assert!(self.rank() == 3 && self.dims.has_unit_rows());
        self.assert_host();
        let d = &self.dims;
        assert!((i as i64) < d.shape[0] && (j as i64) < d.shape[1], "row ({i}, {j}) of {d:?}");
        let offset = i as i64 * d.strides[0] + j as i64 * d.strides[1];
        // SAFETY: as in `row`.
        unsafe { std::slice::from_raw_parts(self.ptr.offset(offset as isize), d.shape[2] as usize) }
    }

    /// Entries `first..first + count` of the outermost dimension.
    pub fn narrow(&self, first: usize, count: usize) -> Result<View<'a, T>> {
        let dims = self.dims.narrow(first, count)?;
        let offset = if dims.numel() == 0 { 0 } else { first as i64 * self.dims.strides[0] };
        // SAFETY: the entries lie inside this view, so the offset is inside its span.
        let ptr = unsafe { self.ptr.offset(offset as isize) };
        Ok(View { ptr, dims, ..*self })
    }

    /// A vector's elements, copied out in order.
    pub fn to_vec(&self) -> Vec<T> {
        (0..self.numel() as usize).map(|i| self.at(i)).gathered()
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// Contiguous view of `data` with `shape`; `data` may be longer.
    pub fn new(data: &'a mut [T], shape: &[i64]) -> Result<ViewMut<'a, T>> {
        let dims = Dims::contiguous(shape)?;
        check_fits(&dims, data.len())?;
        Ok(ViewMut { ptr: data.as_mut_ptr(), dims, location: Location::Host, life: PhantomData })
    }

    /// View of `data` with explicit strides in elements; strides under which two indices could
    /// meet are refused.
    pub fn strided(data: &'a mut [T], shape: &[i64], strides: &[i64]) -> Result<ViewMut<'a, T>> {
        let dims = Dims::strided(shape, strides)?;
        check_fits(&dims, data.len())?;
        check_distinct(&dims)?;
        Ok(ViewMut { ptr: data.as_mut_ptr(), dims, location: Location::Host, life: PhantomData })
    }

    /// Contiguous matrix of `cols` columns; the rows follow from the length.
    pub fn rows_of(data: &'a mut [T], cols: usize) -> Result<ViewMut<'a, T>> {
        let rows = rows_in(data.len(), cols)?;
        ViewMut::new(data, &[rows, cols as i64])
    }

    /// View of foreign memory.
    ///
    /// # Safety
    /// For the lifetime `'a` every element that `dims` reaches from `ptr` is readable and writable
    /// in `location` and nobody else touches it.
    pub unsafe fn from_raw(ptr: *mut T, dims: Dims, location: Location) -> Result<ViewMut<'a, T>> {
        check_raw(ptr as usize, std::mem::align_of::<T>(), &dims)?;
        check_distinct(&dims)?;
        Ok(ViewMut { ptr, dims, location, life: PhantomData })
    }

    /// A shared view of the same elements.
    pub fn as_view(&self) -> View<'_, T> {
        View { ptr: self.ptr, dims: self.dims, location: self.location, life: PhantomData }
    }

    /// Address of the first element.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.ptr
    }

    /// A shorter exclusive borrow of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { ptr: self.ptr, dims: self.dims, location: self.location, life: PhantomData }
    }

    /// All elements, if the view is contiguous host memory.
    pub fn as_mut_slice(&mut self) -> Option<&mut [T]> {
        if self.location != Location::Host || !self.dims.is_contiguous() {
            return None;
        }
        if self.numel() == 0 {
            return Some(&mut []);
        }
        // SAFETY: the constructor checked that numel contiguous elements are writable for 'a.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr, self.numel() as usize) })
    }

    /// Element `i` of a vector. Panics out of range.
    #[inline]
    pub fn at(&self, i: usize) -> T {
        self.as_view().at(i)
    }

    /// Sets element `i` of a vector. Panics out of range.
    #[inline]
    pub fn set(&mut self, i: usize, value: T) {
        debug_assert_eq!(self.rank(), 1);
        self.assert_host();
        assert!((i as i64) < self.dims.shape[0], "index {i} of {:?}", self.dims);
        // SAFETY: i is in range, so the offset is inside the span checked at construction.
        unsafe { *self.ptr.offset((i as i64 * self.dims.strides[0]) as isize) = value }
    }

    /// Row `i` of a matrix with contiguous rows. Panics out of range.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        debug_assert!(self.rank() == 2 && self.dims.has_unit_rows());
        self.assert_host();
        assert!((i as i64) < self.dims.shape[0], "row {i} of {:?}", self.dims);
        let offset = i as i64 * self.dims.strides[0];
        // SAFETY: row i lies inside the span checked at construction and has stride 1.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.ptr.offset(offset as isize),
                self.dims.shape[1] as usize,
            )
        }
    }

    /// Entries `first..first + count` of the outermost dimension.
    pub fn narrow(&mut self, first: usize, count: usize) -> Result<ViewMut<'_, T>> {
        let dims = self.dims.narrow(first, count)?;
        let offset = if dims.numel() == 0 { 0 } else { first as i64 * self.dims.strides[0] };
        // SAFETY: the entries lie inside this view, so the offset is inside its span; the result
        // borrows from self.
        let ptr = unsafe { self.ptr.offset(offset as isize) };
        Ok(ViewMut { ptr, dims, location: self.location, life: PhantomData })
    }

    /// The innermost rows of a view of any rank, in row-major order, each an independent borrow:
    /// what parallel loops hand out. A vector is one row (it must be contiguous).
    pub fn into_rows(self) -> Vec<&'a mut [T]> {
        self.assert_host();
        debug_assert!(self.dims.has_unit_rows());
        let cols = self.extent(self.rank() - 1);
        let starts = self.dims.row_offsets();
        // SAFETY: rows lie inside the checked span and, as no two indices of a ViewMut meet, are
        // disjoint; consuming self hands the exclusive borrow to the rows.
        let row = |start| unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), cols) };
        starts.into_iter().map(row).gathered()
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T) {
        match self.rank() {
            1 => (0..self.numel() as usize).for_each(|i| self.set(i, value)),
            _ => self.reborrow().into_rows().into_iter().for_each(|row| row.fill(value)),
        }
    }
}

macro_rules! accessors {
    ($view:ident) => {
        impl<T> $view<'_, T> {
            /// Extents and strides.
            pub fn dims(&self) -> &Dims {
                &self.dims
            }
            /// Extents, outermost first.
            pub fn shape(&self) -> &[i64] {
                self.dims.shape()
            }
            /// Number of dimensions.
            pub fn rank(&self) -> usize {
                self.dims.rank()
            }
            /// Number of elements.
            pub fn numel(&self) -> i64 {
                self.dims.numel()
            }
            /// Extent of dimension `axis`; 1 beyond the rank.
            pub fn extent(&self, axis: usize) -> usize {
                self.dims.shape[axis] as usize
            }
            /// Elements from one index of dimension `axis` to the next; 0 beyond the rank.
            pub fn stride(&self, axis: usize) -> i64 {
                self.dims.strides[axis]
            }
            /// Address of the first element.
            pub fn as_ptr(&self) -> *const T {
                self.ptr
            }
            /// Where the memory lives.
            pub fn location(&self) -> Location {
                self.location
            }
            /// True for host memory, whose elements can be looked at.
            pub fn is_host(&self) -> bool {
                self.location == Location::Host
            }
            /// Reading device memory from the host would end the process.
            #[inline(always)]
            fn assert_host(&self) {
                assert!(self.location == Location::Host, "{self:?} cannot be read on the host");
            }
            /// First byte and one past the last byte, for alias checks and launches.
            pub fn byte_range(&self) -> std::ops::Range<usize> {
                let start = self.ptr as usize;
                let span = self.dims.span().unwrap_or(0) as usize;
                start..start + span * std::mem::size_of::<T>()
            }
        }

        impl<T> fmt::Debug for $view<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($view), "({:?}, {:?})"), self.dims, self.location)
            }
        }
    };
}
accessors!(View);
accessors!(ViewMut);

impl<'a, T: Element> From<&'a [T]> for View<'a, T> {
    fn from(data: &'a [T]) -> View<'a, T> {
        View::new(data, &[data.len() as i64]).expect("a slice is a valid vector")
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for View<'a, T> {
    fn from(data: &'a Vec<T>) -> View<'a, T> {
        View::from(data.as_slice())
    }
}

impl<'a, T: Element> From<&'a mut [T]> for ViewMut<'a, T> {
    fn from(data: &'a mut [T]) -> ViewMut<'a, T> {
        let len = data.len() as i64;
        ViewMut::new(data, &[len]).expect("a slice is a valid vector")
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for ViewMut<'a, T> {
    fn from(data: &'a mut Vec<T>) -> ViewMut<'a, T> {
        ViewMut::from(data.as_mut_slice())
    }
}

pub(crate) fn rows_in(len: usize, cols: usize) -> Result<i64> {
    if cols == 0 || !len.is_multiple_of(cols) {
        let expected = format!("a multiple of {cols} columns");
        return Err(Error::invalid("view", "data", format!("{len} elements"), expected));
    }
    Ok((len / cols) as i64)
}

fn check_raw(address: usize, align: usize, dims: &Dims) -> Result<()> {
    if address == 0 && dims.numel() > 0 {
        return Err(Error::invalid("view", "data", "a null pointer", "readable memory"));
    }
    if !address.is_multiple_of(align) {
        let got = format!("address {address:#x}");
        return Err(Error::invalid("view", "data", got, format!("a multiple of {align} bytes")));
    }
    Ok(())
}

fn check_distinct(dims: &Dims) -> Result<()> {
    if dims.may_overlap() {
        let got = format!("{:?}", dims.strides());
        return Err(Error::invalid(
            "view",
            "strides",
            got,
            "an output whose elements are distinct",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        let data = [0f32; 12];
        assert!(View::new(&data, &[3, 4]).is_ok());
        assert!(View::new(&data, &[3, 5]).is_err());
        assert!(View::new(&data, &[-1, 4]).is_err());
        assert!(View::strided(&data, &[2, 4], &[8, 1]).is_ok());
        assert!(View::strided(&data, &[2, 4], &[9, 1]).is_err());
        assert!(View::new(&data, &[i64::MAX, i64::MAX]).is_err());
        assert!(View::<f32>::new(&[], &[0, 7]).is_ok());
        let view = View::new(&data, &[3, 4]).unwrap();
        assert!(view.narrow(1, 2).is_ok() && view.narrow(3, 0).is_ok());
        assert!(view.narrow(1, 3).is_err() && view.narrow(usize::MAX, 2).is_err());
    }

    #[test]
    fn outputs_must_not_overlap() {
        let mut data = [0f32; 12];
        assert!(ViewMut::strided(&mut data, &[3, 4], &[0, 1]).is_err());
        assert!(ViewMut::strided(&mut data, &[3, 4], &[3, 1]).is_err());
        assert!(ViewMut::strided(&mut data, &[3, 3], &[4, 1]).is_ok());
        assert!(ViewMut::strided(&mut data, &[4, 3], &[1, 4]).is_ok());
    }

    #[test]
    fn rows_and_strides() {
        let data: Vec<i32> = (0..12).collect();
        let view = View::strided(&data, &[2, 3], &[6, 1]).unwrap();
        assert_eq!(view.row(1), &[6, 7, 8]);
        let column = View::strided(&data, &[3], &[4]).unwrap();
        assert_eq!(column.to_vec(), vec![0, 4, 8]);
        let mut out = vec![0i32; 12];
        let rows = ViewMut::strided(&mut out, &[2, 2, 2], &[6, 3, 1]).unwrap().into_rows();
        assert_eq!(rows.len(), 4);
        rows.into_iter().enumerate().for_each(|(i, row)| row.fill(i as i32));
        assert_eq!(out, vec![0, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 0]);
    }
}
