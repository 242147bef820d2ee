//! PTX text to statements with resolved registers.

pub mod ast;
mod parse;
mod token;

pub use parse::parse;
