//! Chat templates: Jinja as Hugging Face's tokenizers run it, in an interpreter that is bounded in
//! steps, depth and output.
//!
//! What differs from plain Jinja, here as there: blocks eat the line around them (`trim_blocks`,
//! `lstrip_blocks`), strings and lists have Python's methods, `tojson` writes what `json.dumps` does,
//! `raise_exception` ends the rendering, loops know `break` and `continue`, and `{% generation %}`
//! marks only what training masks need, so it is taken out. The clock is not read: `strftime_now` is
//! defined only with a date, which templates check before they call it, because a run whose prompts
//! change at midnight cannot be repeated.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::io::json;
use crate::io::python::{Style, dumps};

/// Steps of the interpreter that a rendering may take; long texts cost steps, too.
const FUEL: u64 = 5_000_000;
/// Largest template.
const TEMPLATE: u64 = 1 << 20;

/// A compiled chat template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Map<String, Value>,
}

/// What a conversation is rendered with.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// End with what begins an answer.
    pub add_generation_prompt: bool,
    /// Tools the model may call, as JSON schemas.
    pub tools: Vec<Value>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Map<String, Value>,
    /// The date `strftime_now` gives, as (year, month, day); without one the template sees no such
    /// function.
    pub date: Option<(i32, u32, u32)>,
}

impl ChatTemplate {
    /// The template of the model in `folder`: `chat_template.jinja`, or `chat_template` of
    /// `tokenizer_config.json` (of several the one called `default`). `None` if it has none.
    ///
    /// # Errors
    /// `Io`; `Format` for a template that is too large or no Jinja.
    pub fn load(folder: &Path) -> Result<Option<ChatTemplate>> {
        let config = folder.join("tokenizer_config.json");
        let fields = if config.exists() { json::read_object(&config)? } else { Map::new() };
        let file = folder.join("chat_template.jinja");
        let text = match file.exists() {
            true => {
                let bytes = json::read_limited(&file, TEMPLATE)?;
                let text = String::from_utf8(bytes);
                Some(text.map_err(|_| Error::format(&file, "the template is not UTF-8"))?)
            }
            false => template_of(&config, &fields)?,
        };
        let Some(text) = text else { return Ok(None) };
        let source = if file.exists() { &file } else { &config };
        let made = ChatTemplate::new(&text, special_tokens(&fields));
        made.map(Some).map_err(|e| Error::format(source, format!("chat template: {e}")))
    }

    /// A template from its text; `tokens` are variables such as `bos_token`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn new(
        text: &str,
        tokens: Map<String, Value>,
    ) -> std::result::Result<ChatTemplate, String> {
        if text.len() as u64 > TEMPLATE {
            return Err(format!("larger than {} KiB", TEMPLATE >> 10));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(described)?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(200);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        let text = without_generation(text);
        environment.add_template_owned("chat", text).map_err(described)?;
        Ok(ChatTemplate { environment, tokens })
    }

    /// The text of `messages`, objects with `role`, `content` and whatever else the template reads.
    ///
    /// # Errors
    /// What the template raised, or which bound it hit.
    pub fn render(
        &self,
        messages: &[Value],
        options: &ChatOptions,
    ) -> std::result::Result<String, String> {
        let mut environment = self.environment.clone();
        if let Some(date) = options.date {
            environment.add_function("strftime_now", move |format: &str| strftime(format, date));
        }
        let template = environment.get_template("chat").map_err(described)?;
        let mut variables = self.tokens.clone();
        variables.extend(options.extra.clone());
        variables.insert("messages".into(), messages.into());
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        if !options.tools.is_empty() {
            variables.insert("tools".into(), options.tools.clone().into());
        }
        template.render(Serde(variables)).map_err(described)
    }
}

/// `chat_template` of a tokenizer configuration.
fn template_of(path: &Path, fields: &Map<String, Value>) -> Result<Option<String>> {
    match fields.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(several)) => {
            let default = several.iter().find(|t| t["name"] == "default");
            match default.and_then(|t| t["template"].as_str()) {
                Some(text) => Ok(Some(text.into())),
                None => Err(Error::format(path, "no `chat_template` is called default")),
            }
        }
        Some(_) => Err(Error::format(path, "`chat_template` is no text")),
    }
}

/// Variables for the special tokens, which are texts or objects with `content`.
pub(super) fn special_tokens(fields: &Map<String, Value>) -> Map<String, Value> {
    let mut tokens = Map::new();
    for (key, value) in fields.iter().filter(|(key, _)| key.ends_with("_token")) {
        let content = value.as_str().or_else(|| value["content"].as_str());
        if let Some(content) = content {
            tokens.insert(key.clone(), content.into());
        }
    }
    tokens
}

/// Takes out the tags `generation` and `endgeneration`, which no other Jinja knows; the spaces they
/// trim are trimmed by comments in their place.
fn without_generation(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n + 2) else { break };
        let inner = &rest[at + 2..end - 2];
        let (left, right) = (inner.starts_with('-'), inner.ends_with('-'));
        let word = inner.trim_matches('-').trim();
        out.push_str(&rest[..at]);
        match word {
            "generation" | "endgeneration" => {
                // Unlike a comment, a block also eats the line around it.
                out.push_str(if left { "{%- if true " } else { "{% if true " });
                out.push_str("%}{% endif ");
                out.push_str(if right { "-%}" } else { "%}" });
            }
            _ => out.push_str(&rest[at..end]),
        }
        rest = &rest[end..];
    }
    out + rest
}

fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `tojson` as transformers has it: no HTML escapes, nothing beyond ASCII escaped.
fn tojson(
    value: Serde<Value>,
    options: Kwargs,
) -> std::result::Result<minijinja::Value, minijinja::Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = Style {
        indent: options.get("indent")?,
        separators: match separators.as_deref() {
            Some([comma, colon]) => Some((comma.clone(), colon.clone())),
            _ => None,
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    if style.indent.is_some_and(|n| n > 64) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "indent over 64"));
    }
    Ok(minijinja::Value::from_safe_string(dumps(&value.0, &style)))
}

/// The message of a template's error with its line, without the interpreter's kind of error.
fn described(error: minijinja::Error) -> String {
    let text = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    match (error.kind(), error.line()) {
        (ErrorKind::OutOfFuel, _) => "the template does not come to an end".into(),
        (_, Some(line)) => format!("{text} (line {line})"),
        _ => text,
    }
}

/// The parts of `strftime` that need no clock.
fn strftime(format: &str, (year, month, day): (i32, u32, u32)) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let name = MONTHS[(month.clamp(1, 12) - 1) as usize];
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}
