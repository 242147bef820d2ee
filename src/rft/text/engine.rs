//! The template engine as chat templates expect it, with bounds.
//!
//! | what a template can do | bound |
//! |---|---|
//! | its source | 256 KiB, 400 expressions or statements in one another |
//! | instructions, values looked at, 64 bytes of text made or looked at | 1,000,000 together |
//! | what it writes | 16 MiB |
//! | values in one another that are printed or dumped | 128 |
//!
//! That is a few seconds and some hundred MiB at worst.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::Value as Json;

use super::jinja_builtins::{self, Raised};
use super::python::{self, WideInteger};
use super::{checked, filters, untrusted, wide};
use gradus::error::{Error, Result};

/// Limit for a template's source, in bytes. The longest known ones have 30 kB.
pub(super) const SOURCE_LIMIT: usize = 256 << 10;

/// Instructions, values looked at, or 64 bytes of data each, that a render may use. A message takes
/// about 100.
const FUEL: u64 = 1_000_000;
/// Bytes a render may write.
const OUTPUT_LIMIT: usize = 16 << 20;

/// Renders the template `name` of `env` within the limits above. `what` and `path` are for messages.
pub(crate) fn render(
    env: &Environment<'_>,
    name: &str,
    vars: BTreeMap<&str, Value>,
    what: &str,
    path: &Path,
) -> Result<String> {
    let bytes = untrusted::contained(path, "the template engine", move || {
        let mut out = Bounded(Vec::new());
        let done = env.get_template(name)?.render_captured_to(Value::from_pairs(vars), &mut out);
        done.map(|_| out.0)
    })?;
    let bytes = bytes.map_err(|e| explain(path, what, &e))?;
    String::from_utf8(bytes).map_err(|e| Error::format(path, format!("{what} wrote no UTF-8: {e}")))
}

/// Adds `source` to `env` as template `name`.
pub(crate) fn compile(
    env: &mut Environment<'static>,
    name: &'static str,
    source: String,
    what: &str,
    path: &Path,
) -> Result<()> {
    if source.len() > SOURCE_LIMIT {
        let reason = format!("the {what} is longer than {SOURCE_LIMIT} bytes");
        return Err(Error::format(path, reason));
    }
    let compile = move || env.add_template_owned(name, checked::rewritten(&source, name)?);
    untrusted::contained(path, "the template engine", compile)?.map_err(|e| explain(path, what, &e))
}

/// JSON as the engine's value; objects keep their order.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(yes) => Value::from(*yes),
        Json::Number(number) => {
            let whole = number.as_i64().map(Value::from).or(number.as_u64().map(Value::from));
            whole.unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN)))
        }
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(fields) => {
            if let Some(digits) = wide::digits(fields) {
                return wide_integer(digits);
            }
            Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field))))
        }
    }
}

/// An integer of more than 64 bits.
fn wide_integer(digits: &str) -> Value {
    let signed = digits.parse::<i128>().map(Value::from);
    let whole = signed.or_else(|_| digits.parse::<u128>().map(Value::from));
    whole.unwrap_or_else(|_| Value::from_object(WideInteger(digits.to_owned())))
}

/// Collects at most [`OUTPUT_LIMIT`] bytes.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_LIMIT {
            let reason = format!("the text is longer than {} bytes", OUTPUT_LIMIT);
            return Err(std::io::Error::other(reason));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The engine as chat templates expect it.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    // The source is written again, see `checked`; blocks were trimmed then.
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    env.set_syntax(syntax.expect("the default delimiters"));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(200);
    env.set_unknown_method_callback(jinja_builtins::call);
    env.set_formatter(|out, state, value| {
        if value.is_undefined() && state.undefined_behavior() == UndefinedBehavior::Strict {
            return Err(minijinja::Error::from(ErrorKind::UndefinedError));
        }
        let mut text = String::new();
        python::write_str(state, value, &mut text)?;
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    env.remove_global("debug");
    filters::install(&mut env);
    env.add_function("raise_exception", jinja_builtins::raise_exception);
    env
}

/// The engine's error in the crate's words.
pub(crate) fn explain(path: &Path, what: &str, error: &minijinja::Error) -> Error {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return Error::invalid("chat_template", "messages", message, "what the template takes");
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        let reason = format!("{what}: stopped after {} instructions", FUEL);
        return Error::format(path, reason);
    }
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    Error::format(path, format!("{what}: {error}{cause}"))
}
