//! What is read and judged: folders of models, tokenizers and templates, rows of data, rewards.

#[path = "../common/mod.rs"]
mod common;

mod data;
mod pretrained;
mod reward;
mod text;
