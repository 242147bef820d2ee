//! JSON files of others, read with bounds: a size limit, and no object with a key twice, of which a
//! map would silently keep one.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, FileType, Metadata};
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use gradus::error::{Error, Result};

/// Opens a regular file and tells its length. A pipe or a device could keep a reader waiting for ever,
/// or never end: neither is opened, also if it takes the file's place meanwhile.
///
/// # Errors
/// `Io`; `Format` for anything but a regular file.
pub fn open(path: &Path) -> Result<(File, u64)> {
    // Devices are told by their name: opening one can have an effect.
    regular(path, &std::fs::metadata(path).map_err(Error::io(path))?)?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path).map_err(Error::io(path))?;
    let about = file.metadata().map_err(Error::io(path))?;
    regular(path, &about)?;
    Ok((file, about.len()))
}

fn regular(path: &Path, about: &Metadata) -> Result<()> {
    let kind = about.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a folder" } else { special(kind) };
    Err(Error::format(path, format!("is {what}, not a regular file")))
}

#[cfg(unix)]
fn special(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match (kind.is_fifo(), kind.is_socket()) {
        (true, _) => "a pipe",
        (_, true) => "a socket",
        _ => "a device",
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "a device"
}

/// The bytes of a file of at most `limit` bytes.
///
/// # Errors
/// `Io`; `Format` for a longer file, or one that is not regular; `OutOfMemory`.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, size) = open(path)?;
    let mut bytes = Vec::new();
    if size <= limit {
        bytes
            .try_reserve_exact(size as usize)
            .map_err(|_| Error::OutOfMemory { what: path.display().to_string(), bytes: size })?;
        // The file may grow while it is read.
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path))?;
    }
    if size.max(bytes.len() as u64) > limit {
        return Err(Error::format(path, format!("is longer than the limit of {limit} bytes")));
    }
    Ok(bytes)
}

/// The text of a file of at most `limit` bytes.
///
/// # Errors
/// `Io`; `Format` for a longer file, one that is not regular, and anything but UTF-8; `OutOfMemory`.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read_limited(path, limit)?);
    text.map_err(|e| Error::format(path, format!("is not UTF-8: {}", e.utf8_error())))
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

    /// Nothing but a regular file is opened, and nothing waits.
    #[cfg(unix)]
    #[test]
    fn pipes_devices_folders_and_sockets_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pipe = std::ffi::CString::new(at("pipe").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();
        for (path, what) in [
            (at("pipe"), "a pipe"),
            (at("socket"), "a socket"),
            ("/dev/zero".into(), "a device"),
            (at("link"), "a device"),
            (at(""), "a folder"),
        ] {
            let name = path.display().to_string();
            for error in [
                open(&path).map(drop),
                read_limited(&path, 10).map(drop),
                read_text(&path, 10).map(drop),
                read_object(&path).map(drop),
                crate::io::tensor_file::TensorFile::open(&path).map(drop),
            ] {
                let error = error.unwrap_err().to_string();
                assert!(error.contains(&name) && error.contains(what), "{error}");
            }
        }
        std::fs::write(at("text"), [b'a', 0xFF]).unwrap();
        assert!(read_text(&at("text"), 10).unwrap_err().to_string().contains("UTF-8"));
    }
}
