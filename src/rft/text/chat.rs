//! Chat templates: a small program in a model folder that turns messages into one prompt.
//!
//! A model follows instructions only in the exact frame it was trained in, so what the template
//! prints must be what it prints under Python's Jinja: the same trimming of blocks, `tojson` with
//! the same spaces, the same string methods. `tests/golden/text` holds that side's output.
//!
//! Templates come with the model and are not trusted. They reach nothing but the messages, run on
//! a budget of instructions and memory, and write a bounded text: [`super::engine`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::engine::{SOURCE_LIMIT, compile, environment, render, value};
use super::{continued, jinja_builtins, untrusted};
use gradus::error::{Error, Result};

/// How to render.
#[derive(Clone, Debug)]
pub struct ChatOptions {
    /// Ends with the start of an assistant's message, for the model to go on. Default: true.
    pub add_generation_prompt: bool,
    /// Ends with the last message's own words instead, without what closes it, for the model to go
    /// on with them. Default: false.
    pub continue_final_message: bool,
    /// Schemas of tools the model may call, for templates that know tools.
    pub tools: Option<Json>,
    /// Documents to answer from, for templates that know them.
    pub documents: Option<Json>,
    /// Further variables a template may read, for example `enable_thinking` or `date_string`. They
    /// win over the special tokens of the same name.
    pub extra: Map<String, Json>,
    /// The time `strftime_now` prints, in UTC. Default: the time of the call, so that prompts of
    /// templates that print a date change from day to day; fix it where runs must be repeatable.
    pub now: Option<SystemTime>,
}

impl Default for ChatOptions {
    fn default() -> ChatOptions {
        ChatOptions {
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            documents: None,
            extra: Map::new(),
            now: None,
        }
    }
}

/// A compiled chat template with the special tokens its text may mention.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    path: PathBuf,
    tokens: Map<String, Json>,
    /// Which of the variables that rows may bring it reads.
    reads: Vec<&'static str>,
}

/// Variables that a data set's rows may bring.
const OPTIONAL: [&str; 2] = ["tools", "documents"];

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json`, which is a text or a list of named texts of which `default` is
    /// taken. `None` where the model has none, as base models do.
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>> {
        let tokens = special_tokens(dir)?;
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            let source = untrusted::read_text(&path, SOURCE_LIMIT as u64)?;
            return ChatTemplate::new(path, source, tokens).map(Some);
        }
        let path = dir.join("tokenizer_config.json");
        let config = untrusted::read_json(&path)?;
        match &config["chat_template"] {
            Json::Null => Ok(None),
            Json::String(source) => ChatTemplate::new(path, source.clone(), tokens).map(Some),
            Json::Array(named) => {
                let source = named
                    .iter()
                    .find(|one| one["name"] == "default")
                    .and_then(|one| one["template"].as_str());
                let none = || Error::format(&path, "`chat_template` has no text named `default`");
                let source = source.ok_or_else(none)?.to_owned();
                ChatTemplate::new(path, source, tokens).map(Some)
            }
            _ => Err(Error::format(path, "`chat_template` is neither a text nor a list of texts")),
        }
    }

    /// Compiles `source`; `path` is only for messages. `tokens` are variables such as `bos_token`.
    pub fn new(
        path: impl Into<PathBuf>,
        source: impl Into<String>,
        tokens: Map<String, Json>,
    ) -> Result<ChatTemplate> {
        let (path, source) = (path.into(), source.into());
        let mut env = environment();
        let reads = OPTIONAL.into_iter().filter(|name| source.contains(name)).collect();
        compile(&mut env, "chat", open_generation_blocks(&source), "chat template", &path)?;
        Ok(ChatTemplate { env, path, tokens, reads })
    }

    /// The file that it is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The prompt that says `messages`: objects with `role` and `content`, and whatever else the
    /// template reads, such as `tool_calls` or `reasoning_content`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the template's own words where it refuses the messages, and
    /// for tools or documents that it would not write; [`Error::Format`] where the template itself
    /// is wrong or takes too long.
    pub fn render(&self, messages: &[Json], options: &ChatOptions) -> Result<String> {
        for (name, given) in [("tools", &options.tools), ("documents", &options.documents)] {
            if given.is_some() && !self.reads.contains(&name) {
                let expected = format!("none: this chat template does not read `{name}`");
                return Err(Error::invalid("chat_template", name, "some", expected));
            }
        }
        let mut messages: Vec<Json> = messages.iter().map(normalized).collect::<Result<_>>()?;
        let last = match options.continue_final_message {
            true => Some(continued::mark(&mut messages)?),
            false => None,
        };
        let now = options.now.unwrap_or_else(SystemTime::now);
        let mut vars: BTreeMap<&str, Value> = BTreeMap::new();
        vars.extend(self.tokens.iter().map(|(k, v)| (k.as_str(), value(v))));
        let strftime_now =
            Value::from_function(move |format: &str| jinja_builtins::strftime(now, format));
        vars.insert("strftime_now", strftime_now);
        vars.extend(options.extra.iter().map(|(k, v)| (k.as_str(), value(v))));
        vars.insert("messages", messages.iter().map(value).collect());
        vars.insert("tools", value(options.tools.as_ref().unwrap_or(&Json::Null)));
        vars.insert("documents", value(options.documents.as_ref().unwrap_or(&Json::Null)));
        let prompted = options.add_generation_prompt && last.is_none();
        vars.insert("add_generation_prompt", Value::from(prompted));
        let text = render(&self.env, "chat", vars, "chat template", &self.path)?;
        last.map_or(Ok(text.clone()), |last| continued::cut(&text, &last))
    }
}

/// Names of special tokens that templates read.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens of a folder by name, as texts.
fn special_tokens(dir: &Path) -> Result<Map<String, Json>> {
    let mut tokens = Map::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let config = untrusted::read_json(&dir.join(file))?;
        for name in TOKENS {
            if let Some(text) = token_text(&config[name]) {
                tokens.insert(name.into(), Json::from(text));
            }
        }
    }
    Ok(tokens)
}

/// A token is written as its text or as an object that holds it.
pub(super) fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// A message without its null fields, which templates take for present, and with its reasoning
/// under the name that most templates read.
fn normalized(message: &Json) -> Result<Json> {
    let Json::Object(fields) = message else {
        let expected = "objects with `role` and `content`";
        return Err(Error::invalid("chat_template", "messages", message, expected));
    };
    let mut fields: Map<String, Json> =
        fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let names = ["reasoning_content", "thinking", "reasoning"];
    if let Some(reasoning) = names.iter().find_map(|&name| fields.get(name)).cloned() {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    Ok(Json::Object(fields))
}

/// `{% generation %}` marks what a trainer should learn from. The engine does not know it; a
/// `with` of nothing has the same scope and prints the same.
fn open_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let sign = if tag.starts_with(['-', '+']) { &tag[..1] } else { "" };
        let name = tag[sign.len()..].trim_start();
        for (word, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = name.strip_prefix(word) else { continue };
            let end = after.trim_start();
            if end.trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&format!("{sign} {instead} "));
                rest = end;
            }
        }
    }
    out + rest
}
