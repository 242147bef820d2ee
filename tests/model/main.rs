//! The decoder and the trainer, as one executable: their code is compiled into each that uses it.

#[path = "../common/mod.rs"]
mod common;

mod arrangements;
mod device_run;
mod device_steps;
mod peers;
