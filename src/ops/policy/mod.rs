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

pub use discounted_return::*;
pub use gae::*;
pub use group_advantage::*;
pub use kl_reward::*;
pub use offpolicy_weight::*;
pub use pair_loss::*;
pub use policy_loss::presets;
pub use policy_loss::*;
pub use quantile::*;
pub use seq_reduce::*;
pub use value_loss::*;
pub use whiten::*;
