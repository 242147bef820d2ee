//! JSON the way Python's `json.dumps` spells it. Models learned tool schemas in that spelling: one
//! space more or less makes other tokens.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::WideInteger;
use crate::io::python_json;

/// Deeper values are refused: the writer is recursive, and nothing a model reads nests so far.
const MAX_DEPTH: usize = 128;

/// How `tojson` was called.
struct Style {
    /// Text of one level, or `None` for a single line.
    indent: Option<String>,
    /// Between elements, and between a key and its value.
    separators: (String, String),
    ensure_ascii: bool,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`. Unlike
/// Jinja's own it escapes no HTML.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let style = Style::from_kwargs(ensure_ascii, &options)?;
    let mut text = String::new();
    style.write(state, value, 0, &mut text)?;
    Ok(Value::from(text))
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", reason.into()))
}

impl Style {
    fn from_kwargs(positional: Option<bool>, options: &Kwargs) -> Result<Style, Error> {
        let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.or(positional);
        let indent = match options.get::<Option<Value>>("indent")? {
            Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
            Some(width) if width.is_none() => None,
            Some(width) => {
                let width = width.as_usize().filter(|&width| width <= 64);
                Some(" ".repeat(width.ok_or_else(|| invalid("indent is not in 0..=64"))?))
            }
            None => None,
        };
        let between = if indent.is_some() { "," } else { ", " };
        let mut separators = (between.to_owned(), ": ".to_owned());
        if let Some(given) = options.get::<Option<Value>>("separators")?.filter(|s| !s.is_none()) {
            let given: Vec<String> = given.try_iter()?.map(|s| s.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(given)
                .map_err(|_| invalid("separators are not two strings"))?;
            separators = (item, key);
        }
        let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        options.assert_all_used()?;
        Ok(Style { indent, separators, ensure_ascii: ensure_ascii.unwrap_or(false), sort_keys })
    }

    fn write(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("nested deeper than {MAX_DEPTH}")));
        }
        state.consume_fuel(self.cost(depth))?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => write!(out, "{value}").expect("a string"),
            ValueKind::Number => out.push_str(&python_json::float(f64::try_from(value.clone())?)),
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                state.consume_fuel((text.len() / 64) as u64)?;
                python_json::string(text, self.ensure_ascii, out);
            }
            ValueKind::Seq | ValueKind::Iterable => self.list(state, value, depth, out)?,
            ValueKind::Map => self.object(state, value, depth, out)?,
            other => match value.downcast_object_ref::<WideInteger>() {
                Some(integer) => out.push_str(&integer.0),
                None => return Err(invalid(format!("a value of kind {other} has no JSON"))),
            },
        }
        Ok(())
    }

    /// Fuel for what surrounds a value, in the engine's currency of 64 bytes.
    fn cost(&self, depth: usize) -> u64 {
        let around = self.separators.0.len() + self.separators.1.len();
        let indent = self.indent.as_ref().map_or(0, |indent| indent.len() * (depth + 1));
        1 + ((around + indent) / 64) as u64
    }

    fn list(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        let mut empty = true;
        out.push('[');
        for item in value.try_iter()? {
            self.before_item(&mut empty, depth + 1, out);
            self.write(state, &item, depth + 1, out)?;
        }
        self.after_items(empty, depth, out);
        out.push(']');
        Ok(())
    }

    fn object(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        let mut empty = true;
        out.push('{');
        for key in keys {
            self.before_item(&mut empty, depth + 1, out);
            self.key(&key, out)?;
            out.push_str(&self.separators.1);
            self.write(state, &value.get_item(&key)?, depth + 1, out)?;
        }
        self.after_items(empty, depth, out);
        out.push('}');
        Ok(())
    }

    /// Keys that are not strings are spelled as strings.
    fn key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        let text = match key.kind() {
            ValueKind::String => key.to_string(),
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => key.is_true().to_string(),
            ValueKind::Number if key.is_integer() => key.to_string(),
            ValueKind::Number => python_json::float(f64::try_from(key.clone())?),
            other => return Err(invalid(format!("a key of kind {other} has no JSON"))),
        };
        python_json::string(&text, self.ensure_ascii, out);
        Ok(())
    }

    fn before_item(&self, empty: &mut bool, depth: usize, out: &mut String) {
        if !std::mem::replace(empty, false) {
            out.push_str(&self.separators.0);
        }
        self.new_line(depth, out);
    }

    fn after_items(&self, empty: bool, depth: usize, out: &mut String) {
        if !empty {
            self.new_line(depth, out);
        }
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}
