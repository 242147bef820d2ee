//! PTX texts as the library holds them: compressed, because the text is nine times as long.

use std::iter;
use std::path::PathBuf;
use std::sync::OnceLock;

use miniz_oxide::inflate::{TINFLStatus, decompress_slice_iter_to_slice};

use crate::alloc::{filled, or_out_of_memory};
use crate::device::kernels::KernelSet;
use crate::error::{Error, Result};

/// A PTX text that `kernelc` compressed. It is unpacked when somebody first asks for it, which takes milliseconds,
/// and stays for as long as the program runs, because GPUs keep what they loaded.
#[derive(Debug)]
pub(crate) struct Packed {
    /// What the text is for.
    pub set: KernelSet,
    /// A zlib stream.
    bytes: &'static [u8],
    /// Bytes of the text in it.
    length: usize,
    text: OnceLock<String>,
}

impl Packed {
    /// A text of `length` bytes. Its `.target` line may be another set's: most sources compile to the same text
    /// for each, and are held once.
    pub const fn new(set: KernelSet, length: usize, bytes: &'static [u8]) -> Packed {
        Packed { set, bytes, length, text: OnceLock::new() }
    }

    /// The text. `name` is that of the source.
    pub fn text(&'static self, name: &'static str) -> Result<&'static str> {
        if let Some(text) = self.text.get() {
            return Ok(text);
        }
        // Threads that come here at once unpack it each, and keep the first.
        let text = self.unpack(name)?;
        Ok(self.text.get_or_init(|| text))
    }

    fn unpack(&self, name: &'static str) -> Result<String> {
        let damaged = |what: String| {
            let path = PathBuf::from(format!("{name}.{}.ptx", self.set.name()));
            Error::Format { path, reason: format!("the library's copy is damaged: {what}") }
        };
        let mut text = or_out_of_memory(name, || filled(0u8, self.length))?;
        let found = decompress_slice_iter_to_slice(&mut text, iter::once(self.bytes), true, false);
        match found {
            Ok(length) if length == self.length => {}
            Ok(length) => return Err(damaged(format!("{length} bytes of {}", self.length))),
            Err(TINFLStatus::HasMoreOutput) => {
                return Err(damaged(format!("more than {} bytes", self.length)));
            }
            Err(status) => return Err(damaged(format!("{status:?}"))),
        }
        let text = String::from_utf8(text).map_err(|e| damaged(e.to_string()))?;
        or_out_of_memory(name, || for_target(text, self.set.target())).and_then(|found| {
            found.ok_or_else(|| damaged(format!("no line `.target {}`", self.set.target())))
        })
    }
}

/// The text with `target` in its `.target` line. None if there is no such line.
fn for_target(mut text: String, target: &str) -> Option<String> {
    const LINE: &str = "\n.target ";
    let begin = text.find(LINE)? + LINE.len();
    let end = begin + text[begin..].find('\n')?;
    if &text[begin..end] != target {
        text.replace_range(begin..end, target);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::compress_to_vec_zlib;

    use super::*;

    const TEXT: &str = "// head\n.version 8.4\n.target sm_80\n.address_size 64\n";

    fn packed(set: KernelSet, length: usize, bytes: &[u8]) -> &'static Packed {
        Box::leak(Box::new(Packed::new(set, length, bytes.to_vec().leak())))
    }

    #[test]
    fn a_text_is_unpacked_once_for_its_own_target() {
        let bytes = compress_to_vec_zlib(TEXT.as_bytes(), 6);
        let same = packed(KernelSet::Sm80, TEXT.len(), &bytes);
        let first = same.text("op").unwrap();
        assert_eq!(first, TEXT);
        let others = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| same.text("op").unwrap())).collect();
            asking.into_iter().map(|thread| thread.join().unwrap().as_ptr()).collect::<Vec<_>>()
        });
        assert!(others.iter().all(|at| *at == first.as_ptr()), "one text, whoever asks");
        let other = packed(KernelSet::Sm90a, TEXT.len(), &bytes).text("op").unwrap();
        assert_eq!(other, TEXT.replace("sm_80", "sm_90a"));
    }

    #[test]
    fn threads_that_ask_first_at_once_get_one_text() {
        let bytes = compress_to_vec_zlib(TEXT.as_bytes(), 6);
        let own = packed(KernelSet::Sm90a, TEXT.len(), &bytes);
        let begin = std::sync::Barrier::new(4);
        let places = std::thread::scope(|scope| {
            let ask = || {
                begin.wait();
                own.text("op").unwrap().as_ptr() as usize
            };
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(places.iter().all(|at| *at == places[0]), "{places:?}");
    }

    #[test]
    fn a_damaged_copy_is_an_error_that_names_the_text() {
        let bytes = compress_to_vec_zlib(TEXT.as_bytes(), 6);
        let mut flipped = bytes.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        let (length, foreign) = (TEXT.len(), compress_to_vec_zlib(&[0xff; 9], 6));
        let untargeted = compress_to_vec_zlib(b".version 8.4\n", 6);
        for (what, length, bytes) in [
            ("Adler32Mismatch", length, &flipped),
            ("FailedCannotMakeProgress", length, &bytes[..last - 9].to_vec()),
            ("more than 40 bytes", 40, &bytes),
            ("52 bytes of 60", 60, &bytes),
            ("invalid utf-8", 9, &foreign),
            ("no line `.target sm_80`", 13, &untargeted),
        ] {
            let error = packed(KernelSet::Sm80, length, bytes).text("op").unwrap_err().to_string();
            let named = "op.sm80.ptx: the library's copy is damaged: ";
            assert!(error.starts_with(named) && error.contains(what), "{what}: {error}");
        }
    }
}
