//! Tokens to text as they are drawn, up to the texts that end an answer.

use crate::text::Codec;
use gradus::error::Result;

/// Tokens after which an incomplete character is taken for broken and given out.
const MAX_HELD: usize = 16;

/// The text of an answer, piece by piece. The pieces join to what the codec says of all tokens, up to the
/// first of the texts that end it.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    /// Tokens of the last piece, which give the next one its surroundings, and those since.
    ids: Vec<i32>,
    /// Number of `ids` whose text was given out.
    shown: usize,
    /// Text that may be the beginning of one that ends the answer.
    held: String,
}

/// What a token adds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub text: String,
    /// Whether one of the texts that end an answer is complete; it is not in the text.
    pub ends: bool,
}

impl Spoken {
    /// Adds a token that is no stop. `spelled`: special tokens are spelled out.
    ///
    /// # Errors
    /// What the codec says of ids that it does not have.
    pub fn push(
        &mut self,
        codec: &dyn Codec,
        id: i32,
        stop: &[String],
        spelled: bool,
    ) -> Result<Piece> {
        self.ids.push(id);
        let fresh = self.fresh(codec, spelled)?;
        let incomplete = fresh.ends_with(char::REPLACEMENT_CHARACTER);
        if incomplete && self.ids.len() - self.shown < MAX_HELD {
            return Ok(Piece { text: String::new(), ends: false });
        }
        if !fresh.is_empty() {
            self.ids.drain(..self.shown);
            self.shown = self.ids.len();
        }
        self.held += &fresh;
        Ok(self.release(stop))
    }

    /// What is still held back, once no token follows.
    ///
    /// # Errors
    /// As [`Spoken::push`].
    pub fn finish(&mut self, codec: &dyn Codec, stop: &[String], spelled: bool) -> Result<Piece> {
        self.held += &self.fresh(codec, spelled)?;
        self.shown = self.ids.len();
        let mut piece = self.release(stop);
        if !piece.ends {
            piece.text += &std::mem::take(&mut self.held);
        }
        Ok(piece)
    }

    /// Gives out what can no longer become one of `stop`.
    fn release(&mut self, stop: &[String]) -> Piece {
        let found = stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            let text = self.held[..at].to_string();
            self.held.clear();
            return Piece { text, ends: true };
        }
        let begins = |at: &usize| stop.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.into_iter().find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        Piece { text: std::mem::replace(&mut self.held, rest), ends: false }
    }

    /// Text of the tokens not given out yet.
    fn fresh(&self, codec: &dyn Codec, spelled: bool) -> Result<String> {
        let text = |ids: &[i32]| match spelled {
            true => codec.decode_spelled(ids),
            false => codec.decode(ids),
        };
        let (before, after) = (text(&self.ids[..self.shown])?, text(&self.ids)?);
        // Decoders that tidy spaces may rewrite what was given out; what is new starts at the first
        // difference then.
        let same = before.bytes().zip(after.bytes()).take_while(|(a, b)| a == b).count();
        let start = (0..=same).rev().find(|&at| after.is_char_boundary(at)).unwrap_or(0);
        Ok(after[start..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Bytes;

    /// The pieces of the bytes of `text`, and whether it was ended.
    fn pieces(text: &str, stop: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<String> = stop.iter().map(|stop| stop.to_string()).collect();
        let (mut spoken, codec, mut out) = (Spoken::default(), Bytes::new(&[]), Vec::new());
        for byte in text.bytes() {
            let piece = spoken.push(&codec, byte.into(), &stop, false).unwrap();
            out.push(piece.text);
            if piece.ends {
                return (out, true);
            }
        }
        let last = spoken.finish(&codec, &stop, false).unwrap();
        out.push(last.text);
        (out, last.ends)
    }

    #[test]
    fn pieces_join_to_the_text_and_characters_stay_whole() {
        let (pieces, ends) = pieces("zwölf €", &[]);
        assert_eq!((pieces.concat().as_str(), ends), ("zwölf €", false));
        assert_eq!(pieces[2..4], ["", "ö"]);
    }

    #[test]
    fn a_text_that_ends_an_answer_is_held_back_and_left_out() {
        let (all, ends) = pieces("one</two</s>three", &["</s>", "never"]);
        assert_eq!((all.concat().as_str(), ends), ("one</two", true));
        // `ne` might have begun the second of them.
        assert_eq!(all[..6], ["o", "", "", "ne", "", "</t"]);
        // What only begins one comes at the end.
        let (all, ends) = pieces("one</", &["</s>"]);
        assert_eq!((all.concat().as_str(), ends), ("one</", false));
        // The first of several counts.
        assert_eq!(pieces("abcd", &["cd", "bc"]).0.concat(), "a");
        assert_eq!(pieces("aab", &["ab"]), (vec!["".into(), "a".into(), "".into()], true));
    }
}
