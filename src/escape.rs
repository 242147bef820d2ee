//! Text of files, programs and models, safe to show on a terminal.
//!
//! A control character in a foreign file can clear a screen, move the cursor or forge a line of
//! output. What gradus prints of such text (errors, samples, notes) goes through here.

use std::fmt::{self, Write};

/// `text` with its control characters escaped as in Rust (`\u{1b}`, `\r`); line feeds and tabs stay.
///
/// Escaped are the Unicode controls (C0, DEL, C1), the line and paragraph separators U+2028 and
/// U+2029, and the overrides and isolates that reorder the characters around them (U+202A to
/// U+202E, U+2066 to U+2069).
///
/// ```
/// let shown = gradus::escape::escaped("right\u{1b}[2Jwrong\r").to_string();
/// assert_eq!(shown, "right\\u{1b}[2Jwrong\\r");
/// ```
pub fn escaped(text: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| Escaping { to: f, newline: "\n" }.write_str(text))
}

/// Escapes what is written through it. Line feeds become `newline`.
pub(crate) struct Escaping<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    newline: &'static str,
}

impl<'a, 'b> Escaping<'a, 'b> {
    /// For a message: its further lines are indented, so that none of them can pass for a message
    /// of its own.
    pub fn message(to: &'a mut fmt::Formatter<'b>) -> Escaping<'a, 'b> {
        Escaping { to, newline: "\n  " }
    }
}

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = 0;
        for (at, c) in text.char_indices().filter(|&(_, c)| is_unsafe(c)) {
            self.to.write_str(&text[plain..at])?;
            match c {
                '\n' => self.to.write_str(self.newline)?,
                _ => write!(self.to, "{}", c.escape_default())?,
            }
            plain = at + c.len_utf8();
        }
        self.to.write_str(&text[plain..])
    }
}

fn is_unsafe(c: char) -> bool {
    let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\t') || reorders || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_or_reorders_text_passes() {
        for code in 0..=0x10_ffff {
            let Some(c) = char::from_u32(code) else { continue };
            let text = format!("a{c}b");
            let shown = escaped(&text).to_string();
            let moves = (c.is_control() && !"\t\n".contains(c))
                || "\u{2028}\u{2029}\u{202e}\u{2066}".contains(c);
            match moves {
                true => assert!(shown.is_ascii() && shown.contains('\\'), "{code:x}: {shown}"),
                false if !is_unsafe(c) || c == '\n' => assert_eq!(shown, text),
                false => {}
            }
        }
    }

    #[test]
    fn further_lines_of_an_error_are_indented() {
        let error = crate::Error::format("a\u{7}b", "one\nerror: forged\u{9b}31m").to_string();
        assert_eq!(error, "a\\u{7}b: one\n  error: forged\\u{9b}31m");
    }
}
