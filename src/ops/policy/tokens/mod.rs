//! What ops over packed sequences of tokens share: extents, masks, finite operands.

pub(in crate::ops::policy) mod cpu;
pub(in crate::ops::policy) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::view::View;

/// Extents of a packed batch.
pub(crate) struct Tokens {
    pub count: usize,
    pub sequences: usize,
}

impl Tokens {
    /// Checks the operand that gives the extents, the mask and the offsets.
    pub fn of<R: Real>(
        check: &Check,
        device: &Device,
        arg: &str,
        x: &View<'_, R>,
        mask: &Option<View<'_, u8>>,
        cu_seqlens: &View<'_, i64>,
    ) -> Result<Tokens> {
        check.rank(device, arg, x, 1)?;
        let count = x.extent(0);
        check.opt_shape(device, "mask", mask, &[count])?;
        let sequences = check.cu_seqlens(device, "cu_seqlens", cu_seqlens, count)?;
        Ok(Tokens { count, sequences })
    }
}

/// True if token `t` is in the mask; no mask holds every token.
#[inline(always)]
pub(crate) fn is_action(mask: &Option<View<'_, u8>>, t: usize) -> bool {
    mask.as_ref().is_none_or(|m| m.at(t) != 0)
}

/// Every element of a vector that the mask lets through is finite. What is in device memory cannot
/// be looked at without waiting for the device.
pub(crate) fn finite<R: Real>(
    check: &Check,
    arg: &str,
    x: &View<'_, R>,
    mask: &Option<View<'_, u8>>,
) -> Result<()> {
    let known = x.is_host() && mask.as_ref().is_none_or(|m| m.is_host());
    let tokens = if known { x.extent(0) } else { 0 };
    match (0..tokens).find(|&t| is_action(mask, t) && !x.at(t).to_f64().is_finite()) {
        Some(index) => Err(Error::NonFinite { op: check.0, arg: arg.into(), index }),
        None => Ok(()),
    }
}

/// A number in [0, 1].
pub(crate) fn unit_interval(check: &Check, arg: &str, value: f64) -> Result<()> {
    check.that((0.0..=1.0).contains(&value), arg, value, "a number in [0, 1]")
}
