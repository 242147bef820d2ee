//! What templates call: the functions and string methods of the Python side.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::from_args;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::filters::{self, Side};
use super::python;

/// The message of a template's `raise_exception`, carried as the source of the engine's error.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `raise_exception(message)`: how a template refuses messages.
pub(super) fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    let message = python::str(state, &message)?;
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

/// Methods of Python's `str` that the engine's own table leaves out, and then that table.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    args.iter().try_for_each(|arg| python::count(state, arg))?;
    if let Some(text) = value.as_str() {
        if let Some(result) = made(state, text, method, args) {
            return result;
        }
        if let Some(result) = string_method(text, method, args) {
            return result;
        }
    }
    if matches!(method, "count" | "index") {
        // Of a list: compares each item.
        python::count(state, value)?;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Methods whose result may be much longer than the text.
fn made(
    state: &mut State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    let side = match method {
        "center" => Side::Both,
        "ljust" => Side::Right,
        "rjust" => Side::Left,
        "zfill" => {
            let (sign, digits) = text.split_at(text.starts_with(['+', '-']) as usize);
            return Some(from_args(args).and_then(|(width,): (i64,)| {
                let width = width.saturating_sub(sign.len() as i64);
                let filled = filters::padded(state, digits, width, '0', Side::Left)?;
                Ok(Value::from(format!("{sign}{filled}")))
            }));
        }
        "replace" => {
            return Some(from_args(args).and_then(
                |(old, new, count): (&str, &str, Option<i64>)| {
                    let count = count.and_then(|count| usize::try_from(count).ok());
                    filters::replaced(state, text, old, new, count).map(Value::from)
                },
            ));
        }
        "join" => {
            return Some(
                from_args(args).and_then(|(items,): (Value,)| joined(state, text, &items)),
            );
        }
        "format" => return Some(str_format(state, text, args)),
        "index" | "rindex" => {
            let find = method.replace("index", "find");
            let found = pycompat::unknown_method_callback(state, &Value::from(text), &find, args);
            let missing = || Error::new(ErrorKind::InvalidOperation, "substring not found");
            return Some(found.and_then(|at| match at.as_i64() {
                Some(-1) => Err(missing()),
                _ => Ok(at),
            }));
        }
        _ => return None,
    };
    Some(from_args(args).and_then(|(width, fill): (i64, Option<char>)| {
        filters::padded(state, text, width, fill.unwrap_or(' '), side)
    }))
}

/// `separator.join(items)`, which takes strings only.
fn joined(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in items.try_iter()?.enumerate() {
        if i > 0 {
            state.consume_fuel(1 + separator.len() as u64 / 64)?;
            out.push_str(separator);
        }
        let reason = || format!("join: item {i} is of kind {}, not a string", item.kind());
        let text =
            item.as_str().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, reason()))?;
        state.consume_fuel(text.len() as u64 / 64)?;
        out.push_str(text);
    }
    Ok(Value::from(out))
}

/// `text.format(…)`: where a field has no format, the value is spelled as Python spells it.
fn str_format(state: &mut State, text: &str, args: &[Value]) -> Result<Value, Error> {
    // A width is a number of characters that is paid for first.
    let digits = |part: &str| part.parse::<u64>().unwrap_or(0);
    let numbers = text.split(|c: char| !c.is_ascii_digit()).map(digits);
    let room = numbers.fold(0u64, u64::saturating_add);
    state.consume_fuel(room / 16)?;
    let bare = text.replace("{{", "").replace("}}", "");
    if bare.contains([':', '!', '.', '[']) || args.iter().any(Value::is_kwargs) {
        return pycompat::unknown_method_callback(state, &Value::from(text), "format", args);
    }
    let spelled = args.iter().map(|arg| python::str(state, arg).map(Value::from));
    let spelled = spelled.collect::<Result<Vec<Value>, Error>>()?;
    pycompat::unknown_method_callback(state, &Value::from(text), "format", &spelled)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => from_args(args)
            .map(|(affix,): (&str,)| Value::from(text.strip_prefix(affix).unwrap_or(text))),
        "removesuffix" => from_args(args)
            .map(|(affix,): (&str,)| Value::from(text.strip_suffix(affix).unwrap_or(text))),
        "partition" => from_args(args).and_then(|(separator,): (&str,)| {
            let cut = text.split_once(nonempty(separator)?);
            let (before, after) = cut.unwrap_or((text, ""));
            Ok(strings(&[before, if cut.is_some() { separator } else { "" }, after]))
        }),
        "rpartition" => from_args(args).and_then(|(separator,): (&str,)| {
            let cut = text.rsplit_once(nonempty(separator)?);
            let (before, after) = cut.unwrap_or(("", text));
            Ok(strings(&[before, if cut.is_some() { separator } else { "" }, after]))
        }),
        "rsplit" => from_args(args).and_then(|(separator, most): (&str, Option<i64>)| {
            let separator = nonempty(separator)?;
            let pieces = most.filter(|&n| n >= 0).map_or(usize::MAX, |n| n as usize + 1);
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            Ok(parts.iter().map(|&part| Value::from(part)).collect())
        }),
        "swapcase" => from_args(args).map(|(): ()| {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect::<String>(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }),
        "casefold" => from_args(args).map(|(): ()| Value::from(text.to_lowercase())),
        _ => return None,
    })
}

/// A tuple, as Python returns it.
fn strings(parts: &[&str]) -> Value {
    let parts: Vec<Value> = parts.iter().map(|&part| Value::from(part)).collect();
    Value::from(minijinja::value::Tuple::from(parts))
}

fn nonempty(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `strftime_now(format)` for `now`, in UTC and English.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |past| past.as_secs());
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let half_day = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let code = chars.next();
        let bare = code == Some('-');
        let code = if bare { chars.next() } else { code };
        let number = |value: i64| if bare { value.to_string() } else { format!("{value:02}") };
        text += &match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour as i64),
            Some('I') => number(half_day as i64),
            Some('M') => number(minute as i64),
            Some('S') => number(second as i64),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".into(),
            other => {
                let code: String = other.into_iter().collect();
                let reason = format!("strftime_now: the code `%{code}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from March, so that the
/// leap day is a year's last; 400 of them are one period of 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01
    let (period, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
    let first = (153 * month + 2) / 5;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (period * 400 + year + carry, month, day - first + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let cases = [
            (0, "Thursday 01 January 1970 00:00:00 AM 12"),
            (951_782_400, "Tuesday 29 February 2000 00:00:00 AM 12"),
            (1_709_210_096, "Thursday 29 February 2024 12:34:56 PM 12"),
            (4_107_542_399, "Sunday 28 February 2100 23:59:59 PM 11"),
        ];
        for (seconds, text) in cases {
            assert_eq!(strftime(at(seconds), "%A %d %B %Y %T %p %I").unwrap(), text);
        }
        assert_eq!(strftime(at(0), "%-d %b %y%%").unwrap(), "1 Jan 70%");
        assert!(strftime(at(0), "%Q").is_err() && strftime(at(0), "%").is_err());
    }
}
