//! Losses on sequence log-probabilities that compare sequences with each other: preference pairs
//! ([`preference_loss()`]), labeled single sequences ([`kto_loss()`]), all pairs of a group
//! ([`copg_loss()`], [`prdp_loss()`]), soft maxima over a group ([`beta_mml_loss()`]) and over a matrix
//! of contexts ([`info_nce_loss()`]).
//!
//! All write the gradient together with the loss. Gradients are those of the weighted total
//! `Σ weight·loss`, with respect to *sums* of token log-probabilities, so
//! [`seq_broadcast`](crate::ops::seq_broadcast) puts them on tokens. Losses are unweighted.

mod group;
mod group_cpu;
mod group_gpu;
mod terms;
mod terms_cpu;
mod terms_gpu;

pub mod beta_mml_loss;
pub mod copg_loss;
pub mod info_nce_loss;
pub mod kto_loss;
pub mod prdp_loss;
pub mod preference_loss;

pub use {
    beta_mml_loss::*, copg_loss::*, info_nce_loss::*, kto_loss::*, prdp_loss::*, preference_loss::*,
};
