//! Regular expressions of foreign files, as Python's `re` reads them: with look-around and back
//! references, which no linear matcher has. Steps back are counted, so no pattern runs for long.

use std::path::{Path, PathBuf};

use fancy_regex::{Captures, Regex, RegexBuilder};

use gradus::error::{Error, Result};

/// Longest pattern in bytes, and all patterns of a field together.
const LONGEST: [usize; 2] = [16 << 10, 128 << 10];
/// Most steps back over a name, shared by the patterns of a field: some 10 ms.
const STEPS: usize = 100_000;
/// The least share of a pattern.
const LEAST: usize = 100;
/// Most bytes of a compiled part.
const COMPILED: usize = 1 << 20;

/// A compiled pattern with its place, for messages.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    steps: usize,
    key: &'static str,
    path: PathBuf,
}

impl Pattern {
    /// The patterns `texts` of field `key` in the file `path`.
    ///
    /// # Errors
    /// `Format` for what is no regular expression, or too large a one.
    pub fn all(path: &Path, key: &'static str, texts: &[String]) -> Result<Vec<Pattern>> {
        let bytes: usize = texts.iter().map(String::len).sum();
        if bytes > LONGEST[1] {
            let reason = format!("patterns of {bytes} bytes, at most {}", LONGEST[1]);
            return Err(Error::format(path, format!("`{key}`: {reason}")));
        }
        let steps = (STEPS / texts.len().max(1)).max(LEAST);
        texts.iter().map(|text| Pattern::new(path, key, text, steps)).collect()
    }

    fn new(path: &Path, key: &'static str, text: &str, steps: usize) -> Result<Pattern> {
        let wrong = |reason: String| Error::format(path, format!("`{key}`: {reason}"));
        if text.len() > LONGEST[0] {
            let reason = format!("a pattern of {} bytes, at most {}", text.len(), LONGEST[0]);
            return Err(wrong(reason));
        }
        let regex = RegexBuilder::new(text)
            .backtrack_limit(steps)
            .delegate_size_limit(COMPILED)
            .delegate_dfa_size_limit(COMPILED)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        Ok(Pattern { regex, steps, key, path: path.into() })
    }

    /// Whether `name` holds a match.
    ///
    /// # Errors
    /// `Format` if that takes more steps back than it may: 100,000, shared by the patterns of a field.
    pub fn matches(&self, name: &str) -> Result<bool> {
        self.regex.is_match(name).map_err(|e| self.failed(name, e))
    }

    /// The first match in `name`.
    ///
    /// # Errors
    /// `Format` if that takes more steps back than it may, as for [`Pattern::matches`].
    pub fn captures<'n>(&self, name: &'n str) -> Result<Option<Captures<'n>>> {
        self.regex.captures(name).map_err(|e| self.failed(name, e))
    }

    fn failed(&self, name: &str, error: fancy_regex::Error) -> Error {
        let steps = self.steps;
        let reason = format!("`{}`: matching `{name}`: {error} ({steps} steps)", self.key);
        Error::format(&self.path, reason)
    }
}
