//! Rows of logits.

mod linear_logprob;
mod logprob;
mod sample;
mod vocab_kl;
