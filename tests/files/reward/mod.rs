//! Rewards.

mod builtin;
mod cases;
mod command;
mod http;
