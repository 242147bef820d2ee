//! JSON files of others, read with bounds: a size limit, and no object with a key twice, of which a
//! map would silently keep one.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Opens a regular file and tells its length; a pipe or a device could keep a reader waiting for ever.
///
/// # Errors
/// `Io`; `Format` for anything but a regular file.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let about = std::fs::metadata(path).map_err(Error::io(path))?;
    if !about.is_file() {
        return Err(Error::format(path, "is not a regular file"));
    }
    Ok((File::open(path).map_err(Error::io(path))?, about.len()))
}

/// The bytes of a file of at most `limit` bytes.
///
/// # Errors
/// `Io`; `Format` for a longer file, or one that is not regular.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, size) = open(path)?;
    let mut bytes = Vec::new();
    if size <= limit {
        // The file may grow while it is read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    }
    if size.max(bytes.len() as u64) > limit {
        return Err(Error::format(path, format!("is longer than the limit of {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a JSON object of at most 16 MiB in which no object has a key twice.
///
/// # Errors
/// `Io`; `Format` for anything but such an object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_limited(path, 16 << 20)?;
    parse_object(&bytes).map_err(|e| Error::format(path, e))
}

/// The object in `bytes`, or what is wrong with them.
pub fn parse_object(bytes: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    if let Some(key) = repeated_key(bytes).map_err(|e| e.to_string())? {
        return Err(format!("key `{key}` appears twice"));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// A key that some object in `bytes` has twice, if there is one.
pub fn repeated_key(bytes: &[u8]) -> serde_json::Result<Option<String>> {
    let mut twice = None;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Keys(&mut twice).deserialize(&mut reader)?;
    reader.end()?;
    Ok(twice)
}

/// Walks a value of any kind and notes the first key that an object repeats.
struct Keys<'a>(&'a mut Option<String>);

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        while seq.next_element_seed(Keys(&mut *self.0))?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key_seed(std::marker::PhantomData::<String>)? {
            map.next_value_seed(Keys(&mut *self.0))?;
            if let Some(key) = seen.replace(key)
                && self.0.is_none()
            {
                *self.0 = Some(key);
            }
        }
        Ok(())
    }
}

/// A field of `object`, read as `T`; `None` if it is missing or null.
///
/// # Errors
/// What is wrong with the field, by name.
pub fn field<T: for<'de> Deserialize<'de>>(
    object: &Map<String, Value>,
    name: &str,
) -> std::result::Result<Option<T>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|e| format!("`{name}`: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_found_at_any_depth() {
        for (text, key) in [
            (r#"{"a":1,"b":{"c":[{"d":1,"d":2}]}}"#, Some("d")),
            (r#"{"a":1,"a":1}"#, Some("a")),
            (r#"{"a":{"a":{"a":null}},"b":[1.5,"a",true,-3]}"#, None),
        ] {
            assert_eq!(repeated_key(text.as_bytes()).unwrap().as_deref(), key, "{text}");
        }
        assert!(parse_object(br#"{"a":1,"a":2}"#).unwrap_err().contains("`a` appears twice"));
        assert!(parse_object(b"[]").is_err() && parse_object(b"{} x").is_err());
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let text = "[".repeat(100_000);
        assert!(repeated_key(text.as_bytes()).is_err());
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b' '; 2000]).unwrap();
        assert_eq!(read_limited(file.path(), 2000).unwrap().len(), 2000);
        assert!(read_limited(file.path(), 1999).is_err());
    }
}
