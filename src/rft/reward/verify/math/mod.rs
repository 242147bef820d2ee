//! Mathematical answers: numbers, lists, sets, tuples and intervals, read exactly and compared
//! exactly.
//!
//! A text is turned into [tokens](token), tokens into [values](expression) and
//! [answers](answer), and two answers are [compared](compare) in a normal form. [`read`](read) finds
//! the answer within a text.

mod answer;
mod comma;
mod compare;
mod expression;
mod quantity;
mod read;
mod sum;
mod token;
mod unit;
mod value;

pub use read::{Read, Real, rational};
