//! Ops over tokens, sequences and groups: advantages, policy losses, value losses and losses of pairs.

mod moments_cpu;
mod tokens;

pub mod discounted_return;
pub mod gae;
pub mod group_advantage;
pub mod kl_reward;
pub mod offpolicy_weight;
pub mod pair_loss;
pub mod policy_loss;
pub mod quantile;
pub mod seq_reduce;
pub mod value_loss;
pub mod whiten;

pub use policy_loss::presets;
pub use {
    discounted_return::*, gae::*, group_advantage::*, kl_reward::*, offpolicy_weight::*,
    pair_loss::*, policy_loss::*, quantile::*, seq_reduce::*, value_loss::*, whiten::*,
};
