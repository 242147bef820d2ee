//! Advantages, losses and weights.

mod gae;
mod group_advantage;
mod pair_loss;
mod policy_loss;
