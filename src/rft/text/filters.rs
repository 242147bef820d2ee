//! Filters and tests: those of the engine with everything charged for that they look at, and those
//! of the Python side that it lacks.

use minijinja::value::{Kwargs, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, tests};

use super::python;

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Puts them into `env`.
pub(super) fn install(env: &mut Environment<'static>) {
    counted_filters(env);
    counted_tests(env);
    env.remove_filter("pprint"); // squares the size of nested lists
    env.add_filter("__count", |state: &State, value: Value| {
        python::count(state, &value)?;
        Ok::<Value, Error>(value)
    });
    // The engine charges for a filter's text by itself.
    env.add_filter("__flat", |state: &State, value: Value| {
        let lazy = value.kind() == ValueKind::Iterable
            || value.as_object().is_some_and(|object| {
                let made = object.downcast_ref::<Vec<Value>>().is_some() || value.is_tuple();
                object.repr() == ObjectRepr::Seq && !made
            });
        if !lazy {
            return Ok(value);
        }
        let mut items = Vec::new();
        for item in value.try_iter()? {
            if items.len() % 64 == 0 {
                state.consume_fuel(1)?;
            }
            items.push(item);
        }
        Ok::<Value, Error>(Value::from(items))
    });
    env.add_filter("__concat", concat);
    env.add_filter("__percent", percent);
    env.add_filter("__format", filters::format);
    env.add_filter("format", format);
    env.add_filter("string", |state: &State, value: Value| match value.as_str() {
        Some(_) => Ok(value),
        None => python::str(state, &value).map(Value::from),
    });
    env.add_filter("join", join);
    env.add_filter("tojson", super::python_json::tojson);
    env.add_filter("center", |state: &State, value: Value, width: Option<i64>| {
        padded(state, &python::str(state, &value)?, width.unwrap_or(80), ' ', Side::Both)
    });
    env.add_filter("wordwrap", super::wrap::wordwrap);
    env.add_filter("wordcount", |text: &str| {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        text.split(|c| !word(c)).filter(|part| !part.is_empty()).count()
    });
    env.add_filter("urlencode", urlencode);
    env.add_filter("truncate", truncate);
}

/// The engine's own filters that compare, hash or print what they are given.
fn counted_filters(env: &mut Environment<'static>) {
    let natives = [
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("trim", Value::from_function(filters::trim)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("indent", Value::from_function(filters::indent)),
        ("round", Value::from_function(filters::round)),
        ("abs", Value::from_function(filters::abs)),
        ("sum", Value::from_function(filters::sum)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("safe", Value::from_function(filters::safe)),
    ];
    for (name, native) in natives {
        add(env, name, native, 1);
    }
    // These compare each item with several others.
    let sorting = [
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
        ("groupby", Value::from_function(filters::groupby)),
        ("dictsort", Value::from_function(filters::dictsort)),
    ];
    for (name, native) in sorting {
        add(env, name, native, 20);
    }
    env.add_filter("replace", replace);
    number(env, "int", Value::from_function(filters::int), Value::from(0));
    number(env, "float", Value::from_function(filters::float), Value::from(0.0));
}

/// A filter to a number: what is none becomes `otherwise`.
fn number(env: &mut Environment<'static>, name: &'static str, native: Value, otherwise: Value) {
    let read = move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        args.iter().try_for_each(|arg| python::count(state, arg))?;
        match native.call(state, &args) {
            Err(e) if args.len() == 1 && e.kind() == ErrorKind::InvalidOperation => {
                Ok(otherwise.clone())
            }
            done => done,
        }
    };
    env.add_filter(name, read);
}

/// `native` under `name`, with `times` the charge for its arguments.
fn add(env: &mut Environment<'static>, name: &'static str, native: Value, times: usize) {
    let counted = move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        // A text is compared and copied at once; only what holds others is looked at again.
        for arg in args.iter() {
            let times = if arg.as_object().is_some() { times } else { 1 };
            (0..times).try_for_each(|_| python::count(state, arg))?;
        }
        native.call(state, &args)
    };
    env.add_filter(name, counted);
}

fn counted_tests(env: &mut Environment<'static>) {
    let natives = [
        (&["eq", "equalto", "=="][..], Value::from_function(tests::is_eq)),
        (&["ne", "!="], Value::from_function(tests::is_ne)),
        (&["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (&["le", "<="], Value::from_function(tests::is_le)),
        (&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt)),
        (&["ge", ">="], Value::from_function(tests::is_ge)),
        (&["in"], Value::from_function(tests::is_in)),
        (&["startingwith"], Value::from_function(tests::is_startingwith)),
        (&["endingwith"], Value::from_function(tests::is_endingwith)),
        (&["lower"], Value::from_function(tests::is_lower)),
        (&["upper"], Value::from_function(tests::is_upper)),
    ];
    for (names, native) in natives {
        for &name in names {
            let native = native.clone();
            env.add_test(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                args.iter().try_for_each(|arg| python::count(state, arg))?;
                native.call(state, &args).map(|value| value.is_true())
            });
        }
    }
    // On the Python side whatever has a length and items is a sequence, and none is not iterable.
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

/// `first ~ …`.
fn concat(state: &State, first: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let mut text = String::new();
    for value in std::iter::once(&first).chain(rest.iter()) {
        python::write_str(state, value, &mut text)?;
    }
    Ok(Value::from(text))
}

/// `left % right`: a format and its arguments, or a remainder.
fn percent(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        python::count(state, &right)?;
        return python::percent(state, &left, &right);
    }
    let by_zero = || invalid("modulo by zero");
    let integer = |value: &Value| {
        let bool = value.kind() == ValueKind::Bool;
        (value.is_integer() || bool).then(|| i128::try_from(value.clone()).ok()).flatten()
    };
    if let (Some(a), Some(b)) = (integer(&left), integer(&right)) {
        let rest = a.checked_rem(b).ok_or_else(by_zero)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    let number = |value: &Value| f64::try_from(value.clone()).ok();
    let (Some(a), Some(b)) = (number(&left), number(&right)) else {
        let (left, right) = (left.kind(), right.kind());
        return Err(invalid(format!("tried to use % on values of kind {left} and {right}")));
    };
    if b == 0.0 {
        return Err(by_zero());
    }
    let rest = a % b;
    Ok(Value::from(match rest {
        0.0 => 0f64.copysign(b),
        rest if (rest < 0.0) != (b < 0.0) => rest + b,
        rest => rest,
    }))
}

/// The filter `format`: `%` with its arguments one by one, or by name.
fn format(state: &mut State, text: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    args.iter().try_for_each(|arg| python::count(state, arg))?;
    match args.first() {
        Some(named) if named.is_kwargs() => {
            let fields = named.try_iter()?.map(|key| Ok((key.clone(), named.get_item(&key)?)));
            let fields = Value::from_pairs(fields.collect::<Result<Vec<_>, Error>>()?);
            python::percent(state, &text, &fields)
        }
        _ => python::percent(state, &text, &Value::from(Tuple::from(args))),
    }
}

/// `join(separator="", attribute=none)`.
fn join(
    state: &State,
    value: Value,
    separator: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let separator = options.get::<Option<Value>>("d")?.or(separator);
    let attribute = options.get::<Option<Value>>("attribute")?;
    options.assert_all_used()?;
    let separator = separator.map_or(Ok(String::new()), |text| python::str(state, &text))?;
    let mut text = String::new();
    if value.is_undefined() {
        return Ok(Value::from(text));
    }
    for (i, item) in value.try_iter()?.enumerate() {
        if i > 0 {
            state.consume_fuel(1 + separator.len() as u64 / 64)?;
            text.push_str(&separator);
        }
        let item = match &attribute {
            None => item,
            Some(path) if path.as_str().is_some() => {
                let mut names = path.as_str().unwrap_or_default().split('.');
                names.try_fold(item, |at, name| at.get_attr(name))?
            }
            Some(index) => item.get_item(index)?,
        };
        python::write_str(state, &item, &mut text)?;
    }
    Ok(Value::from(text))
}

/// `replace(old, new, count=none)`.
fn replace(
    state: &State,
    value: Value,
    old: Value,
    new: Value,
    count: Option<usize>,
) -> Result<Value, Error> {
    let [text, old, new] = [&value, &old, &new].map(|value| python::str(state, value));
    replaced(state, &text?, &old?, &new?, count).map(Value::from)
}

/// `text.replace(old, new, count)`, paid for before it is made.
pub(super) fn replaced(
    state: &State,
    text: &str,
    old: &str,
    new: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let most = count.unwrap_or(usize::MAX);
    let found = text.matches(old).take(most).count();
    let bytes = (found as u64).saturating_mul(new.len() as u64).saturating_add(text.len() as u64);
    state.consume_fuel(bytes / 64)?;
    Ok(text.replacen(old, new, most))
}

/// `truncate(length=255, killwords=false, end="...", leeway=5)`.
fn truncate(
    state: &State,
    value: Value,
    length: Option<usize>,
    killwords: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let length = options.get::<Option<usize>>("length")?.or(length).unwrap_or(255);
    let killwords = options.get::<Option<bool>>("killwords")?.or(killwords).unwrap_or(false);
    let end = options.get::<Option<String>>("end")?.unwrap_or("...".into());
    let leeway = options.get::<Option<usize>>("leeway")?.unwrap_or(5);
    options.assert_all_used()?;
    let text = python::str(state, &value)?;
    let room = length.checked_sub(end.chars().count());
    let room = room.ok_or_else(|| invalid("truncate: the length is below that of the end"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let mut cut: String = text.chars().take(room).collect();
    if let (false, Some(space)) = (killwords, cut.rfind(' ')) {
        cut.truncate(space);
    }
    Ok(Value::from(cut + &end))
}

/// Where a text is filled up.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// `text` filled up to `width` characters. Centered as Python's `str.center`: of an odd number the
/// larger part is on the left if `width` is odd.
pub(super) fn padded(
    state: &State,
    text: &str,
    width: i64,
    fill: char,
    side: Side,
) -> Result<Value, Error> {
    let room = width.saturating_sub(text.chars().count() as i64).max(0) as usize;
    state.consume_fuel(room as u64 / 16)?;
    let left = match side {
        Side::Left => room,
        Side::Right => 0,
        Side::Both => room / 2 + (room & width as usize & 1),
    };
    let mut out = String::with_capacity(text.len() + room);
    out.extend(std::iter::repeat_n(fill, left));
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, room - left));
    Ok(Value::from(out))
}

/// A text in percent-encoding; pairs, or an object's fields, as a query.
fn urlencode(state: &State, value: Value) -> Result<Value, Error> {
    python::count(state, &value)?;
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => value
            .try_iter()?
            .map(|key| Ok((key.clone(), value.get_item(&key)?)))
            .collect::<Result<_, Error>>()?,
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .map(|pair| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)))
            .collect::<Result<_, Error>>()?,
        _ => return Ok(Value::from(quoted(&python::str(state, &value)?, true))),
    };
    let mut query = Vec::new();
    for (key, value) in pairs {
        let (key, value) = (python::str(state, &key)?, python::str(state, &value)?);
        query.push(format!("{}={}", quoted(&key, false), quoted(&value, false)));
    }
    Ok(Value::from(query.join("&")))
}

/// Percent-encoded, slashes only in paths left alone, and in queries `+` for spaces.
fn quoted(text: &str, path: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(byte as char);
            }
            b'/' if path => out.push('/'),
            b' ' if !path => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
