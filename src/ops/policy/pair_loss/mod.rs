//! Losses on sequence log-probabilities that compare sequences with each other: preference pairs
//! ([`preference_loss`]), labelled single sequences ([`kto_loss`]), all pairs of a group
//! ([`copg_loss`], [`prdp_loss`]), soft maxima over a group ([`beta_mml_loss`]) and over a matrix
//! of contexts ([`info_nce_loss`]).
//!
//! All write the gradient together with the loss. Gradients are those of the weighted total
//! `Σ weight·loss`, with respect to *sums* of token log-probabilities, so
//! [`seq_broadcast`](crate::ops::seq_broadcast) puts them on tokens. Losses are unweighted.

pub(crate) mod cpu;
mod cpu_group;
mod cpu_prdp;
mod cpu_preference;
pub(crate) mod gpu;
mod gpu_group;

mod group;
mod info_nce;
mod prdp;
mod preference;

pub use group::{BetaMmlLoss, CopgLoss, beta_mml_loss, copg_loss};
pub use info_nce::{InfoNceLoss, info_nce_loss};
pub use prdp::{PrdpLoss, pairs_by_reward, prdp_loss};
pub use preference::{
    KtoLoss, Pair, PreferenceKind, PreferenceLoss, PreferenceScore, kto_loss, preference_loss,
};

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::gae::finite;
use crate::view::{View, ViewMut};

/// The operands all of these losses share: `terms` losses, their weights and their total.
fn check_terms<R: Real>(
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
