//! `--set section.key=value`.

use crate::train::config::{RunConfig, check};
use gradus::error::{Error, Result};

impl RunConfig {
    /// Sets one key from `section.key=value`; the value is read as TOML, or as a bare string.
    pub fn apply_set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(Error::config(assignment, "expected key=value"));
        };
        let (key, text) = (key.trim(), text.trim());
        let mut table = self.to_table();
        let mut at = &mut table;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let known: Vec<String> = at.keys().cloned().collect();
            let Some(entry) = at.get_mut(part) else {
                return Err(Error::config(key, unknown_key(part, &known)));
            };
            if parts.peek().is_none() {
                *entry = parse_like(key, entry, text)?;
                break;
            }
            let Some(inner) = entry.as_table_mut() else {
                return Err(Error::config(key, format!("`{part}` is a value, not a section")));
            };
            at = inner;
        }
        check::choices(&table)?;
        *self = table.try_into().map_err(|e: toml::de::Error| Error::config(key, e.message()))?;
        Ok(())
    }
}

fn unknown_key(part: &str, known: &[String]) -> String {
    let near: Vec<&str> =
        known.iter().map(String::as_str).filter(|k| distance(k, part) <= 3).collect();
    match near.is_empty() {
        true => format!("no key `{part}`; known are {}", known.join(", ")),
        false => format!("no key `{part}`; did you mean {}?", near.join(" or ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let cost = diagonal + (x != y) as usize;
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `text` as a value of the kind `like` is.
fn parse_like(key: &str, like: &toml::Value, text: &str) -> Result<toml::Value> {
    use toml::Value;
    let wrong = |kind: &str| Error::config(key, format!("`{text}` is not {kind}"));
    Ok(match like {
        Value::String(_) => Value::String(text.trim_matches('"').into()),
        Value::Integer(_) => Value::Integer(text.parse().map_err(|_| wrong("a whole number"))?),
        // Whether the key may be left to others is the section's to say.
        Value::Float(_) if text.trim_matches('"') == "auto" => Value::String("auto".into()),
        Value::Float(_) => Value::Float(text.parse().map_err(|_| wrong("a number"))?),
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(|_| wrong("true or false"))?),
        Value::Array(_) => {
            let inner = text.trim_start_matches('[').trim_end_matches(']');
            let items = inner.split(',').map(|item| item.trim().trim_matches('"'));
            Value::Array(
                items.filter(|item| !item.is_empty()).map(|i| Value::String(i.into())).collect(),
            )
        }
        Value::Table(_) => return Err(wrong("a value; this key is a section")),
        Value::Datetime(_) => return Err(wrong("a value; no key is a date")),
    })
}
