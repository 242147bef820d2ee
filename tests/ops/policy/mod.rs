//! Advantages, losses and weights.

mod arguments;
mod batch;
mod columns;
mod gae;
mod group_advantage;
mod offpolicy_weight;
mod packed;
mod pair_loss;
mod policy_loss;
mod quantile;
mod rounding;
mod seq_reduce;
mod sequences;
mod value_loss;
mod verl;
