//! Weights and totals of pair losses on the GPU.

use bytemuck::{Pod, Zeroable};

use crate::device::{Column, LaunchArgs, Scratch};
use crate::dtype::Real;
use crate::error::Result;
use crate::view::{View, ViewMut};

/// `LossTerms` of `kernels/policy/terms.cuh`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LossTerms {
    pub weight: Column,
    pub loss: Column,
    pub total: u64,
    pub partial: u64,
    pub ticket: u64,
    pub count: i64,
}

impl LossTerms {
    /// The terms of a launch whose blocks leave their shares at the start of `scratch`.
    pub fn new<'a, R: Real>(
        launch: &mut LaunchArgs<'a>,
        weight: &Option<View<'_, R>>,
        loss: ViewMut<'a, R>,
        total: Option<ViewMut<'a, f64>>,
        scratch: &Scratch<'_>,
    ) -> Result<LossTerms> {
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
