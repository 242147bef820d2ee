//! Text as Python's `json` module writes it: what files and templates of Python's tools hold.

use serde_json::{Map, Value};

/// `repr` of a float: the shortest digits that read back, an exponent outside 1e-4 .. 1e16.
pub fn float(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(size) => ('-', size),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

/// How `dumps` writes; the default is that of `json.dumps(x, ensure_ascii=False)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Spaces a level; none: one line.
    pub indent: Option<usize>,
    /// What stands between items and behind keys, if not Python's default.
    pub separators: Option<(String, String)>,
    /// Keys in order.
    pub sort_keys: bool,
    /// Everything beyond ASCII as `\u` escapes.
    pub ensure_ascii: bool,
}

/// `json.dumps(value)` in `style`.
pub fn dumps(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    Writer { out: &mut out, style, level: 0 }.value(value);
    out
}

struct Writer<'a> {
    out: &'a mut String,
    style: &'a Style,
    level: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(x) => self.out.push_str(if *x { "true" } else { "false" }),
            Value::Number(x) => match x.as_f64().filter(|_| x.is_f64()) {
                Some(x) => self.out.push_str(&float(x)),
                None => self.out.push_str(&x.to_string()),
            },
            Value::String(text) => self.string(text),
            Value::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Value::Array(items) => {
                self.items('[', ']', items.iter(), |w, item| w.value(item));
            }
            Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            Value::Object(map) => self.object(map),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) {
        let mut entries: Vec<(&String, &Value)> = map.iter().collect();
        if self.style.sort_keys {
            entries.sort_by_key(|entry| entry.0);
        }
        self.items('{', '}', entries.into_iter(), |w, (key, value)| {
            w.string(key);
            let colon = w.style.separators.as_ref().map_or(": ", |s| &s.1);
            w.out.push_str(colon);
            w.value(value);
        });
    }

    fn items<I>(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = I>,
        mut write: impl FnMut(&mut Self, I),
    ) {
        let default = if self.style.indent.is_some() { "," } else { ", " };
        let comma = self.style.separators.as_ref().map_or(default, |s| &s.0);
        self.out.push(open);
        self.level += 1;
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.out.push_str(comma);
            }
            self.line();
            write(self, item);
        }
        self.level -= 1;
        self.line();
        self.out.push(close);
    }

    fn line(&mut self) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * self.level));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.style.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
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
        ] {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn values_read_as_python_writes_them() {
        let value = json!({"b": [1, 2.0, null], "a": {"ü\u{1}": "\"\n"}, "c": [], "d": {}});
        assert_eq!(
            dumps(&value, &Style::default()),
            "{\"b\": [1, 2.0, null], \"a\": {\"ü\\u0001\": \"\\\"\\n\"}, \"c\": [], \"d\": {}}"
        );
        let style =
            Style { indent: Some(2), sort_keys: true, ensure_ascii: true, separators: None };
        assert_eq!(
            dumps(&value, &style),
            "{\n  \"a\": {\n    \"\\u00fc\\u0001\": \"\\\"\\n\"\n  },\n  \"b\": [\n    1,\n    2.0,\n    null\n  ],\n  \"c\": [],\n  \"d\": {}\n}"
        );
    }
}
