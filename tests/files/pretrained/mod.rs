//! Folders of models and adapters.

mod folders;
mod odd;
