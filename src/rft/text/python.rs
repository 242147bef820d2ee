//! Values as Python's `str` and `repr` spell them, within a budget.

use std::fmt::Write;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deeper values are refused: the writers are recursive, and nothing a model reads nests so far.
const DEPTH_LIMIT: usize = 128;

/// `str` and `repr` of a float.
pub(super) fn float(x: f64) -> String {
    match x {
        x if x.is_nan() => "nan".into(),
        x if x.is_infinite() => (if x > 0.0 { "inf" } else { "-inf" }).into(),
        x => crate::io::python_json::float(x),
    }
}

/// An integer of any length, as data files hold it. It is printed, and compared with others like it.
#[derive(Debug)]
pub(super) struct WideInteger(pub String);

impl Object for WideInteger {
    fn repr(self: &std::sync::Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &std::sync::Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Charges for everything in `value`: one for each part, and for every 64 bytes of text.
pub(super) fn count(state: &State, value: &Value) -> Result<(), Error> {
    let mut left = vec![value.clone()];
    while let Some(value) = left.pop() {
        state.consume_fuel(1 + value.as_str().map_or(0, |text| text.len() as u64 / 64))?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    state.consume_fuel(1)?;
                    left.push(item);
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    state.consume_fuel(1)?;
                    left.push(value.get_item(&key)?);
                    left.push(key);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// `str(value)`.
pub(super) fn str(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_str(state, value, &mut out)?;
    Ok(out)
}

/// Appends `str(value)`.
pub(super) fn write_str(state: &State, value: &Value, out: &mut String) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => {
            state.consume_fuel(text.len() as u64 / 64)?;
            out.push_str(text);
            Ok(())
        }
        None if value.is_undefined() => Ok(()),
        None => repr(state, value, 0, out),
    }
}

/// Appends `repr(value)`.
pub(super) fn repr(
    state: &State,
    value: &Value,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    if depth > DEPTH_LIMIT {
        let reason = format!("a value nested deeper than {DEPTH_LIMIT} cannot be printed");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64 / 16)?;
            quoted(text, out);
        }
        ValueKind::Seq | ValueKind::Iterable => sequence(state, value, depth, out)?,
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => write!(out, "{value}")?,
    }
    Ok(())
}

fn sequence(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
    let mut items = 0;
    out.push(open);
    for item in value.try_iter()? {
        out.push_str(if items > 0 { ", " } else { "" });
        repr(state, &item, depth + 1, out)?;
        items += 1;
    }
    out.push_str(if value.is_tuple() && items == 1 { "," } else { "" });
    out.push(close);
    Ok(())
}

/// A string in quotes, with double ones if it holds single ones only.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}' | '\u{3000}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// `format % given`.
pub(super) fn percent(state: &mut State, format: &Value, given: &Value) -> Result<Value, Error> {
    let text = format.as_str().unwrap_or_default();
    let mut args: Vec<Value> = match given.is_tuple() {
        true => given.try_iter()?.collect(),
        false => vec![given.clone()],
    };
    let (text, conversions) = conversions(text);
    let named = conversions.iter().any(|(at, _)| matches!(at, Operand::Key(_)));
    if named && given.kind() == ValueKind::Map {
        let mut fields = Vec::new();
        for key in given.try_iter()? {
            let mut value = given.get_item(&key)?;
            for (at, conversion) in &conversions {
                if matches!(at, Operand::Key(name) if key.as_str() == Some(name)) {
                    value = converted(state, &value, *conversion)?;
                }
            }
            fields.push((key, value));
        }
        args = vec![Value::from_pairs(fields)];
    } else {
        for (at, conversion) in &conversions {
            if let Operand::Index(i) = at
                && let Some(arg) = args.get_mut(*i)
            {
                *arg = converted(state, arg, *conversion)?;
            }
        }
    }
    args.insert(0, Value::from(text));
    state.apply_filter("__format", &args)
}

/// Which argument a conversion takes.
enum Operand {
    Index(usize),
    Key(String),
}

/// The conversions of `format`, and the format with `%s` for each `%r`.
fn conversions(format: &str) -> (String, Vec<(Operand, char)>) {
    let (mut text, mut found, mut next) = (String::new(), Vec::new(), 0);
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        text.push(c);
        if c != '%' {
            continue;
        }
        let mut key = None;
        if chars.next_if_eq(&'(').is_some() {
            let name: String = chars.by_ref().take_while(|&c| c != ')').collect();
            text.push_str(&format!("({name})"));
            key = Some(name);
        }
        while let Some(c) = chars.next_if(|c| "#0- +.*hlL".contains(*c) || c.is_ascii_digit()) {
            text.push(c);
            next += (c == '*') as usize;
        }
        let Some(conversion) = chars.next() else { continue };
        text.push(if conversion == 'r' { 's' } else { conversion });
        if conversion != '%' {
            let at = key.map_or(Operand::Index(next), Operand::Key);
            next += matches!(at, Operand::Index(_)) as usize;
            found.push((at, conversion));
        }
    }
    (text, found)
}

/// `value` as the engine formats it the way Python does.
fn converted(state: &State, value: &Value, conversion: char) -> Result<Value, Error> {
    let mut text = String::new();
    match conversion {
        'r' => repr(state, value, 0, &mut text)?,
        's' => write_str(state, value, &mut text)?,
        'd' | 'i' | 'u' if value.is_number() && !value.is_integer() => {
            let whole = f64::try_from(value.clone())?.trunc();
            let inside = whole.abs() < i64::MAX as f64;
            let reason = || Error::new(ErrorKind::InvalidOperation, "a float beyond 64 bits");
            return inside.then(|| Value::from(whole as i64)).ok_or_else(reason);
        }
        _ => return Ok(value.clone()),
    }
    Ok(Value::from(text))
}
