//! Advantages, losses and weights.

mod arguments;
mod batch;
mod columns;
mod discounted_return;
mod gae;
mod group_advantage;
mod kl_reward;
mod offpolicy_weight;
mod packed;
mod pair_loss;
mod policy_loss;
mod quantile;
mod rounding;
mod seq_reduce;
mod sequences;
mod tokens;
mod value_loss;
mod verl;
mod whiten;
