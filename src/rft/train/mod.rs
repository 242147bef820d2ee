//! The trainer: prompts, rollouts, rewards, records, advantages, updates; and what a run leaves
//! behind. [`run::train`] is the whole; [`Trainer`] holds the verbs.
//!
//! | module | what is in it |
//! |---|---|
//! | [`config`] | the settings of a run: every key, once |
//! | [`phase`] | what a run goes through: a file per phase; [`phase::rl`] is the RL step, top to bottom |
//! | [`select`], [`buffer`] | which completions are learned from; records that outlive their batch |
//! | [`rollout`] | completions, drawn with continuous batching |
//! | [`env`](mod@env) | episodes: what answers a policy between its turns |
//! | [`update`] | one update: records, loss and gradients ([`step`]), optimizer |
//! | [`run`] | from the configuration to the summary: checkpoints, metrics, memory, the run's folder |
//! | [`infer`] | asking a run or a model: samples, scores, talk |
//! | [`task`] | where prompts come from |

pub mod buffer;
pub mod config;
pub mod critic;
pub mod env;
pub mod infer;
mod inputs;
pub mod phase;
pub mod rollout;
pub mod run;
pub mod select;
pub mod state;
pub mod task;
mod teacher;
pub mod trainer;
pub mod update;

pub use crate::io::interrupt;
pub use config::readers::Asking;
pub use config::{RunConfig, explain};
pub use infer::eval;
pub use infer::{Ask, ModelDefaults, RunOrModel, chat, evaluate, model_defaults, open_run, sample};
pub use run::memory_plan::MemoryPlan;
pub use run::summary::{Scored, Stage, Summary};
pub use run::{Resume, train};
pub use run::{checkpoint, metrics, plot, progress, summary, tensorboard};
pub use trainer::Trainer;
pub use update::{optimizer, recipe, record, reference, sequence, step, trunk};
