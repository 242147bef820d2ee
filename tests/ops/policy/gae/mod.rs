//! Advantages and returns of tokens, whitening, KL in the reward.

mod executors;
mod oracle;
mod peers;
mod refusals;
