//! Columns by path, and what a row's columns tell a chat template.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Row;
use super::jsonl::kind;
use crate::text::{ChatOptions, wide};

/// A list or an object that may be given as a JSON text of one: files whose columns have one type
/// hold such texts.
pub(crate) fn parsed(value: &Value) -> Cow<'_, Value> {
    let text = value.as_str().map(str::trim_start).filter(|text| text.starts_with(['[', '{']));
    match text.and_then(wide::parse) {
        Some(inner) => Cow::Owned(inner),
        None => Cow::Borrowed(value),
    }
}

/// The value at `path`: a column, or names with dots between that lead into objects and lists, as in
/// `reward_model.ground_truth`. A column whose own name has dots goes before.
pub fn at<'a>(row: &'a Row, path: &str) -> Option<Cow<'a, Value>> {
    if let Some(value) = row.get(path) {
        return Some(Cow::Borrowed(value));
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let value = parsed(row.get(&path[..dot])?);
        let rest = &path[dot + 1..];
        match value {
            Cow::Borrowed(value) => within(value, rest).map(Cow::Borrowed),
            Cow::Owned(value) => within(&value, rest).cloned().map(Cow::Owned),
        }
    })
}

fn within<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let step = |value: &'a Value, name: &str| match value {
        Value::Object(fields) => fields.get(name),
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => None,
    };
    step(value, path).or_else(|| {
        path.match_indices('.')
            .find_map(|(dot, _)| within(step(value, &path[..dot])?, &path[dot + 1..]))
    })
}

/// Names that a render sets itself.
const RESERVED: [&str; 5] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// `chat` with what the row's own columns say.
pub(super) fn chat_options(row: &Row, chat: &ChatOptions) -> Result<ChatOptions, String> {
    let mut chat = chat.clone();
    let list = |name: &str| match given(row, name) {
        None => Ok(None),
        Some(value) if value.is_array() => {
            let items = without_nulls(value.into_owned());
            Ok(Some(items).filter(|items| items != &Value::Array(Vec::new())))
        }
        Some(other) => Err(format!("`{name}` is {}, not a list", kind(&other))),
    };
    chat.tools = list("tools")?.or(chat.tools);
    chat.documents = list("documents")?.or(chat.documents);
    match given(row, "chat_template_kwargs").map(Cow::into_owned) {
        None => {}
        Some(Value::Object(fields)) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            let fields: Map<String, Value> = fields.collect();
            if let Some(name) = RESERVED.into_iter().find(|&name| fields.contains_key(name)) {
                return Err(format!("`chat_template_kwargs` sets `{name}`, which is no option"));
            }
            chat.extra.extend(fields);
        }
        Some(other) => {
            return Err(format!("`chat_template_kwargs` is {}, not an object", kind(&other)));
        }
    }
    Ok(chat)
}

/// A column that holds something; an empty text is how some files say nothing.
fn given<'a>(row: &'a Row, name: &str) -> Option<Cow<'a, Value>> {
    row.get(name).filter(|value| !value.is_null() && *value != "").map(parsed)
}

/// Without null fields: a column of objects has every object's names in each.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
