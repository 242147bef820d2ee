//! The tokenizer of a model folder and the ids that begin and end its sequences.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::chat::token_text;
use super::growth::{self, Growth};
use super::{Codec, untrusted};
use crate::io::json;
use gradus::error::{Error, Result};

/// Limit for `tokenizer.json`, in bytes. Vocabularies of 256,000 tokens have 35 MB.
const FILE_LIMIT: u64 = 256 << 20;
/// Longest token, in bytes. The longest known ones, of spaces, have some hundred.
const TOKEN_LIMIT: usize = 4096;
/// Most ids that end a sequence: each sampled token is compared with all of them.
const STOP_LIMIT: usize = 1024;
/// Bytes that a text may have after its steps; each takes about 17 bytes of memory.
const TEXT_LIMIT: usize = 64 << 20;

/// `tokenizer.json` with the special tokens that the files beside it name.
///
/// | file | what is read from it |
/// |---|---|
/// | `tokenizer.json` | the tokenizer; its padding and truncation are switched off |
/// | `tokenizer_config.json` | `bos_token`, `eos_token`, `pad_token`, `add_bos_token`, `added_tokens_decoder` |
/// | `special_tokens_map.json` | the same token names, where the former lacks them |
/// | `generation_config.json`, `config.json` | `eos_token_id`, one or a list; `bos_token_id`, `pad_token_id` |
///
/// A folder is foreign, so what it can cost is bounded: `tokenizer.json` by 256 MiB, a token by 4 KiB,
/// the ids that end a sequence by 1,024, and what its steps can make of a text by 256 times its
/// length and 64 MiB.
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
    len: usize,
    bos: Option<i32>,
    pad: Option<i32>,
    stops: Vec<i32>,
    add_bos: Option<bool>,
    growth: Growth,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Tokenizer");
        fields.field("path", &self.path).field("len", &self.len);
        fields.field("bos", &self.bos).field("pad", &self.pad);
        fields.field("stops", &self.stops).finish_non_exhaustive()
    }
}

/// The configuration files of a folder; `Null` for those it lacks.
struct Neighbors {
    tokenizer: Json,
    special: Json,
    generation: Json,
    model: Json,
}

impl Neighbors {
    fn read(dir: &Path) -> Result<Neighbors> {
        let read = |name: &str| untrusted::read_json(&dir.join(name));
        Ok(Neighbors {
            tokenizer: read("tokenizer_config.json")?,
            special: read("special_tokens_map.json")?,
            generation: read("generation_config.json")?,
            model: read("config.json")?,
        })
    }

    /// The id of the token that the configuration calls `name`, and else the id it gives as
    /// `name_id`.
    fn token(&self, inner: &Inner, name: &str) -> Option<i32> {
        let texts = [&self.tokenizer[name], &self.special[name]];
        let by_text = texts.into_iter().find_map(token_text).and_then(|t| inner.token_to_id(t));
        let key = format!("{name}_id");
        let by_id = || self.generation[&key].as_u64().or_else(|| self.model[&key].as_u64());
        let id = by_text.map(u64::from).or_else(by_id)?;
        i32::try_from(id).ok()
    }

    /// Every id that some file calls the end, the tokenizer's own first.
    fn stops(&self, inner: &Inner, dir: &Path) -> Result<Vec<i32>> {
        let mut stops: Vec<i32> = self.token(inner, "eos_token").into_iter().collect();
        let files = [("generation_config.json", &self.generation), ("config.json", &self.model)];
        for (file, config) in files {
            let wrong = || {
                let reason = "`eos_token_id` is neither an id nor a list of ids";
                Error::format(dir.join(file), reason)
            };
            let ids = match &config["eos_token_id"] {
                Json::Null => continue,
                Json::Array(ids) => ids.as_slice(),
                id => std::slice::from_ref(id),
            };
            for id in ids {
                let id = id.as_u64().and_then(|id| i32::try_from(id).ok()).ok_or_else(wrong)?;
                if !stops.contains(&id) {
                    stops.push(id);
                }
                if stops.len() > STOP_LIMIT {
                    let reason = format!("names more than {STOP_LIMIT} ids that end a sequence");
                    return Err(Error::format(dir.join(file), reason));
                }
            }
        }
        Ok(stops)
    }
}

impl Tokenizer {
    /// The tokenizer of a model folder.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            let reason = "there is no such file; a model folder needs one (older formats, such as \
                          `tokenizer.model`, are not read)";
            return Err(Error::format(path, reason));
        }
        let bytes = json::read_limited(&path, FILE_LIMIT)?;
        let mut tokenizer = Tokenizer::from_bytes(&path, &bytes)?;
        let neighbors = Neighbors::read(dir)?;
        let config = dir.join("tokenizer_config.json");
        add_tokens(&mut tokenizer.inner, &neighbors.tokenizer["added_tokens_decoder"], &config)?;
        tokenizer.len = id_count(&tokenizer.inner, &path)?;
        tokenizer.bos = neighbors.token(&tokenizer.inner, "bos_token");
        tokenizer.pad = neighbors.token(&tokenizer.inner, "pad_token");
        tokenizer.stops = neighbors.stops(&tokenizer.inner, dir)?;
        tokenizer.add_bos = neighbors.tokenizer["add_bos_token"].as_bool();
        Ok(tokenizer)
    }

    /// A tokenizer from the bytes of `tokenizer.json` alone: it knows no beginning and no stops.
    /// `path` is only for messages.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
        let growth = growth::of(path, bytes)?;
        let mut inner =
            untrusted::guarded(path, "the tokenizer's reader", || Inner::from_bytes(bytes))?
                .map_err(|e| Error::format(path, format!("not a tokenizer: {e}")))?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::format(path, format!("its truncation cannot be removed: {e}")))?;
        let len = id_count(&inner, path)?;
        let path = path.to_owned();
        let (bos, pad, add_bos, stops) = (None, None, None, Vec::new());
        Ok(Tokenizer { inner, path, len, bos, pad, stops, add_bos, growth })
    }

    /// The id that begins a sequence, where the model has one.
    pub fn bos(&self) -> Option<i32> {
        self.bos
    }

    /// The id that fills up a batch, where the model has one.
    pub fn pad(&self) -> Option<i32> {
        self.pad
    }

    /// The id of the token spelled `token`.
    pub fn id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).map(|id| id as i32)
    }

    /// Checks that every id, and every stop, has a row in an embedding of `vocab_rows` rows.
    /// Models often have more rows than ids, never fewer.
    pub fn check(&self, vocab_rows: usize) -> Result<()> {
        if self.len > vocab_rows {
            let reason = format!(
                "has ids up to {}, the model's embedding has {vocab_rows} rows: the tokenizer \
                 belongs to another model, or tokens were added after training",
                self.len - 1
            );
            return Err(Error::format(&self.path, reason));
        }
        if let Some(stop) = self.stops.iter().find(|&&stop| stop as usize >= vocab_rows) {
            let reason = format!("stop id {stop} is not below the {vocab_rows} rows of the model");
            return Err(Error::format(&self.path, reason));
        }
        Ok(())
    }

    /// Text of `ids` with special tokens spelled out and without an end at stops: what the model
    /// really read or wrote.
    pub fn decode_raw(&self, ids: &[i32]) -> Result<String> {
        self.text(&self.known(ids)?, false)
    }

    /// Decodes ids as they are sampled.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), shown: 0 }
    }

    /// Ids of `text`. With specials, what the file's post-processor adds, but never a stop at the
    /// end, and a beginning exactly where `add_bos_token` asks for one.
    fn ids(&self, text: &str, specials: bool) -> Result<Vec<i32>> {
        let most = text.len().saturating_mul(self.growth.encode);
        if most > TEXT_LIMIT {
            let got = format!("{} bytes, which may become {most}", text.len());
            let expected = format!("a text that stays within {TEXT_LIMIT} bytes");
            return Err(Error::invalid("encode", "text", got, expected));
        }
        let specials = specials && self.add_bos != Some(false);
        let encoding =
            untrusted::guarded(&self.path, "the tokenizer", || self.inner.encode(text, specials))?;
        let encoding = encoding.map_err(|e| Error::invalid("encode", "text", e, "known text"))?;
        let mut ids: Vec<i32> = encoding.get_ids().iter().map(|&id| id as i32).collect();
        if specials {
            let added = encoding.get_special_tokens_mask();
            while let (Some(last), Some(1)) = (ids.last(), added.get(ids.len() - 1))
                && self.stops.contains(last)
            {
                ids.pop();
            }
            if self.add_bos == Some(true) && self.bos.is_some_and(|bos| ids.first() != Some(&bos)) {
                ids.splice(0..0, self.bos);
            }
        }
        Ok(ids)
    }

    fn before_stop<'a>(&self, ids: &'a [i32]) -> &'a [i32] {
        let end = ids.iter().position(|id| self.stops.contains(id)).unwrap_or(ids.len());
        &ids[..end]
    }

    /// The ids, if each is one.
    fn known(&self, ids: &[i32]) -> Result<Vec<u32>> {
        let known = |&id: &i32| {
            let inside = usize::try_from(id).is_ok_and(|id| id < self.len);
            let expected = format!("ids in 0..{}", self.len);
            if inside { Ok(id as u32) } else { Err(Error::invalid("decode", "ids", id, expected)) }
        };
        ids.iter().map(known).collect()
    }

    fn text(&self, ids: &[u32], skip_specials: bool) -> Result<String> {
        untrusted::guarded(&self.path, "the tokenizer", || self.inner.decode(ids, skip_specials))?
            .map_err(|e| Error::invalid("decode", "ids", e, "ids the decoder takes"))
    }
}

impl Codec for Tokenizer {
    fn len(&self) -> usize {
        self.len
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        self.ids(text, true)
    }

    fn encode_rendered(&self, text: &str) -> Result<Vec<i32>> {
        self.ids(text, false)
    }

    fn decode(&self, ids: &[i32]) -> Result<String> {
        self.text(&self.known(self.before_stop(ids))?, true)
    }

    fn decode_spelled(&self, ids: &[i32]) -> Result<String> {
        self.text(&self.known(self.before_stop(ids))?, false)
    }

    fn spell(&self, id: i32) -> Result<String> {
        self.decode_raw(&[id])
    }

    fn stops(&self) -> &[i32] {
        &self.stops
    }
}

/// One more than the largest id; vocabularies may have holes.
fn id_count(inner: &Inner, path: &Path) -> Result<usize> {
    let vocab = inner.get_vocab(true);
    if let Some(longest) = vocab.keys().map(String::len).max().filter(|&n| n > TOKEN_LIMIT) {
        let reason = format!("has a token of {longest} bytes; the limit is {TOKEN_LIMIT}");
        return Err(Error::format(path, reason));
    }
    match vocab.values().copied().max() {
        None => Err(Error::format(path, "has no tokens")),
        Some(id) if id >= i32::MAX as u32 => {
            Err(Error::format(path, format!("has the id {id}; ids must fit 31 bits")))
        }
        Some(id) => Ok(id as usize + 1),
    }
}

/// Adds the tokens that only `tokenizer_config.json` names.
fn add_tokens(inner: &mut Inner, decoder: &Json, path: &Path) -> Result<()> {
    let Json::Object(decoder) = decoder else { return Ok(()) };
    let mut listed = Vec::new();
    for (id, token) in decoder {
        let wrong = || {
            let reason = format!("`added_tokens_decoder`: `{id}` is not an id with a `content`");
            Error::format(path, reason)
        };
        let content = token["content"].as_str().ok_or_else(wrong)?;
        listed.push((id.parse::<u32>().map_err(|_| wrong())?, content, token));
    }
    listed.sort_by_key(|&(id, ..)| id);
    let added = |&(_, content, token): &(u32, &str, &Json)| {
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        AddedToken::from(content, flag("special"))
            .normalized(flag("normalized"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .single_word(flag("single_word"))
    };
    let fresh = listed.iter().filter(|(_, content, _)| inner.token_to_id(content).is_none());
    // All at once: each call builds the searcher for all of them anew.
    let fresh: Vec<AddedToken> = fresh.map(added).collect();
    untrusted::guarded(path, "the tokenizer", || inner.add_tokens(fresh))?
        .map_err(|e| Error::format(path, format!("`added_tokens_decoder`: {e}")))?;
    for (id, content, _) in listed {
        let got = inner.token_to_id(content);
        if got != Some(id) {
            let got = got.map_or("none".into(), |id| id.to_string());
            let reason = format!("token `{content}` should have id {id}, tokenizer.json: {got}");
            return Err(Error::format(path, reason));
        }
    }
    Ok(())
}

/// Ids in, text out, for showing an answer while it is sampled.
///
/// A token may hold part of a character, or text that changes with what follows; such text is held
/// back until it is complete. The pieces, with [`TextStream::finish`] last, join to what
/// [`Codec::decode`] says of all ids, up to the first stop.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the last piece, which give the next one its surroundings (decoders look at what is
    /// before), and the ids since.
    ids: Vec<u32>,
    /// Number of `ids` whose text was given out.
    shown: usize,
}

/// Ids after which an incomplete character is taken for broken and given out.
const MAX_HELD: usize = 16;

impl TextStream<'_> {
    /// The text that `id` completes; empty for special tokens, stops and parts of characters.
    pub fn push(&mut self, id: i32) -> Result<String> {
        if self.tokenizer.stops.contains(&id) {
            return Ok(String::new());
        }
        self.ids.extend(self.tokenizer.known(&[id])?);
        let text = self.fresh()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.shown < MAX_HELD {
            return Ok(String::new());
        }
        if !text.is_empty() {
            self.ids.drain(..self.shown);
            self.shown = self.ids.len();
        }
        Ok(text)
    }

    /// The text still held back. The stream starts anew.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.fresh()?;
        self.ids.clear();
        self.shown = 0;
        Ok(text)
    }

    /// Text of the ids not given out yet.
    fn fresh(&self) -> Result<String> {
        let before = self.tokenizer.text(&self.ids[..self.shown], true)?;
        let after = self.tokenizer.text(&self.ids, true)?;
        // Decoders that tidy spaces may rewrite what was given out; what is new starts at the
        // first difference then.
        let same = before.bytes().zip(after.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=same).rev().find(|&at| after.is_char_boundary(at)).unwrap_or(0);
        Ok(after[start..].to_owned())
    }
}
