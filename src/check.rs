//! Argument checks of ops, for this crate's and for your own. Each error names the op and the argument, what it
//! got and what the contract asks for.
//!
//! # Example
//! ```
//! use gradus::{Device, View, check::Check};
//! let (check, x) = (Check("my_op"), [1f32, 2.0]);
//! let error = check.shape(&Device::Cpu, "x", &View::from(&x[..]), &[3]).unwrap_err();
//! assert!(error.to_string().contains("argument `x`"), "{error}");
//! ```

use std::fmt::Display;

use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::view::{Dims, Location};

/// Largest magnitude of a factor.
pub const LARGEST: f64 = 1e18;

/// The checks of the op with this name. All return `InvalidArgument`.
#[derive(Clone, Copy, Debug)]
pub struct Check(pub &'static str);

/// What a check needs to know of a view: [`View`](crate::view::View) and [`ViewMut`](crate::view::ViewMut) have it.
pub trait Operand {
    /// Extents and strides, and which memory they are in.
    fn dims_location(&self) -> (&Dims, Location);
    /// Addresses from the first byte to the last.
    fn bytes(&self) -> std::ops::Range<usize>;
}

impl<T> Operand for crate::view::View<'_, T> {
    fn dims_location(&self) -> (&Dims, Location) {
        (self.dims(), self.location())
    }
    fn bytes(&self) -> std::ops::Range<usize> {
        self.byte_range()
    }
}

impl<T> Operand for crate::view::ViewMut<'_, T> {
    fn dims_location(&self) -> (&Dims, Location) {
        (self.dims(), self.location())
    }
    fn bytes(&self) -> std::ops::Range<usize> {
        self.byte_range()
    }
}

impl Check {
    /// `operand` lives on `device`, has exactly `shape`, and contiguous rows if rank >= 2.
    pub fn shape(
        &self,
        device: &Device,
        arg: &str,
        operand: &impl Operand,
        shape: &[usize],
    ) -> Result<()> {
        self.rank(device, arg, operand, shape.len())?;
        let (dims, _) = operand.dims_location();
        if dims.shape().iter().zip(shape).any(|(&got, &want)| got != want as i64) {
            return Err(Error::invalid(
                self.0,
                arg,
                format!("shape {dims:?}"),
                format!("{shape:?}"),
            ));
        }
        Ok(())
    }

    /// `operand` lives on `device`, has `rank` dimensions, and contiguous rows if rank >= 2.
    pub fn rank(
        &self,
        device: &Device,
        arg: &str,
        operand: &impl Operand,
        rank: usize,
    ) -> Result<()> {
        let (dims, location) = operand.dims_location();
        let (reachable, expected) = match device {
            Device::Cpu => (location == Location::Host, "host memory".to_string()),
            Device::Gpu(gpu) => {
                let ordinal = gpu.info().ordinal;
                let reachable = location == Location::Host || location == Location::Device(ordinal);
                (reachable, format!("host memory or memory of GPU {ordinal}"))
            }
        };
        if !reachable {
            return Err(Error::invalid(self.0, arg, format!("{location:?} memory"), expected));
        }
        if dims.rank() != rank {
            let got = format!("rank {} ({dims:?})", dims.rank());
            return Err(Error::invalid(self.0, arg, got, format!("rank {rank}")));
        }
        if rank >= 2 && !dims.has_unit_rows() {
            let got = format!("strides {:?}", dims.strides());
            return Err(Error::invalid(self.0, arg, got, "a contiguous last dimension (stride 1)"));
        }
        Ok(())
    }

    /// [`Check::shape`] of an operand that need not be given.
    pub fn opt_shape(
        &self,
        device: &Device,
        arg: &str,
        operand: &Option<impl Operand>,
        shape: &[usize],
    ) -> Result<()> {
        operand.as_ref().map_or(Ok(()), |o| self.shape(device, arg, o, shape))
    }

    /// An arbitrary condition on an argument.
    pub fn that(&self, ok: bool, arg: &str, got: impl Display, expected: &str) -> Result<()> {
        if ok { Ok(()) } else { Err(Error::invalid(self.0, arg, got, expected)) }
    }

    /// `value` is a factor or a term that leaves what it meets in the range of f32: what passes the checks
    /// must not make infinity of numbers of usual size.
    pub fn factor(&self, arg: &str, value: f64) -> Result<()> {
        self.that(value.abs() <= LARGEST, arg, value, "a number whose magnitude is at most 1e18")
    }

    /// `value` is > 0, and so is what is divided by it in the range of f32.
    pub fn positive(&self, arg: &str, value: f64) -> Result<()> {
        let fits = (1.0 / LARGEST..=LARGEST).contains(&value);
        self.that(fits, arg, value, "a finite number > 0, 1e-18 to 1e18")
    }

    /// `value` is a [`Check::factor`] and >= 0.
    pub fn non_negative(&self, arg: &str, value: f64) -> Result<()> {
        let fits = (0.0..=LARGEST).contains(&value);
        self.that(fits, arg, value, "a finite number >= 0, at most 1e18")
    }

    /// `output` shares no byte with `input`. Needed where views come from raw pointers; slices
    /// cannot alias.
    pub fn disjoint(
        &self,
        (out_arg, output): (&str, &impl Operand),
        (in_arg, input): (&str, &impl Operand),
    ) -> Result<()> {
        let (a, b) = (output.bytes(), input.bytes());
        let apart = a.end <= b.start || b.end <= a.start;
        self.that(apart, out_arg, format!("memory shared with `{in_arg}`"), "separate memory")
    }

    /// Offsets of packed sequences: starts at 0, never falls, ends at `total`. Returns the number
    /// of sequences. Empty sequences are legal. Offsets in device memory cannot be looked at
    /// without waiting for the device: kernels bound what they read from them.
    pub fn cu_seqlens(
        &self,
        device: &Device,
        arg: &str,
        offsets: &crate::view::View<'_, i64>,
        total: usize,
    ) -> Result<usize> {
        self.rank(device, arg, offsets, 1)?;
        let count = offsets.extent(0);
        self.that(count >= 1, arg, "an empty vector", "B + 1 offsets, the first of them 0")?;
        if !offsets.is_host() {
            return Ok(count - 1);
        }
        self.that(offsets.at(0) == 0, arg, offsets.at(0), "0 as the first offset")?;
        for i in 1..count {
            let (before, now) = (offsets.at(i - 1), offsets.at(i));
            let got = format_args!("{now} after {before} at index {i}");
            self.that(now >= before, arg, got, "offsets that never fall")?;
        }
        let last = offsets.at(count - 1);
        let expected = format!("{total} (the number of packed tokens) as the last offset");
        self.that(last == total as i64, arg, last, &expected)?;
        Ok(count - 1)
    }

    /// Results of finite inputs are in the range of `R`. Asked before anything is written.
    pub fn in_range<R: Real>(&self, arg: &str, results: impl Iterator<Item = f64>) -> Result<()> {
        for (i, x) in results.enumerate() {
            if !R::from_f64(x).to_f64().is_finite() {
                let expected =
                    format!("settings and values whose result {} can hold", R::DTYPE.name());
                return Err(Error::invalid(self.0, arg, format!("{x} at index {i}"), expected));
            }
        }
        Ok(())
    }

    /// `operand` has no gaps between its elements.
    pub fn contiguous(&self, arg: &str, operand: &impl Operand) -> Result<()> {
        let (dims, _) = operand.dims_location();
        self.that(dims.is_contiguous(), arg, format!("{dims:?}"), "contiguous memory")
    }
}
