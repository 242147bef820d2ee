//! How what an environment says is written behind an answer.
//!
//! Behind an answer stand what closes it, what was said as a user's message, and what opens the next
//! answer. With a chat template this text is the difference of two renderings: of the conversation with
//! answer and reply, and of what stood before. That is only what the template would print if it is
//! append-only: whatever it has printed stays when messages follow. Many templates are; those that drop
//! reasoning from earlier answers are not, and are refused unless a run says that the policy reads its own
//! answers as it sampled them. Without a template the plain form is a line break, what is said, and another
//! line break.

use crate::text::Codec;
use gradus::error::Result;

#[cfg(feature = "hf")]
use {
    crate::text::{ChatOptions, ChatTemplate},
    gradus::error::Error,
    serde_json::{Value, json},
};

/// The text around what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Closes the answer and opens the message.
    before: String,
    /// Closes the message and opens the next answer.
    after: String,
}

impl Frame {
    /// The form of models without a chat template.
    pub fn plain() -> Frame {
        Frame { before: "\n".into(), after: "\n".into() }
    }

    /// Ids of what is said behind an answer that ends with the token `last`. A token that closes the answer
    /// and was sampled is not written again.
    ///
    /// # Errors
    /// `InvalidArgument` for a text that the vocabulary cannot spell.
    pub fn ids(&self, codec: &dyn Codec, said: &str, last: Option<i32>) -> Result<Vec<i32>> {
        let Frame { before, after } = self;
        let mut ids = codec.encode_rendered(&format!("{before}{said}{after}"))?;
        let closed = last.filter(|id| codec.stops().contains(id) && ids.first() == Some(id));
        ids.drain(..closed.iter().len());
        Ok(ids)
    }
}

/// Messages that templates are tried on.
#[cfg(feature = "hf")]
const TRIED: [&str; 5] = [
    "first words of a user",
    "first words of an answer",
    "second words of a user",
    "second words of an answer",
    "third words of a user",
];

/// An answer that reasons first.
#[cfg(feature = "hf")]
const REASONS: &str = "<think>\nwords of a thought\n</think>\n\nwords of a conclusion";

#[cfg(feature = "hf")]
impl Frame {
    /// The form that `template` gives it. `as_sampled`: earlier answers may have another form in the
    /// template's own rendering than the policy gave them.
    ///
    /// # Errors
    /// `Config` for a template that is not append-only; what it says to the messages.
    pub fn of(template: &ChatTemplate, options: &ChatOptions, as_sampled: bool) -> Result<Frame> {
        let render = |said: &[&str]| {
            let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
            let message = |(i, text): (usize, &&str)| json!({ "role": role(i), "content": text });
            let messages: Vec<Value> = said.iter().enumerate().map(message).collect();
            template.render(&messages, options)
        };
        let begun = render(&TRIED[..1])?;
        let behind = render(&TRIED[..3])?;
        let broken = |what: &str| {
            let reason = format!(
                "the chat template {} is not append-only: it prints {what} otherwise once something is \
                 said behind it, so that a policy would be trained on another text than it sampled; a run \
                 without env.kind can use it",
                template.path().display()
            );
            Error::config("env.kind", reason)
        };
        let rest = behind.strip_prefix(begun.as_str());
        let rest = rest.and_then(|rest| rest.strip_prefix(TRIED[1]));
        let rest = rest.ok_or_else(|| broken("an answer"))?;
        let (before, after) = rest.split_once(TRIED[2]).ok_or_else(|| broken("a message"))?;
        let frame = Frame { before: before.into(), after: after.into() };
        let then = format!("{behind}{}{before}{}{after}", TRIED[3], TRIED[4]);
        if render(&TRIED)? != then {
            return Err(broken("a second answer"));
        }
        let reasoned = format!("{begun}{REASONS}{before}{}{after}", TRIED[2]);
        if !as_sampled && render(&[TRIED[0], REASONS, TRIED[2]])? != reasoned {
            let Error::Config { key, reason } = broken("an answer with reasoning") else {
                return Err(broken("an answer with reasoning"));
            };
            let reason = format!(
                "{reason}, and so can one with env.history = as_sampled, in which the policy reads its \
                 reasoning as it wrote it"
            );
            return Err(Error::Config { key, reason });
        }
        Ok(frame)
    }
}

#[cfg(all(test, feature = "hf"))]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::text::Bytes;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                          {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn frame(source: &str, as_sampled: bool) -> Result<Frame> {
        let template = ChatTemplate::new("a/chat_template.jinja", source, Map::new())?;
        Frame::of(&template, &ChatOptions::default(), as_sampled)
    }

    #[test]
    fn what_is_said_is_the_difference_of_two_renderings() {
        let found = frame(CHATML, false).unwrap();
        assert_eq!(found.before, "<|im_end|>\n<|im_start|>user\n");
        assert_eq!(found.after, "<|im_end|>\n<|im_start|>assistant\n");
        // A template with a text of its own at the beginning, and one that numbers nothing.
        let begun = format!("<s>system words\n{CHATML}");
        assert_eq!(frame(&begun, false).unwrap(), found);
    }

    #[test]
    fn templates_that_are_not_append_only_are_refused() {
        let thoughtless = CHATML.replace(
            "{{ m.content }}",
            "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}",
        );
        let error = frame(&thoughtless, false).unwrap_err().to_string();
        for word in
            ["`env.kind`", "a/chat_template.jinja", "with reasoning", "env.history = as_sampled"]
        {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(frame(&thoughtless, true).unwrap(), frame(CHATML, true).unwrap());
        let last_only = "{{ messages[-1].content }}";
        let upper = CHATML.replace("m.content }}", "m.content | upper }}");
        let counted =
            CHATML.replace("<|im_start|>{{ m.role }}", "{{ messages | length }}{{ m.role }}");
        let sides = CHATML.replace(
            "<|im_start|>{{ m.role }}",
            "{% if m.role == 'user' %}{{ loop.index }}{% endif %}<|im_start|>{{ m.role }}",
        );
        for (source, what) in [
            (last_only, "an answer"),
            (upper.as_str(), "an answer"),
            (counted.as_str(), "an answer"),
            (sides.as_str(), "a second answer"),
        ] {
            for as_sampled in [false, true] {
                let error = frame(source, as_sampled).unwrap_err().to_string();
                assert!(error.contains(&format!("prints {what} otherwise")), "{error}");
            }
        }
    }

    #[test]
    fn a_mark_that_was_sampled_is_not_written_again() {
        let codec = Bytes::new(&[b'.' as i32]);
        let frame = Frame { before: ".\n".into(), after: "\n".into() };
        let ids = |last| frame.ids(&codec, "x", last).unwrap();
        let whole: Vec<i32> = b".\nx\n".iter().map(|&byte| byte as i32).collect();
        assert_eq!(ids(Some(b'.' as i32)), whole[1..]);
        assert_eq!(ids(Some(b'a' as i32)), whole);
        assert_eq!(ids(None), whole);
        assert_eq!(Frame::plain().ids(&codec, "x", Some(b'.' as i32)).unwrap(), whole[1..]);
    }
}
