//! `tokenizer.json` of a Hugging Face folder.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Map;

use crate::error::{Error, Result};
use crate::io::json;
use crate::text::Codec;
use crate::text::chat::special_tokens;

/// Largest `tokenizer.json`.
const LIMIT: u64 = 256 << 20;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    stops: Vec<i32>,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `folder/tokenizer.json`. A sequence ends with the `eos_token` of `tokenizer_config.json`
    /// or one of `eos`, the ids that the model's own configuration names; `rows` is the number of
    /// rows of the embedding.
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is no tokenizer, has an id without a row in the embedding, or
    /// whose model never ends a sequence.
    pub fn load(folder: &Path, rows: usize, eos: &[i32]) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = json::read_limited(&path, LIMIT)?;
        let mut inner = guarded(&path, || {
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string())
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::format(&path, e.to_string()))?;
        if let Some((token, id)) =
            inner.get_vocab(true).into_iter().find(|&(_, id)| id as usize >= rows)
        {
            let reason = format!("token `{token}` has id {id}, the embedding {rows} rows");
            return Err(Error::format(&path, reason));
        }
        let config = folder.join("tokenizer_config.json");
        let fields = if config.exists() { json::read_object(&config)? } else { Map::new() };
        let named = special_tokens(&fields);
        let mut stops = Vec::new();
        if let Some(token) = named.get("eos_token").and_then(|t| t.as_str()) {
            match inner.token_to_id(token) {
                Some(id) => stops.push(id as i32),
                None => {
                    let reason = format!("`eos_token` = `{token}` is no token");
                    return Err(Error::format(&config, reason));
                }
            }
        }
        for &id in eos {
            if id < 0 || id as usize >= rows {
                let reason = format!("`eos_token_id` = {id} is not below the {rows} rows");
                return Err(Error::format(folder, reason));
            }
            if !stops.contains(&id) {
                stops.push(id);
            }
        }
        if stops.is_empty() {
            return Err(Error::format(folder, "no `eos_token`: sequences would never end"));
        }
        Ok(Tokenizer { inner, stops, path })
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let encoding = guarded(&self.path, || {
            self.inner.encode_fast(text, special).map_err(|e| e.to_string())
        })?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }
}

impl Codec for Tokenizer {
    fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        self.ids(text, false)
    }

    /// With what the tokenizer's post-processor adds, such as a token that begins a sequence.
    fn encode_prompt(&self, text: &str) -> Result<Vec<i32>> {
        self.ids(text, true)
    }

    /// Special tokens, and ids of rows that no token has, are left out.
    fn decode(&self, ids: &[i32]) -> Result<String> {
        let ids: Vec<u32> =
            ids.iter().take_while(|id| !self.stops.contains(id)).map(|&id| id as u32).collect();
        guarded(&self.path, || self.inner.decode(&ids, true).map_err(|e| e.to_string()))
    }

    fn stops(&self) -> &[i32] {
        &self.stops
    }
}

/// What the tokenizer's library panics about is an error of the file it was given.
fn guarded<T>(path: &Path, run: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done.map_err(|e| Error::format(path, e)),
        Err(_) => Err(Error::format(path, "the tokenizer does not work with this file")),
    }
}
