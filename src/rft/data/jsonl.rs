//! JSON rows: one object per line, or one array of objects.
//!
//! Stricter than most readers where leniency hides mistakes: a key that appears twice is an error
//! (others keep one of the two), and so is a line that is no object. Every error names its line.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::Row;
use crate::io::json;
use crate::text::wide;
use gradus::error::{Error, Result};

/// Longest line, in bytes.
pub const LINE_LIMIT: u64 = 64 << 20;
/// Longest file that is one array, in bytes: it is read as a whole.
pub const ARRAY_LIMIT: u64 = 1 << 30;

/// Rows of a file of JSON lines, read one by one. Empty lines are skipped; a byte order mark and
/// line ends of either kind are taken.
pub struct JsonLines<R> {
    reader: R,
    path: PathBuf,
    line: u64,
    failed: bool,
}

impl<R: BufRead> JsonLines<R> {
    /// `path` is only for messages.
    pub fn new(reader: R, path: &Path) -> JsonLines<R> {
        JsonLines { reader, path: path.to_owned(), line: 0, failed: false }
    }

    /// The next line that is not empty, without its end.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut bytes = Vec::new();
            self.line += 1;
            let mut reader = self.reader.by_ref().take(LINE_LIMIT + 1);
            let read = reader.read_until(b'\n', &mut bytes).map_err(Error::io(&self.path))?;
            if read == 0 {
                return Ok(None);
            }
            if bytes.len() as u64 > LINE_LIMIT {
                return Err(self.wrong(format!("is longer than {LINE_LIMIT} bytes")));
            }
            if self.line == 1 && bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    fn wrong(&self, reason: impl fmt::Display) -> Error {
        Error::format(&self.path, format!("line {}: {reason}", self.line))
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        let Some(bytes) = self.next_line()? else { return Ok(None) };
        let value: Strict = serde_json::from_slice(&bytes).map_err(|e| {
            // The reader counts lines within what it was given, which is one line.
            let (words, column) = (e.to_string(), e.column());
            let words = words.split(" at line ").next().unwrap_or_default();
            self.wrong(format!("column {column}: {words}"))
        })?;
        match with_wide(value.0, &bytes).map_err(|e| self.wrong(e))? {
            Value::Object(row) => Ok(Some(row)),
            other => Err(self.wrong(format!("is {}, not an object", kind(&other)))),
        }
    }
}

impl<R: BufRead> Iterator for JsonLines<R> {
    type Item = Result<Row>;

    /// After an error there are no more rows.
    fn next(&mut self) -> Option<Result<Row>> {
        if self.failed {
            return None;
        }
        let row = self.next_row().transpose();
        self.failed = matches!(row, Some(Err(_)));
        row
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// All rows of a file of JSON lines or of one array of objects; the first character that is not
/// space tells which.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let (file, size) = json::open(path)?;
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().map_err(Error::io(path))?;
    let start = start.strip_prefix(BOM).unwrap_or(start).trim_ascii_start();
    if start.first() != Some(&b'[') {
        return JsonLines::new(reader, path).collect();
    }
    if size > ARRAY_LIMIT {
        let reason = format!("is one array of more than {ARRAY_LIMIT} bytes; use JSON lines");
        return Err(Error::format(path, reason));
    }
    parse_array(&json::read_limited(path, ARRAY_LIMIT)?, path)
}

/// Rows of an array of objects. `path` is only for messages.
pub fn parse_array(bytes: &[u8], path: &Path) -> Result<Vec<Row>> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let values: Vec<Strict> =
        serde_json::from_slice(bytes).map_err(|e| Error::format(path, e.to_string()))?;
    let values = Value::Array(values.into_iter().map(|value| value.0).collect());
    let values = with_wide(values, bytes).map_err(|e| Error::format(path, e.to_string()))?;
    let Value::Array(values) = values else { return Ok(Vec::new()) };
    let row = |(i, value): (usize, Value)| match value {
        Value::Object(row) => Ok(row),
        other => Err(Error::format(path, format!("item {i} is {}, not an object", kind(&other)))),
    };
    values.into_iter().enumerate().map(row).collect()
}

/// `value`, which was read from `bytes`, with integers of more than 64 bits marked instead of made
/// floats.
fn with_wide(value: Value, bytes: &[u8]) -> serde_json::Result<Value> {
    match wide::suspected(bytes) {
        true => wide::marked(&serde_json::from_slice::<Box<RawValue>>(bytes)?),
        false => Ok(value),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value none of whose objects has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Bool(v)))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> std::result::Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> std::result::Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> std::result::Result<Strict, E> {
        Number::from_f64(v).map(|n| Strict(n.into())).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> std::result::Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_string<E: de::Error>(self, v: String) -> std::result::Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Strict, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Strict(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Strict, A::Error> {
        let mut fields = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{key}` appears twice")));
            }
            fields.insert(key, value);
        }
        Ok(Strict(Value::Object(fields)))
    }
}
