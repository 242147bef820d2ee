//! The bodies of `/v1/completions` and `/v1/chat/completions`.
//!
//! An argument is read, or has its neutral value, or the request is refused: nothing is ignored but labels that
//! change no answer (`user`, `metadata`).

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::problem::{Problem, shown};
use crate::text::ChatOptions;
use crate::train::rollout::Sampling;

/// Likeliest tokens of a place that can be asked for, as OpenAI has it.
const MAX_TOP: i64 = 20;

/// Texts that may end an answer, and the bytes of one.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 256;

/// Prompts of one request.
const MAX_PROMPTS: usize = 64;

/// Tokens of a completion of which a request says nothing, as OpenAI has it.
const COMPLETION: usize = 16;

/// What the answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Completion,
}

/// A prompt before it is ids.
#[derive(Debug)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<i32>),
    Chat { messages: Vec<Value>, options: Box<ChatOptions> },
}

/// A request that is understood.
#[derive(Debug)]
pub(super) struct Request {
    pub shape: Shape,
    pub model: String,
    pub prompts: Vec<Prompt>,
    /// Choices of each prompt.
    pub n: usize,
    pub sampling: Sampling,
    pub seed: Option<u64>,
    /// Most tokens of a choice; without it as many as there is room for.
    pub max_tokens: Option<usize>,
    /// Tokens that end a choice beside those of the model.
    pub stop_ids: Vec<i32>,
    pub stop: Vec<String>,
    pub spelled: bool,
    /// Log-probs are told, with those of so many of the likeliest tokens.
    pub logprobs: Option<usize>,
    /// Ids of prompt and answer are told.
    pub token_ids: bool,
    /// Tokens are told as `token_id:7`.
    pub as_ids: bool,
    pub stream: bool,
    /// A stream ends with its usage.
    pub usage: bool,
    /// There are tools that may be called.
    pub calls: bool,
}

/// What a request cannot change: defaults of the model, and bounds.
pub(super) struct Defaults {
    pub sampling: Sampling,
    pub chat: ChatOptions,
    /// Most choices of a prompt.
    pub slots: usize,
    /// Longest prompt with its answer.
    pub context: usize,
    /// Number of ids.
    pub vocab: usize,
}

impl Request {
    /// Understands a body.
    ///
    /// # Errors
    /// The first argument that is wrong or not supported.
    pub fn parse(shape: Shape, body: &[u8], defaults: &Defaults) -> Result<Request, Problem> {
        let mut fields = Fields::parse(body)?;
        let model = fields.text("model")?;
        let model = model.ok_or_else(|| missing("model", "the name of a served model"))?;
        let prompts = match shape {
            Shape::Chat => vec![chat(&mut fields, &defaults.chat)?],
            Shape::Completion => prompts(&mut fields, defaults.vocab)?,
        };
        let stream = fields.flag("stream")?.unwrap_or(false);
        let has_tools = |prompt: &Prompt| match prompt {
            Prompt::Chat { options, .. } => options.tools.is_some(),
            Prompt::Text(_) | Prompt::Ids(_) => false,
        };
        let request = Request {
            shape,
            model,
            calls: prompts.iter().any(has_tools),
            prompts,
            n: fields.whole("n", 1..=defaults.slots as i64)?.unwrap_or(1) as usize,
            sampling: sampling(&mut fields, &defaults.sampling)?,
            seed: fields.whole("seed", 0..=i64::MAX)?.map(|seed| seed as u64),
            max_tokens: max_tokens(shape, &mut fields, defaults.context)?,
            stop_ids: stop_ids(&mut fields, defaults.vocab)?,
            stop: stop(&mut fields)?,
            spelled: !fields.flag("skip_special_tokens")?.unwrap_or(true),
            logprobs: logprobs(shape, &mut fields)?,
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            as_ids: fields.flag("return_tokens_as_token_ids")?.unwrap_or(false),
            stream,
            usage: usage(&mut fields, stream)?,
        };
        not_built(shape, &mut fields)?;
        fields.finish()?;
        Ok(request)
    }
}

fn missing(param: &str, expected: &str) -> Problem {
    Problem::argument(param, "missing", expected)
}

/// Refuses what is known and not built, unless it asks for nothing.
fn not_built(shape: Shape, fields: &mut Fields) -> Result<(), Problem> {
    // Labels: no answer depends on them.
    for label in ["user", "metadata", "safety_identifier", "prompt_cache_key"] {
        fields.take(label);
    }
    fields.neutral("frequency_penalty", &[json!(0)])?;
    fields.neutral("presence_penalty", &[json!(0)])?;
    fields.neutral("repetition_penalty", &[json!(1)])?;
    fields.neutral("logit_bias", &[json!({})])?;
    fields.neutral("ignore_eos", &[json!(false)])?;
    match shape {
        Shape::Chat => {
            fields.neutral("response_format", &[json!({"type": "text"})])?;
            fields.neutral("modalities", &[json!(["text"])])?;
            fields.neutral("parallel_tool_calls", &[json!(true)])?;
            fields.neutral("store", &[json!(false)])?;
            fields.neutral("service_tier", &[json!("auto"), json!("default")])
        }
        Shape::Completion => {
            fields.neutral("echo", &[json!(false)])?;
            fields.neutral("best_of", &[json!(1)])?;
            fields.neutral("suffix", &[json!("")])
        }
    }
}

fn sampling(fields: &mut Fields, defaults: &Sampling) -> Result<Sampling, Problem> {
    // Below, the scores of a vocabulary divided by it are no numbers any more.
    let warm = |x: f64| x == 0.0 || (1e-6..=1e6).contains(&x);
    let temperature = fields.number("temperature", "0, or a number in [1e-6, 1e6]", warm)?;
    let share = |x: f64| x > 0.0 && x <= 1.0;
    let top_p = fields.number("top_p", "a number in (0, 1]", share)?;
    let least = |x: f64| (0.0..=1.0).contains(&x);
    let min_p = fields.number("min_p", "a number in [0, 1]", least)?;
    let top_k = fields.whole("top_k", -1..=i64::from(i32::MAX))?;
    let mut sampling = Sampling {
        top_p: top_p.unwrap_or(defaults.top_p),
        min_p: min_p.unwrap_or(defaults.min_p),
        // −1 is vLLM's word for all.
        top_k: top_k.unwrap_or(defaults.top_k).max(0),
        ..defaults.clone()
    };
    if let Some(temperature) = temperature {
        sampling.greedy = temperature == 0.0;
        sampling.temperature = if sampling.greedy { 1.0 } else { temperature };
    }
    Ok(sampling)
}

fn max_tokens(shape: Shape, fields: &mut Fields, most: usize) -> Result<Option<usize>, Problem> {
    let range = 1..=most as i64;
    let old = fields.whole("max_tokens", range.clone())?;
    let new = match shape {
        Shape::Chat => fields.whole("max_completion_tokens", range)?,
        Shape::Completion => None,
    };
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let expected = format!("what `max_completion_tokens` says, {new}, or nothing");
            Err(Problem::argument("max_tokens", old, &expected))
        }
        (old, new) => {
            let given = new.or(old).map(|n| n as usize);
            Ok(match shape {
                Shape::Chat => given,
                Shape::Completion => Some(given.unwrap_or(COMPLETION)),
            })
        }
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, Problem> {
    let expected = format!("a text or up to {MAX_STOPS} texts, each of 1 to {MAX_STOP} bytes");
    let fits = |text: &str| (1..=MAX_STOP).contains(&text.len()).then(|| text.to_string());
    let read = |value: &Value| match value {
        Value::String(text) => Some(vec![fits(text)?]),
        Value::Array(texts) if texts.len() <= MAX_STOPS => {
            texts.iter().map(|text| fits(text.as_str()?)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    };
    Ok(fields.read("stop", &expected, read)?.unwrap_or_default())
}

fn stop_ids(fields: &mut Fields, vocab: usize) -> Result<Vec<i32>, Problem> {
    let expected = format!("up to {MAX_STOPS} ids from 0 to {}", vocab.saturating_sub(1));
    let read = |value: &Value| ids(value, vocab).filter(|ids| ids.len() <= MAX_STOPS);
    Ok(fields.read("stop_token_ids", &expected, read)?.unwrap_or_default())
}

/// A list of ids below `vocab`.
fn ids(value: &Value, vocab: usize) -> Option<Vec<i32>> {
    let id = |value: &Value| value.as_u64().filter(|&id| id < vocab as u64).map(|id| id as i32);
    value.as_array()?.iter().map(id).collect()
}

fn logprobs(shape: Shape, fields: &mut Fields) -> Result<Option<usize>, Problem> {
    if shape == Shape::Completion {
        return Ok(fields.whole("logprobs", 0..=MAX_TOP)?.map(|k| k as usize));
    }
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0..=MAX_TOP)?.map(|k| k as usize);
    match (wanted, top) {
        (false, Some(top)) if top > 0 => {
            Err(Problem::argument("top_logprobs", top, "nothing without `logprobs`: true"))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, _) => Ok(None),
    }
}

fn usage(fields: &mut Fields, stream: bool) -> Result<bool, Problem> {
    let expected = "{\"include_usage\": true or false} beside `stream`: true";
    let read = |value: &Value| match value.as_object()?.iter().collect::<Vec<_>>()[..] {
        [] if stream => Some(false),
        [(name, Value::Bool(wanted))] if name == "include_usage" && stream => Some(*wanted),
        [..] => None,
    };
    Ok(fields.read("stream_options", expected, read)?.unwrap_or(false))
}

/// A text, ids, or a list of either.
fn prompts(fields: &mut Fields, vocab: usize) -> Result<Vec<Prompt>, Problem> {
    let expected = format!(
        "a text, a list of ids from 0 to {}, or a list of 1 to {MAX_PROMPTS} of either",
        vocab.saturating_sub(1)
    );
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(_) => ids(value, vocab).map(Prompt::Ids),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let read = |value: &Value| match value.as_array() {
        Some(many) if !many.first().is_some_and(Value::is_number) => {
            let fits = (1..=MAX_PROMPTS).contains(&many.len());
            many.iter().map(one).collect::<Option<Vec<_>>>().filter(|_| fits)
        }
        Some(_) | None => Some(vec![one(value)?]),
    };
    let prompts = fields.read("prompt", &expected, read)?;
    prompts.ok_or_else(|| missing("prompt", &expected))
}

fn chat(fields: &mut Fields, options: &ChatOptions) -> Result<Prompt, Problem> {
    let expected = "a list of messages, objects with a `role`";
    let list = |value: &Value| value.as_array().filter(|list| !list.is_empty()).cloned();
    let messages = fields.read("messages", expected, list)?;
    let messages = messages.ok_or_else(|| missing("messages", expected))?;
    let messages = messages.into_iter().enumerate().map(|(i, m)| message(i, m));
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let objects = |value: &Value| {
        let list = value.as_array()?;
        list.iter().all(Value::is_object).then(|| value.clone())
    };
    let tools = fields.read("tools", "a list of tools, each an object", objects)?;
    let tools = tools.filter(|tools| tools != &json!([]));
    match tools.is_some() {
        true => fields.neutral("tool_choice", &[json!("auto")])?,
        false => fields.neutral("tool_choice", &[json!("auto"), json!("none")])?,
    }
    let documents = fields.read("documents", "a list of objects", objects)?;
    let extra = fields.read("chat_template_kwargs", "an object", |v| v.as_object().cloned())?;
    let proceed = fields.flag("continue_final_message")?.unwrap_or(false);
    let begins = fields.flag("add_generation_prompt")?.unwrap_or(!proceed);
    if begins && proceed {
        let expected = "false beside `continue_final_message`: true";
        return Err(Problem::argument("add_generation_prompt", true, expected));
    }
    let options = ChatOptions {
        add_generation_prompt: begins,
        continue_final_message: proceed,
        tools,
        documents: documents.filter(|documents| documents != &json!([])),
        extra: extra.unwrap_or_else(Map::new),
        ..options.clone()
    };
    Ok(Prompt::Chat { messages, options: Box::new(options) })
}

/// A message as templates read it: content as one text, arguments of calls as objects.
fn message(index: usize, message: Value) -> Result<Value, Problem> {
    let param = format!("messages[{index}]");
    let Value::Object(mut fields) = message else {
        return Err(Problem::argument(&param, shown(&message), "an object with a `role`"));
    };
    if !fields.get("role").is_some_and(Value::is_string) {
        let got = fields.get("role").map_or("missing".into(), shown);
        return Err(Problem::argument(&format!("{param}.role"), got, "a text"));
    }
    if let Some(content) = fields.get_mut("content") {
        let text = match &*content {
            Value::Null | Value::String(_) => None,
            Value::Array(parts) => Some(joined(parts).ok_or(())).transpose().map_err(|()| {
                let expected = "a text, or a list of {\"type\": \"text\", \"text\": a text}";
                Problem::argument(&format!("{param}.content"), shown(content), expected)
            })?,
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                let (param, got) = (format!("{param}.content"), shown(content));
                return Err(Problem::argument(&param, got, "a text or a list of text parts"));
            }
        };
        if let Some(text) = text {
            *content = Value::String(text);
        }
    }
    let calls = fields.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        // OpenAI writes arguments as the text of an object, templates read the object.
        let arguments = call.pointer_mut("/function/arguments");
        if let Some(arguments) = arguments
            && let Some(object) = arguments
                .as_str()
                .and_then(|text| serde_json::from_str::<Value>(text).ok().filter(Value::is_object))
        {
            *arguments = object;
        }
    }
    Ok(Value::Object(fields))
}

/// The text of content parts, if all are texts.
fn joined(parts: &[Value]) -> Option<String> {
    let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
        Some("text") => part.get("text")?.as_str().map(String::from),
        Some(_) | None => None,
    };
    parts.iter().map(text).collect::<Option<Vec<_>>>().map(|texts| texts.concat())
}
