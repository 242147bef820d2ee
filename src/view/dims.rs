//! Extents and strides: where the elements of a view lie.

use std::fmt;

use crate::alloc::Gather;
use crate::error::{Error, Result};
use crate::view::MAX_RANK;

/// Extents and strides of a view, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    rank: u8,
    pub(super) shape: [i64; MAX_RANK],
    pub(super) strides: [i64; MAX_RANK],
}

impl Dims {
    /// Row-major contiguous dims.
    pub fn contiguous(shape: &[i64]) -> Result<Dims> {
        let mut strides = [0; MAX_RANK];
        let mut step: i64 = 1;
        for axis in (0..shape.len().min(MAX_RANK)).rev() {
            strides[axis] = step;
            step = step.checked_mul(shape[axis].max(1)).ok_or_else(|| {
                Error::invalid("view", "shape", format!("{shape:?}"), "fewer than 2^63 elements")
            })?;
        }
        Dims::strided(shape, &strides[..shape.len().min(MAX_RANK)])
    }

    /// Dims with explicit strides in elements.
    pub fn strided(shape: &[i64], strides: &[i64]) -> Result<Dims> {
        let rank = shape.len();
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::invalid("view", "shape", format!("rank {rank}"), "rank 1 to 4"));
        }
        if strides.len() != rank {
            let got = format!("{} strides", strides.len());
            return Err(Error::invalid("view", "strides", got, format!("{rank}")));
        }
        if let Some(bad) = shape.iter().find(|&&n| n < 0) {
            return Err(Error::invalid("view", "shape", bad, "extents >= 0"));
        }
        if let Some(bad) = strides.iter().find(|&&s| s < 0) {
            return Err(Error::invalid("view", "strides", bad, "strides >= 0"));
        }
        let mut dims = Dims { rank: rank as u8, shape: [1; MAX_RANK], strides: [0; MAX_RANK] };
        dims.shape[..rank].copy_from_slice(shape);
        dims.strides[..rank].copy_from_slice(strides);
        if dims.span().is_none() {
            let got = format!("{shape:?} with strides {strides:?}");
            return Err(Error::invalid("view", "shape", got, "offsets below 2^63"));
        }
        Ok(dims)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Extents.
    pub fn shape(&self) -> &[i64] {
        &self.shape[..self.rank()]
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.rank()]
    }

    /// Number of elements.
    pub fn numel(&self) -> i64 {
        self.shape().iter().product()
    }

    /// Dims with only `count` entries, from `first` on, of the outermost dimension.
    pub(super) fn narrow(&self, first: usize, count: usize) -> Result<Dims> {
        let inside = first.checked_add(count).is_some_and(|end| end as u64 <= self.shape[0] as u64);
        if !inside {
            let got = format!("{count} entries from {first}");
            return Err(Error::invalid("view", "range", got, format!("within {self:?}")));
        }
        let mut dims = *self;
        dims.shape[0] = count as i64;
        Ok(dims)
    }

    /// Elements from the first to one past the last, or `None` on overflow. 0 if there are none.
    pub(crate) fn span(&self) -> Option<i64> {
        self.shape().iter().try_fold(1i64, |p, &n| p.checked_mul(n))?;
        if self.shape().contains(&0) {
            return Some(0);
        }
        let mut last: i64 = 0;
        for axis in 0..self.rank() {
            last = last.checked_add((self.shape[axis] - 1).checked_mul(self.strides[axis])?)?;
        }
        last.checked_add(1)
    }

    /// True if elements lie one after another in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for axis in (0..self.rank()).rev() {
            if self.shape[axis] != 1 && self.strides[axis] != step {
                return self.numel() == 0;
            }
            step *= self.shape[axis];
        }
        true
    }

    /// True if the last dimension is contiguous.
    pub fn has_unit_rows(&self) -> bool {
        let last = self.rank() - 1;
        self.shape[last] <= 1 || self.strides[last] == 1 || self.numel() == 0
    }

    /// Elements of the longest stretch without a gap that all of the view is made of.
    pub(crate) fn run_length(&self) -> usize {
        if self.is_contiguous() {
            return self.numel() as usize;
        }
        if self.has_unit_rows() { self.shape[self.rank() - 1] as usize } else { 1 }
    }

    /// Offsets of these stretches in elements, in row-major order.
    pub(crate) fn run_offsets(&self) -> Vec<usize> {
        if self.numel() == 0 {
            return Vec::new();
        }
        if self.is_contiguous() {
            return vec![0];
        }
        self.offsets(if self.has_unit_rows() { self.rank() - 1 } else { self.rank() })
    }

    /// Offsets of the innermost rows, in row-major order.
    pub(super) fn row_offsets(&self) -> Vec<usize> {
        self.offsets(self.rank() - 1)
    }

    /// Offsets of all index tuples of the outermost `axes` dimensions.
    fn offsets(&self, axes: usize) -> Vec<usize> {
        let count: i64 = self.shape[..axes].iter().product();
        let offset = |flat: i64| {
            let (mut rest, mut offset) = (flat, 0);
            for axis in (0..axes).rev() {
                offset += rest % self.shape[axis] * self.strides[axis];
                rest /= self.shape[axis];
            }
            offset as usize
        };
        (0..count).map(offset).sifted()
    }

    /// True if two index tuples may name the same element (needed to be false for outputs).
    pub(super) fn may_overlap(&self) -> bool {
        let mut axes = [0, 1, 2, 3];
        axes.sort_unstable_by_key(|&a| self.strides.get(a).copied().unwrap_or(0));
        let mut reach = 0;
        for a in axes.into_iter().filter(|&a| a < self.rank() && self.shape[a] > 1) {
            if self.strides[a] <= reach {
                return self.numel() > 0;
            }
            reach += (self.shape[a] - 1) * self.strides[a];
        }
        false
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape())?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides())?;
        }
        Ok(())
    }
}
