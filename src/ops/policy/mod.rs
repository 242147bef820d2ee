//! Ops over tokens, sequences and groups: advantages, policy losses, value losses and losses of pairs.

pub mod gae;
pub mod group_advantage;
pub mod offpolicy_weight;
pub mod pair_loss;
pub mod policy_loss;
pub mod quantile;
pub mod seq_reduce;
pub mod value_loss;

pub use policy_loss::presets;
pub use {
    gae::*, group_advantage::*, offpolicy_weight::*, pair_loss::*, policy_loss::*, quantile::*,
    seq_reduce::*, value_loss::*,
};
