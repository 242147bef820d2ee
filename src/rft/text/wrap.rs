//! The filter `wordwrap`, whose lines end where those of Python's `textwrap` do.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};

use super::python;

/// How lines are broken.
struct Wrap {
    width: usize,
    break_long_words: bool,
    break_on_hyphens: bool,
}

/// `wordwrap(width=79, break_long_words=true, wrapstring="\n", break_on_hyphens=true)`.
pub(super) fn wordwrap(
    state: &State,
    value: Value,
    width: Option<i64>,
    break_long_words: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let width = options.get::<Option<i64>>("width")?.or(width).unwrap_or(79);
    let long = options.get::<Option<bool>>("break_long_words")?.or(break_long_words);
    let hyphens = options.get::<Option<bool>>("break_on_hyphens")?;
    let end = options.get::<Option<String>>("wrapstring")?.unwrap_or("\n".into());
    options.assert_all_used()?;
    let wrap = Wrap {
        width: usize::try_from(width).ok().filter(|&width| width > 0).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, "wordwrap: the width is not above 0")
        })?,
        break_long_words: long.unwrap_or(true),
        break_on_hyphens: hyphens.unwrap_or(true),
    };
    let text = python::str(state, &value)?;
    // Every character may become a line.
    state.consume_fuel((text.len() as u64).saturating_mul(1 + end.len() as u64) / 16)?;
    let lines: Vec<String> = text.lines().map(|line| wrap.lines(line).join(&end)).collect();
    Ok(Value::from(lines.join(&end)))
}

fn is_space(c: char) -> bool {
    "\t\n\u{b}\u{c}\r ".contains(c)
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn is_word(c: char) -> bool {
    is_letter(c) || c.is_numeric() || "!\"'&.,?".contains(c)
}

impl Wrap {
    fn lines(&self, line: &str) -> Vec<String> {
        let line: Vec<char> = line.chars().collect();
        let mut chunks: Vec<&[char]> = self.chunks(&line);
        chunks.reverse();
        let mut lines: Vec<String> = Vec::new();
        while !chunks.is_empty() {
            let blank = |chunk: &&[char]| chunk.iter().all(|&c| is_space(c));
            if !lines.is_empty() && chunks.last().is_some_and(blank) {
                chunks.pop();
            }
            let (mut now, mut length) = (Vec::<&[char]>::new(), 0);
            while let Some(chunk) = chunks.pop_if(|chunk| length + chunk.len() <= self.width) {
                length += chunk.len();
                now.push(chunk);
            }
            if let Some(chunk) = chunks.pop_if(|chunk| chunk.len() > self.width) {
                self.long_word(chunk, self.width - length, &mut now, &mut chunks);
            }
            if now.last().is_some_and(blank) {
                now.pop();
            }
            if !now.is_empty() {
                lines.push(now.concat().into_iter().collect());
            }
        }
        lines
    }

    /// A word that fits on no line: as much of it as there is `room`, or all of it on a line.
    fn long_word<'a>(
        &self,
        chunk: &'a [char],
        room: usize,
        now: &mut Vec<&'a [char]>,
        chunks: &mut Vec<&'a [char]>,
    ) {
        if !self.break_long_words {
            if now.is_empty() {
                now.push(chunk)
            } else {
                chunks.push(chunk)
            }
            return;
        }
        let mut end = room;
        if self.break_on_hyphens && chunk.len() > room {
            let hyphen = chunk[..room].iter().rposition(|&c| c == '-');
            if let Some(at) = hyphen.filter(|&at| at > 0 && chunk[..at].iter().any(|&c| c != '-')) {
                end = at + 1;
            }
        }
        // Also where it is empty: the space before it then stays.
        now.push(&chunk[..end]);
        chunks.push(&chunk[end..]);
    }

    /// Words and the spaces between them; words end behind hyphens too.
    fn chunks<'a>(&self, chars: &'a [char]) -> Vec<&'a [char]> {
        let (mut chunks, mut start) = (Vec::new(), 0);
        while start < chars.len() {
            let spaces = chars[start..].iter().take_while(|&&c| is_space(c)).count();
            let end = start
                + if spaces > 0 { spaces } else { self.word(&chars[start..], &chars[..start]) };
            chunks.push(&chars[start..end]);
            start = end;
        }
        chunks
    }

    /// Length of the word that `rest` begins with.
    fn word(&self, rest: &[char], before: &[char]) -> usize {
        let end = rest.iter().position(|&c| is_space(c)).unwrap_or(rest.len());
        if !self.break_on_hyphens {
            return end;
        }
        let dashes = rest.iter().take_while(|&&c| c == '-').count();
        let word_at = |i: usize| rest.get(i).is_some_and(|&c| is_letter(c) || c.is_numeric());
        if dashes >= 2 && before.last().is_some_and(|&c| is_word(c)) && word_at(dashes) {
            return dashes;
        }
        (1..end).find(|&at| self.breaks(rest, at)).unwrap_or(end)
    }

    /// Whether a word may end before `rest[at]`: behind a hyphen between letters, or before a dash.
    fn breaks(&self, rest: &[char], at: usize) -> bool {
        let letter = |i: usize| rest.get(i).is_some_and(|&c| is_letter(c));
        if rest[at - 1] == '-' {
            let two = at >= 3 && letter(at - 3) && letter(at - 2);
            let one = at >= 4 && letter(at - 4) && rest[at - 3] == '-' && is_word(rest[at - 2]);
            let after =
                letter(at) && (letter(at + 1) || rest.get(at + 1) == Some(&'-') && letter(at + 2));
            if (two || one) && after {
                return true;
            }
        }
        // A run of dashes is counted from its start only.
        is_word(rest[at - 1]) && {
            let dashes = rest[at..].iter().take_while(|&&c| c == '-').count();
            let word = rest.get(at + dashes).is_some_and(|&c| is_letter(c) || c.is_numeric());
            dashes >= 2 && word
        }
    }
}
