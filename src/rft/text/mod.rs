//! Text and ids: tokenizers and chat templates as model folders bring them.
//!
//! | item | what it is |
//! |---|---|
//! | [`Codec`] | what a trainer or sampler needs to know about a vocabulary |
//! | [`Bytes`] | UTF-8 as it is |
//! | `Tokenizer` (feature `hf`) | `tokenizer.json` with the special tokens its neighbors name |
//! | `ChatTemplate` (feature `hf`) | messages to one prompt, as the model was taught to read them |
//!
//! A model folder is foreign input: sizes are bounded, templates run on a budget, and whatever is
//! wrong with a file is an [`Error`](gradus::Error) that names it.

mod bytes;
#[cfg(feature = "hf")]
mod chat;
#[cfg(feature = "hf")]
mod checked;
#[cfg(feature = "hf")]
mod continued;
#[cfg(feature = "hf")]
mod engine;
#[cfg(feature = "hf")]
mod filters;
#[cfg(feature = "hf")]
mod growth;
#[cfg(feature = "hf")]
mod jinja_builtins;
#[cfg(feature = "hf")]
mod operators;
mod pictures;
#[cfg(feature = "hf")]
mod python;
#[cfg(feature = "hf")]
mod python_json;
#[cfg(feature = "hf")]
mod tokenizer;
#[cfg(feature = "hf")]
pub(crate) mod untrusted;
#[cfg(feature = "hf")]
pub(crate) mod wide;
#[cfg(feature = "hf")]
mod wrap;

pub use bytes::Bytes;
pub(crate) use bytes::END;
#[cfg(feature = "hf")]
pub use chat::{ChatOptions, ChatTemplate};
#[cfg(feature = "hf")]
pub(crate) use engine::{compile, environment, render, value};
pub(crate) use pictures::WithoutPictures;
#[cfg(feature = "hf")]
pub use tokenizer::{TextStream, Tokenizer};

use gradus::error::Result;

/// How a conversation goes on behind an answer: what was said to it, and the next answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What was said.
    pub said: String,
    /// The answer to that.
    pub answer: String,
}

/// A vocabulary: text to ids and back.
pub trait Codec: Send + Sync {
    /// Number of ids: every id is in `0..len()`.
    fn len(&self) -> usize;

    /// Whether there are no ids at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids of `text` as the start of a sequence, with what the vocabulary puts before plain text
    /// (a beginning-of-sequence token, where the model wants one) and without an end.
    fn encode(&self, text: &str) -> Result<Vec<i32>>;

    /// Ids of `text` and nothing else. For a rendered chat, which spells its special tokens, and
    /// for text that goes on after other text, such as an answer after its prompt.
    fn encode_rendered(&self, text: &str) -> Result<Vec<i32>> {
        self.encode(text)
    }

    /// Refuses ids that nothing may be asked with, as [`encode`](Codec::encode) refuses their texts.
    fn check_ids(&self, ids: &[i32]) -> Result<()> {
        let _ = ids;
        Ok(())
    }

    /// Text of `ids` before the first id of [`stops`](Codec::stops); special tokens are left out.
    fn decode(&self, ids: &[i32]) -> Result<String>;

    /// Text of `ids` before the first id of [`stops`](Codec::stops); special tokens are spelled out.
    fn decode_spelled(&self, ids: &[i32]) -> Result<String> {
        self.decode(ids)
    }

    /// Text of one id, spelled out whether it is special, a stop or neither.
    fn spell(&self, id: i32) -> Result<String> {
        self.decode_spelled(&[id])
    }

    /// Ids that end a sequence, without repeats. Empty where a model names none: its answers then
    /// end at the length limit.
    fn stops(&self) -> &[i32];
}
