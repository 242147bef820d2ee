//! Operands that all pair losses share.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::tokens::finite;
use crate::view::{View, ViewMut};

/// `terms` losses, their weights and their total.
pub(super) fn check_terms<R: Real>(
    check: &Check,
    device: &Device,
    terms: usize,
    weight: &Option<View<'_, R>>,
    loss: &ViewMut<'_, R>,
    total: &Option<ViewMut<'_, f64>>,
) -> Result<()> {
    check.opt_shape(device, "weight", weight, &[terms])?;
    check.shape(device, "loss", loss, &[terms])?;
    check.opt_shape(device, "total", total, &[1])?;
    weight.as_ref().map_or(Ok(()), |weight| finite(check, "weight", weight, &None))
}
