//! Text to token ids and back, and conversations to text.

mod bytes;
#[cfg(feature = "hf")]
mod chat;
#[cfg(feature = "hf")]
mod tokenizer;

pub use bytes::Bytes;
#[cfg(feature = "hf")]
pub use chat::{ChatOptions, ChatTemplate};
#[cfg(feature = "hf")]
pub use tokenizer::Tokenizer;

use crate::error::Result;

/// A vocabulary: text to ids and back.
pub trait Codec: Send + Sync {
    /// Number of ids; every id is below it.
    fn len(&self) -> usize;
    /// Whether there are no ids.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Ids of `text` alone.
    fn encode(&self, text: &str) -> Result<Vec<i32>>;
    /// Ids of a prompt: those of `text`, and what begins a sequence.
    fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        self.encode(text)
    }
    /// Text of `ids` up to the first that ends a sequence.
    fn decode(&self, ids: &[i32]) -> Result<String>;
    /// Ids that end a sequence; the first is the one that demonstrations end with.
    fn stops(&self) -> &[i32];
}
