//! `--set section.key=value`.

use crate::near::near;
use crate::train::config::{RunConfig, check};
use gradus::error::{Error, Result};

impl RunConfig {
    /// Sets one key from `section.key=value`; the value is read as TOML, or as a bare string.
    pub fn apply_set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(Error::config(assignment, "expected key=value"));
        };
        let (key, text) = (key.trim(), text.trim());
        if key == "recipe" {
            let reason = "is laid under all other settings, which are there already; name it first";
            return Err(Error::config(key, reason));
        }
        if let Some(key) =
            key.strip_prefix("phase").filter(|key| key.is_empty() || key.starts_with('.'))
        {
            return self.set_in_phase(key.trim_start_matches('.'), text);
        }
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

    /// Sets one key of a phase's own table.
    fn set_in_phase(&mut self, key: &str, text: &str) -> Result<()> {
        let whole = if key.is_empty() { "phase".into() } else { format!("phase.{key}") };
        let (name, path) = match key.split_once('.') {
            Some((name, path)) if !name.is_empty() => (name, path),
            _ => return Err(Error::config(&whole, "expected phase.NAME.KEY")),
        };
        let path: Vec<&str> = path.split('.').collect();
        let mut set = self.clone();
        let value = match set.key_in_phase(name, &path)? {
            None => toml::Value::String(text.trim_matches('"').into()),
            Some(stands_for) => {
                let (_, phase) = self.phase_named(name)?;
                let table = toml::Value::Table(phase.to_table());
                let like = stands_for.split('.').try_fold(&table, |at, part| at.get(part));
                let like = like.ok_or_else(|| Error::config(&whole, "is no key of the run"))?;
                parse_like(&whole, like, text)?
            }
        };
        let mut at = set.phase.entry(name.into()).or_default();
        let (last, sections) = path.split_last().unwrap_or((&"", &[]));
        for section in sections {
            let inner = at.entry(*section).or_insert_with(|| toml::Table::new().into());
            let Some(inner) = inner.as_table_mut() else {
                return Err(Error::config(
                    &whole,
                    format!("`{section}` is a value, not a section"),
                ));
            };
            at = inner;
        }
        at.insert((*last).into(), value);
        set.phase_named(name)?;
        *self = set;
        Ok(())
    }
}

pub(super) fn unknown_key(part: &str, known: &[String]) -> String {
    let near = near(part, known.iter().map(String::as_str));
    match near.is_empty() {
        true => format!("no key `{part}`; known are {}", known.join(", ")),
        false => format!("no key `{part}`; did you mean {}?", near.join(" or ")),
    }
}

/// The parts of a list of phases: commas in parentheses belong to a repetition.
fn outside_parentheses(list: &str) -> Vec<&str> {
    let mut depth = 0i64;
    let parts = list.split(|c| {
        depth += (c == '(') as i64 - (c == ')') as i64;
        c == ',' && depth == 0
    });
    parts.collect()
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
            let items = if key == "phases" {
                outside_parentheses(inner)
            } else {
                inner.split(',').collect()
            };
            let items = items.into_iter().map(|item| item.trim().trim_matches('"'));
            Value::Array(
                items.filter(|item| !item.is_empty()).map(|i| Value::String(i.into())).collect(),
            )
        }
        Value::Table(_) => return Err(wrong("a value; this key is a section")),
        Value::Datetime(_) => return Err(wrong("a value; no key is a date")),
    })
}
