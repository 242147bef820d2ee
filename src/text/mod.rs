//! Text to token ids and back.

mod bytes;

pub use bytes::Bytes;

use crate::error::Result;

/// A vocabulary: text to ids and back.
pub trait Codec: Send + Sync {
    /// Number of ids; every id is below it.
    fn len(&self) -> usize;
    /// Whether there are no ids.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Ids of `text`, without an end.
    fn encode(&self, text: &str) -> Result<Vec<i32>>;
    /// Text of `ids` up to the first that ends a sequence.
    fn decode(&self, ids: &[i32]) -> Result<String>;
    /// Ids that end a sequence; the first is the one that demonstrations end with.
    fn stops(&self) -> &[i32];
}
