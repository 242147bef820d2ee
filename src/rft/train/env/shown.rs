//! Demonstrations in the ids of an episode: what is shown is what the policy would sample and be told.

use super::Frame;
use crate::text::Codec;
use crate::train::task::Demo;
use gradus::error::{Error, Result};

/// A piece of a demonstration behind its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown<'a> {
    /// An answer, with its ids.
    Answer(&'a str, Vec<i32>),
    /// Ids of what is said to the answer before.
    Said(Vec<i32>),
}

impl Shown<'_> {
    /// The pieces of `demo`, in order. Every answer has an end of sequence, but for one that something
    /// follows and that ends with one of the texts `stop`: a sampled one would have ended there.
    ///
    /// # Errors
    /// `Config` for several turns without the `frame` in which things are said; `InvalidArgument` for a text
    /// that the vocabulary cannot spell.
    pub fn of<'a>(
        demo: &'a Demo,
        codec: &dyn Codec,
        frame: Option<&Frame>,
        stop: &[String],
    ) -> Result<Vec<Shown<'a>>> {
        let answer = |text: &'a str, last: bool| -> Result<(Shown<'a>, Option<i32>)> {
            let mut ids = codec.encode_rendered(text)?;
            let stopped = stop.iter().any(|stop| text.ends_with(stop.as_str()));
            ids.extend(codec.stops().first().filter(|_| last || !stopped));
            let end = ids.last().copied();
            Ok((Shown::Answer(text, ids), end))
        };
        let (first, mut end) = answer(&demo.answer, demo.then.is_empty())?;
        let mut pieces = vec![first];
        for (i, exchange) in demo.then.iter().enumerate() {
            let frame = frame.ok_or_else(|| {
                let reason = "nothing is said between turns, and a demonstration has several";
                Error::config("env.kind", reason)
            })?;
            pieces.push(Shown::Said(frame.ids(codec, &exchange.said, end)?));
            let (next, ends) = answer(&exchange.answer, i + 1 == demo.then.len())?;
            pieces.push(next);
            end = ends;
        }
        Ok(pieces)
    }

    /// The ids.
    #[cfg(feature = "hf")]
    pub fn ids(&self) -> &[i32] {
        match self {
            Shown::Answer(_, ids) | Shown::Said(ids) => ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Bytes, END, Exchange};
    use crate::train::task::Prompt;

    fn demo(then: &[(&str, &str)]) -> Demo {
        let exchange = |(said, answer): &(&str, &str)| Exchange {
            said: said.to_string(),
            answer: answer.to_string(),
        };
        let then = then.iter().map(exchange).collect();
        Demo { prompt: Prompt::plain("2*3="), answer: "<<2*3>>".into(), then }
    }

    /// The bytes that the driver of episodes makes of the same answers and replies.
    #[test]
    fn demonstrations_have_the_ids_of_episodes() {
        let (codec, frame) = (Bytes::new(&[END]), Frame::plain());
        let bytes = |demo: &Demo, stop: &[String]| -> Vec<u8> {
            let pieces = Shown::of(demo, &codec, Some(&frame), stop).unwrap();
            pieces.iter().flat_map(Shown::ids).map(|&id| id as u8).collect()
        };
        let two = demo(&[("6", "6")]);
        assert_eq!(bytes(&two, &[]), b"<<2*3>>\xff\n6\n6\xff");
        assert_eq!(bytes(&two, &[">>".into()]), b"<<2*3>>\n6\n6\xff");
        let three = demo(&[("6", "x<<1>>"), ("1", "6>>")]);
        assert_eq!(bytes(&three, &[">>".into()]), b"<<2*3>>\n6\nx<<1>>\n1\n6>>\xff");
        assert_eq!(bytes(&demo(&[]), &[">>".into()]), b"<<2*3>>\xff");
        let error = Shown::of(&two, &codec, None, &[]).unwrap_err().to_string();
        assert!(error.contains("`env.kind`: nothing is said between turns"), "{error}");
    }
}
