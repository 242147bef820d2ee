//! Weights and totals of pair losses on the GPU.

use crate::device::params::terms::LossTerms;
use crate::device::{LaunchArgs, Scratch};
use crate::dtype::Real;
use crate::error::Result;
use crate::view::{View, ViewMut};

impl<R: Real> LossTerms<R> {
    /// The terms of a launch whose blocks leave their shares at the start of `scratch`.
    pub fn new<'a>(
        launch: &mut LaunchArgs<'a>,
        weight: &Option<View<'_, R>>,
        loss: ViewMut<'a, R>,
        total: Option<ViewMut<'a, f64>>,
        scratch: &Scratch<'_>,
    ) -> Result<LossTerms<R>> {
        Ok(LossTerms {
            count: loss.numel(),
            weight: launch.opt_column(weight)?,
            loss: launch.column_out(loss)?,
            total: launch.opt_output(total)?,
            partial: scratch.ptr(),
            ticket: scratch.ticket(),
        })
    }
}

/// The total of nothing is 0.
pub(crate) fn no_terms(total: &mut Option<ViewMut<'_, f64>>) -> Result<()> {
    if let Some(total) = total.as_mut().filter(|total| total.is_host()) {
        total.set(0, 0.0);
    }
    Ok(())
}
