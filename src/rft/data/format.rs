//! From a row to a prompt.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::columns;
use super::jsonl::kind;
use super::{Dataset, Row};
use crate::text::{self, ChatOptions, ChatTemplate, Exchange, wide};
use gradus::error::{Error, Result};

/// Which part of a row the prompt is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PromptSource {
    /// By the first row's columns, the first that fits: `messages`, `prompt`, `question` (GSM8K's
    /// where the `answer` holds `####`), `nums` or `numbers` with `target` (Countdown).
    #[default]
    Auto,
    /// A column with a text or a list of messages. The column `completion`, if there is one, is the
    /// demonstration: a text, a message of the assistant, or an episode, messages of the assistant with one
    /// of a `user` or a `tool` between every two of them. A last message of the assistant in the prompt is
    /// not closed: the model goes on with it.
    Prompt(String),
    /// A column with a list of messages. A last message of the assistant is cut off as the
    /// demonstration.
    Messages(String),
    /// The columns `question` and `answer`, for grade-school mathematics: the instruction asks for
    /// the number after `####`, `answer` is the demonstration, and the field `gold` is added with
    /// what follows `####` in it.
    Gsm8k,
    /// The columns `nums` (or `numbers`) and `target`: asks for an expression over the numbers that
    /// equals the target, in `<answer>` tags. The fields are called `nums` and `target` afterwards.
    Countdown,
    /// A Jinja text over the row's columns, such as `{{ instruction }}\n\n{{ input }}`. A column
    /// that a row lacks is an error.
    Template(String),
}

/// How rows become prompts.
///
/// The columns `tools`, `documents` and `chat_template_kwargs` of a row go to the chat template, as
/// lists and an object or as JSON texts of such; what is null in `tools` is taken for absent.
#[derive(Clone, Debug, Default)]
pub struct PromptFormat {
    /// Which part of a row the prompt is.
    pub source: PromptSource,
    /// A system message before prompts that have none.
    pub system: Option<String>,
    /// How the chat template is rendered.
    pub chat: ChatOptions,
}

/// A prompt, and what its row knows about the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// What the model reads.
    pub prompt: String,
    /// Whether a chat template wrote `prompt`. It then spells its special tokens and is encoded
    /// with [`Codec::encode_rendered`](crate::text::Codec::encode_rendered).
    pub rendered: bool,
    /// The last message's text, where a chat template wrote `prompt`: what a person reads as the
    /// question.
    pub question: Option<String>,
    /// An answer to learn from, without an end of sequence.
    pub demo: Option<String>,
    /// How that one goes on, where it is an episode.
    pub then: Vec<Exchange>,
    /// The row, for the reward.
    pub fields: Row,
}

/// What a source makes of a row.
struct Parts {
    messages: Vec<Value>,
    demo: Option<String>,
    then: Vec<Exchange>,
    /// Fields to add or replace.
    fields: Row,
}

impl Parts {
    fn of(messages: Vec<Value>) -> Parts {
        Parts { messages, demo: None, then: Vec::new(), fields: Row::new() }
    }

    fn user(text: String) -> Parts {
        Parts::of(vec![json!({ "role": "user", "content": text })])
    }
}

/// Why a row does not fit; the caller adds which row.
type Fits<T> = std::result::Result<T, String>;

/// The prompts of all rows.
pub(super) fn examples(
    data: &Dataset,
    format: &PromptFormat,
    template: Option<&ChatTemplate>,
) -> Result<Vec<Example>> {
    let source = match &format.source {
        PromptSource::Auto => guess(data)?,
        source => source.clone(),
    };
    let user = match &source {
        PromptSource::Template(source) => Some(UserTemplate::new(source, "prompt template")?),
        _ => None,
    };
    let mut examples = Vec::with_capacity(data.rows.len());
    for (index, row) in data.rows.iter().enumerate() {
        let misfit = |reason: String| {
            let columns: Vec<&String> = row.keys().collect();
            let reason = format!("row {index}: {reason}; its columns are {columns:?}");
            Error::format(&data.path, reason)
        };
        let parts = match &user {
            Some(user) => Parts::user(user.render(row).map_err(|e| misfit(e.to_string()))?),
            None => parts(&source, row).map_err(misfit)?,
        };
        examples.push(example(row, parts, format, template).map_err(|e| match e {
            Error::Format { .. } => e,
            other => misfit(other.to_string()),
        })?);
    }
    Ok(examples)
}

/// The source that fits the first row's columns.
fn guess(data: &Dataset) -> Result<PromptSource> {
    let empty = Map::new();
    let row = data.rows.first().unwrap_or(&empty);
    let has = |name: &str| row.contains_key(name);
    Ok(if has("messages") {
        PromptSource::Messages("messages".into())
    } else if has("prompt") {
        PromptSource::Prompt("prompt".into())
    } else if has("question") {
        let answer = row.get("answer").and_then(Value::as_str).unwrap_or_default();
        let worked = gsm8k_gold(answer).is_some();
        if worked { PromptSource::Gsm8k } else { PromptSource::Prompt("question".into()) }
    } else if (has("nums") || has("numbers")) && has("target") {
        PromptSource::Countdown
    } else {
        let reason = format!(
            "no column is known to hold prompts (messages, prompt, question, nums and target): name \
             one or give a template; the columns are {:?}",
            data.columns()
        );
        return Err(Error::format(&data.path, reason));
    })
}

fn parts(source: &PromptSource, row: &Row) -> Fits<Parts> {
    match source {
        PromptSource::Prompt(name) => prompt(row, name),
        PromptSource::Messages(name) => messages(row, name),
        PromptSource::Gsm8k => gsm8k(row),
        PromptSource::Countdown => countdown(row),
        PromptSource::Auto | PromptSource::Template(_) => Err("has no source".into()),
    }
}

fn column<'a>(row: &'a Row, name: &str) -> Fits<&'a Value> {
    row.get(name).ok_or_else(|| format!("there is no column `{name}`"))
}

fn text_column<'a>(row: &'a Row, name: &str) -> Fits<&'a str> {
    let value = column(row, name)?;
    value.as_str().ok_or_else(|| format!("`{name}` is {}, not a string", kind(value)))
}

/// The content of a message, if it is one with a text.
fn content(message: &Value) -> Option<String> {
    message["content"].as_str().map(str::to_owned)
}

fn prompt(row: &Row, name: &str) -> Fits<Parts> {
    let mut parts = match column(row, name)? {
        Value::String(text) => Parts::user(text.clone()),
        Value::Array(messages) => Parts::of(messages.clone()),
        other => {
            let kind = kind(other);
            return Err(format!("`{name}` is {kind}, neither a string nor a list of messages"));
        }
    };
    (parts.demo, parts.then) = match row.get("completion") {
        Some(Value::String(text)) => (Some(text.clone()), Vec::new()),
        Some(Value::Array(messages)) => match episode(messages) {
            Some((answer, then)) => (Some(answer), then),
            None => (None, Vec::new()),
        },
        _ => (None, Vec::new()),
    };
    Ok(parts)
}

/// The first answer of some messages and what follows it: the assistant's, with one of somebody else between
/// every two of them. None for other messages. One alone may be anybody's.
fn episode(messages: &[Value]) -> Option<(String, Vec<Exchange>)> {
    let (first, rest) = messages.split_first()?;
    let by = |message: &Value, roles: &[&str]| roles.iter().any(|role| message["role"] == *role);
    let exchange = |pair: &[Value]| match pair {
        [said, answer] if by(said, &["user", "tool"]) && by(answer, &["assistant"]) => {
            Some(Exchange { said: content(said)?, answer: content(answer)? })
        }
        _ => None,
    };
    let then: Vec<Exchange> = rest.chunks(2).map(exchange).collect::<Option<_>>()?;
    let asked = then.is_empty() || by(first, &["assistant"]);
    Some((content(first).filter(|_| asked)?, then))
}

fn messages(row: &Row, name: &str) -> Fits<Parts> {
    let value = columns::parsed(column(row, name)?);
    let Value::Array(messages) = value.as_ref() else {
        return Err(format!("`{name}` is {}, not a list of messages", kind(&value)));
    };
    let mut parts = Parts::of(messages.clone());
    if parts.messages.last().is_some_and(|last| last["role"] == "assistant") {
        parts.demo = parts.messages.pop().as_ref().and_then(content);
    }
    Ok(parts)
}

/// What follows the last `####` of a worked answer, without spaces and thousands separators.
pub fn gsm8k_gold(answer: &str) -> Option<String> {
    let (_, gold) = answer.rsplit_once("####")?;
    Some(gold.trim().replace(',', "")).filter(|gold| !gold.is_empty())
}

fn gsm8k(row: &Row) -> Fits<Parts> {
    let (question, answer) = (text_column(row, "question")?, text_column(row, "answer")?);
    let gold = gsm8k_gold(answer).ok_or("`answer` does not end in `####` and a number")?;
    let mut parts = Parts::user(format!(
        "{question}\n\nReason step by step. Then write the final number on a line of its own after \
         `####`."
    ));
    parts.demo = Some(answer.to_owned());
    parts.fields.insert("gold".into(), gold.into());
    Ok(parts)
}

fn countdown(row: &Row) -> Fits<Parts> {
    let name = if row.contains_key("nums") { "nums" } else { "numbers" };
    let whole = |value: &Value| {
        value.as_i64().or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
    };
    let value = columns::parsed(column(row, name)?);
    let nums: Option<Vec<i64>> =
        value.as_array().and_then(|items| items.iter().map(whole).collect());
    let nums = nums.filter(|nums| !nums.is_empty());
    let nums = nums.ok_or_else(|| format!("`{name}` is not a list of whole numbers"))?;
    let target = whole(column(row, "target")?).ok_or("`target` is not a whole number")?;
    let listed: Vec<String> = nums.iter().map(i64::to_string).collect();
    let mut parts = Parts::user(format!(
        "Find an arithmetic expression that equals {target}. It may use the numbers {}, each at most \
         once, the operators + - * / and parentheses. Think it through first; then write the \
         expression alone between <answer> and </answer>, for example <answer>(1 + 2) / \
         3</answer>.",
        listed.join(", ")
    ));
    parts.fields.insert("nums".into(), nums.into());
    parts.fields.insert("target".into(), target.into());
    Ok(parts)
}

/// A text over a row's columns.
pub(crate) struct UserTemplate {
    env: Environment<'static>,
    /// What messages call it.
    what: &'static str,
}

impl UserTemplate {
    /// Reads `source`, which messages call `what`.
    ///
    /// # Errors
    /// `Format` for a source that is no template.
    pub fn new(source: &str, what: &'static str) -> Result<UserTemplate> {
        let mut env = text::environment();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        text::compile(&mut env, "text", source.to_owned(), what, Path::new("data"))?;
        Ok(UserTemplate { env, what })
    }

    /// The text of `row`.
    ///
    /// # Errors
    /// `Format` for a column that is not there, and for what the template itself refuses.
    pub fn render(&self, row: &Row) -> Result<String> {
        let vars: BTreeMap<&str, _> =
            row.iter().map(|(name, value)| (name.as_str(), text::value(value))).collect();
        text::render(&self.env, "text", vars, self.what, Path::new("data"))
    }
}

fn example(
    row: &Row,
    mut parts: Parts,
    format: &PromptFormat,
    template: Option<&ChatTemplate>,
) -> Result<Example> {
    let starts_with_system = parts.messages.first().is_some_and(|m| m["role"] == "system");
    if let Some(system) = format.system.as_ref().filter(|_| !starts_with_system) {
        parts.messages.insert(0, json!({ "role": "system", "content": system }));
    }
    let Some(last) = parts.messages.last() else {
        return Err(Error::invalid("data", "messages", "none before the answer", "a prompt"));
    };
    let mut chat = columns::chat_options(row, &format.chat)
        .map_err(|reason| Error::invalid("data", "row", reason, "what a chat template takes"))?;
    chat.continue_final_message = last["role"] == "assistant";
    let own = matches!(format.source, PromptSource::Template(_));
    let prompt = match template {
        Some(template) => template.render(&parts.messages, &chat)?,
        None if !own && (chat.tools.is_some() || chat.documents.is_some()) => {
            let expected = "a model with a chat template, which alone can write them";
            return Err(Error::invalid("data", "row", "`tools` or `documents`", expected));
        }
        None => plain(&parts.messages)?,
    };
    let mut fields = row.clone();
    fields.extend(parts.fields);
    let fields = wide::plain(fields);
    let asked = parts.messages.last().map(|last| last["content"].as_str().unwrap_or_default());
    let question = asked.filter(|text| template.is_some() && !text.is_empty()).map(String::from);
    let Parts { demo, then, .. } = parts;
    Ok(Example { prompt, rendered: template.is_some(), question, demo, then, fields })
}

/// The text of one message, or of a system message and one more with an empty line between. Longer
/// conversations have no form without a chat template.
fn plain(messages: &[Value]) -> Result<String> {
    let refuse = |got: &str| {
        let expected = "one message with a text, or a chat template for anything more";
        Error::invalid("data", "messages", got, expected)
    };
    let single = match messages {
        [_] => true,
        [first, _] => first["role"] == "system",
        _ => false,
    };
    if !single {
        return Err(refuse(&format!("a conversation of {}", messages.len())));
    }
    let texts: Option<Vec<String>> = messages.iter().map(content).collect();
    Ok(texts.ok_or_else(|| refuse("a message without a text"))?.join("\n\n"))
}
