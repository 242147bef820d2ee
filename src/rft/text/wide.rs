//! Integers of more than 64 bits in JSON rows.
//!
//! The JSON library would make floats of them. In a row they are marked, and templates print them as
//! the integers that they are; rewards get the text of their digits, as for the decimals of Parquet.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The key of an object that stands for an integer. No text file holds it by accident.
const MARK: &str = "\u{0}integer";

/// The digits of the integer that an object stands for.
pub(crate) fn digits(fields: &Map<String, Value>) -> Option<&str> {
    let digits = fields.get(MARK)?.as_str()?;
    (fields.len() == 1 && is_integer(digits)).then_some(digits)
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The value of `text`, or `None` if it is no JSON.
pub(crate) fn parse(text: &str) -> Option<Value> {
    match suspected(text.as_bytes()) {
        true => marked(&serde_json::from_str::<Box<RawValue>>(text).ok()?).ok(),
        false => serde_json::from_str(text).ok(),
    }
}

/// Whether `text` may hold an integer of more than 64 bits: 19 digits in a row.
pub(crate) fn suspected(text: &[u8]) -> bool {
    let mut run = 0;
    text.iter().any(|byte| {
        run = if byte.is_ascii_digit() { run + 1 } else { 0 };
        run >= 19
    })
}

/// The value of `text`, which is JSON, with its wide integers marked.
pub(crate) fn marked(text: &RawValue) -> serde_json::Result<Value> {
    let text = text.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let fields: Vec<(String, Box<RawValue>)> = fields(text)?;
            let mark = |(name, value): (String, Box<RawValue>)| Ok((name, marked(&value)?));
            Value::Object(fields.into_iter().map(mark).collect::<serde_json::Result<_>>()?)
        }
        Some(b'[') => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text)?;
            Value::Array(items.iter().map(|item| marked(item)).collect::<serde_json::Result<_>>()?)
        }
        _ if is_integer(text) && text.parse::<i64>().is_err() && text.parse::<u64>().is_err() => {
            Value::Object(Map::from_iter([(MARK.to_owned(), Value::from(text))]))
        }
        _ => serde_json::from_str(text)?,
    })
}

/// An object's fields in order.
fn fields(text: &str) -> serde_json::Result<Vec<(String, Box<RawValue>)>> {
    struct Fields;
    impl<'de> serde::de::Visitor<'de> for Fields {
        type Value = Vec<(String, Box<RawValue>)>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(fields)
        }
    }
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_str(text), Fields)
}

/// A row with the digits of marked integers as texts.
pub(crate) fn plain(row: Map<String, Value>) -> Map<String, Value> {
    row.into_iter().map(|(name, value)| (name, unmarked(value))).collect()
}

/// A value with the digits of marked integers as texts.
fn unmarked(value: Value) -> Value {
    match value {
        Value::Object(fields) => match digits(&fields) {
            Some(digits) => digits.into(),
            None => {
                let fields = fields.into_iter().map(|(name, value)| (name, unmarked(value)));
                Value::Object(fields.collect())
            }
        },
        Value::Array(items) => Value::Array(items.into_iter().map(unmarked).collect()),
        other => other,
    }
}
