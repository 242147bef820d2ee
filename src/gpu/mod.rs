//! The GPU side of every op: one file per op, which brings the operands over, computes the plan and
//! starts the kernels of `kernels/<op>.cu`. Arguments arrive validated by [`crate::ops`].

pub(crate) mod gae;
pub(crate) mod gather_k;
pub(crate) mod group_advantage;
pub(crate) mod lerp;
pub(crate) mod logprob;
pub(crate) mod policy_loss;
mod rows;
pub(crate) mod sample;
pub(crate) mod vocab_kl;
