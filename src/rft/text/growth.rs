//! How much longer a tokenizer's steps may make a text, read from its file before it is used.
//!
//! A step that replaces a letter by a megabyte, or twelve steps that each double the text, fill any
//! memory. What the Unicode forms and lower case add is small and not counted.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use serde_json::Value as Json;
use serde_json::value::RawValue;

use gradus::error::{Error, Result};

/// Most that a text may grow by, as a factor. SentencePiece models have 3 or 9.
const LIMIT: usize = 256;
/// Longest text that a step may put before another, in bytes.
const PREFIX_LIMIT: usize = 256;
/// What a letter may become in the maps that SentencePiece brings, in bytes: the longest form of a
/// letter in Unicode has 33.
const MAPPED_LIMIT: usize = 64;
/// Most steps, one after or in another.
const STEP_LIMIT: usize = 64;

/// How much longer a text may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    pub encode: usize,
}

/// The parts of a tokenizer's file that change texts.
#[derive(serde::Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
}

/// What the steps of the file `bytes` may do.
///
/// # Errors
/// `Format` for steps that may do more than the limits.
pub(super) fn of(path: &Path, bytes: &[u8]) -> Result<Growth> {
    let wrong = |e: serde_json::Error| Error::format(path, format!("not a tokenizer: {e}"));
    let parts: Parts<'_> = serde_json::from_slice(bytes).map_err(wrong)?;
    let factor = |name: &str, part: Option<&RawValue>| -> Result<usize> {
        let Some(part) = part else { return Ok(1) };
        let step: Json = serde_json::from_str(part.get()).map_err(wrong)?;
        let mut left = STEP_LIMIT;
        let refuse = |reason: String| Error::format(path, format!("its {name} {reason}"));
        let factor = factor(&step, &mut left).map_err(refuse)?;
        if factor > LIMIT {
            let reason = format!("may make a text {factor} times as long; the limit is {LIMIT}");
            return Err(refuse(reason));
        }
        Ok(factor)
    };
    factor("decoder", parts.decoder)?;
    let normalizer = factor("normalizer", parts.normalizer)?;
    Ok(Growth { encode: normalizer * factor("pre-tokenizer", parts.pre_tokenizer)? })
}

fn text<'a>(step: &'a Json, name: &str) -> &'a str {
    step[name].as_str().unwrap_or_default()
}

/// The factor of one step and those in it.
fn factor(step: &Json, left: &mut usize) -> std::result::Result<usize, String> {
    let too_many = || format!("has more than {STEP_LIMIT} steps");
    *left = left.checked_sub(1).ok_or_else(too_many)?;
    let mut all = match text(step, "type") {
        "Replace" => replaced(step),
        "ByteLevel" => 2,
        "Metaspace" => text(step, "replacement").len().max(1),
        "Prepend" if text(step, "prepend").len() > PREFIX_LIMIT => {
            return Err(format!("puts more than {PREFIX_LIMIT} bytes before a text"));
        }
        "Precompiled" => mapped(text(step, "precompiled_charsmap"))?,
        _ => 1,
    };
    for list in ["normalizers", "pretokenizers", "decoders"] {
        for inner in step[list].as_array().into_iter().flatten() {
            all = factor(inner, left)?.saturating_mul(all);
        }
    }
    Ok(all)
}

/// A pattern may match any letter, and the emptiness between two.
fn replaced(step: &Json) -> usize {
    let content = text(step, "content").len();
    match step["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
        _ => content + 1,
    }
}

/// A map is a trie, whose length in bytes stands before it, and the texts that letters become, each
/// with a NUL behind it; in base 64.
fn mapped(map: &str) -> std::result::Result<usize, String> {
    let bytes =
        STANDARD.decode(map).map_err(|e| format!("has a map that is not in base 64: {e}"))?;
    let trie = bytes.first_chunk().map(|size| u32::from_le_bytes(*size) as usize);
    let texts = trie.and_then(|trie| bytes.get(4 + trie..));
    let texts = texts.ok_or("has a map of letters that is cut off")?;
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAPPED_LIMIT {
        return Err(format!("maps a letter to {longest} bytes; the limit is {MAPPED_LIMIT}"));
    }
    Ok(1)
}
