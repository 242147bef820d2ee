//! Text as Python's `json` module writes it: what files and templates of Python's tools hold.

use serde_json::Value;

/// `repr` of a float: the shortest digits that read back, an exponent below 1e-4 and from 1e16 on.
pub fn float(x: f64) -> String {
    if x != 0.0 && x.is_finite() && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(size) => ('-', size),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    match x {
        x if x.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        x => format!("{x:?}"),
    }
}

/// Appends `text` in quotes; with `ensure_ascii` everything beyond ASCII as `\\u` escapes.
pub fn string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `json.dumps(value, indent=2, sort_keys=True)`.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

fn write(value: &Value, level: usize, out: &mut String) {
    match value {
        Value::Number(x) => match x.as_f64().filter(|_| x.is_f64()) {
            Some(x) => out.push_str(&float(x)),
            None => out.push_str(&x.to_string()),
        },
        Value::String(text) => string(text, true, out),
        Value::Array(list) if !list.is_empty() => {
            items(['[', ']'], list.iter(), level, out, |item, out| write(item, level + 1, out));
        }
        Value::Object(map) if !map.is_empty() => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|entry| entry.0);
            items(['{', '}'], entries.into_iter(), level, out, |(key, value), out| {
                string(key, true, out);
                out.push_str(": ");
                write(value, level + 1, out);
            });
        }
        other => out.push_str(&other.to_string()),
    }
}

fn items<I>(
    [open, close]: [char; 2],
    items: impl Iterator<Item = I>,
    level: usize,
    out: &mut String,
    write: impl Fn(I, &mut String),
) {
    out.push(open);
    for (i, item) in items.enumerate() {
        out.push_str(if i > 0 { ",\n" } else { "\n" });
        out.push_str(&"  ".repeat(level + 1));
        write(item, out);
    }
    out.push('\n');
    out.push_str(&"  ".repeat(level));
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_read_as_python_writes_them() {
        for (x, text) in [
            (0.1, "0.1"),
            (2.0, "2.0"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (0.012345678, "0.012345678"),
            (-3.5e-100, "-3.5e-100"),
            (0.0, "0.0"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn values_read_as_python_writes_them() {
        let value = json!({"b": [1, 2.0, null], "a": {"ü\u{1}": "\"\n"}, "c": [], "d": {}});
        let want = r#"{
  "a": {
    "\u00fc\u0001": "\"\n"
  },
  "b": [
    1,
    2.0,
    null
  ],
  "c": [],
  "d": {}
}"#;
        assert_eq!(pretty(&value), want);
    }
}
