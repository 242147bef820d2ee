//! The trainer: prompts, rollouts, rewards, records, advantages, updates; and what a run leaves
//! behind. [`run::train`] is the whole; [`trainer::Trainer`] holds the verbs, [`step`] one update.

mod advice;
mod base;
pub mod checkpoint;
mod chosen;
pub mod config;
pub mod critic;
#[cfg(feature = "hf")]
mod dataset;
mod decode;
pub mod eval;
mod identity;
pub mod inference;
pub mod metrics;
pub mod optimizer;
mod ordered;
pub mod phases;
pub mod plan;
pub mod plot;
pub mod progress;
pub mod recipe;
pub mod record;
pub mod reference;
mod rl;
pub mod rollout;
pub mod run;
mod run_folder;
pub mod state;
pub mod step;
pub mod summary;
pub mod task;
pub mod tensorboard;
pub mod trainer;

pub use crate::io::interrupt;
pub use config::{RunConfig, explain};
pub use inference::{Ask, Opened, chat, evaluate, model_defaults, open_run, sample};
pub use plan::MemoryPlan;
pub use run::{Resume, train};
pub use summary::Summary;
pub use trainer::Trainer;
