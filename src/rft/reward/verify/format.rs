//! The shape of a completion.

use regex::{Regex, RegexBuilder};

use super::verdict;
use crate::reward::{Outcome, RewardInput, RewardOutcome};
use gradus::error::{Error, Result};

/// 1 if the completion, without the white space around it, has a given shape, else 0, or -1 if it is
/// signed.
#[derive(Clone, Debug)]
pub struct Format {
    shape: Shape,
    /// Whether a completion that was cut off scores 0.
    pub finished: bool,
    /// Whether any other shape scores -1. Together with a verifier by their minimum this is the
    /// reward of ReLIFT (arXiv:2506.07527): 1 or 0 for an answer, -1 for a broken shape.
    pub signed: bool,
}

#[derive(Clone, Debug)]
enum Shape {
    ThinkAnswer,
    Pattern(Regex),
}

/// Most memory of a compiled pattern and of the cache of one search, each.
const SIZE_LIMIT: usize = 1 << 20;

impl Format {
    /// The least and the largest score.
    pub fn bounds(&self) -> (f64, f64) {
        (if self.signed { -1.0 } else { 0.0 }, 1.0)
    }

    /// `<think>…</think>` and then `<answer>…</answer>`, nothing around them, each tag once. A
    /// pattern cannot say "once", and what it cannot say a policy learns to exploit. Where the
    /// prompt ends in `<think>`, as some chat templates do, the completion must not open it again;
    /// where there is no prompt it may leave it out.
    pub fn think_answer() -> Format {
        Format { shape: Shape::ThinkAnswer, finished: true, signed: false }
    }

    /// A regular expression in which `.` is any character, line ends included. It matches
    /// anywhere unless it says `^` and `$`. Matching takes time linear in the text, as there are
    /// no look-arounds and no back-references.
    ///
    /// # Errors
    /// `Config` if the pattern is none, or compiles to more than a mebibyte.
    pub fn new(pattern: &str) -> Result<Format> {
        let regex = RegexBuilder::new(pattern)
            .dot_matches_new_line(true)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .build()
            .map_err(|error| Error::config("reward", format!("format pattern: {error}")))?;
        Ok(Format { shape: Shape::Pattern(regex), finished: true, signed: false })
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let shaped = match &self.shape {
            Shape::ThinkAnswer => {
                let (text, prompt) = (input.completion.trim(), input.prompt.trim_end());
                let whole = || thinks_then_answers(text);
                let opened =
                    || !text.contains(THINK) && thinks_then_answers(&format!("{THINK}{text}"));
                match (prompt.is_empty(), prompt.ends_with(THINK)) {
                    (true, _) => whole() || opened(),
                    (false, true) => opened(),
                    (false, false) => whole(),
                }
            }
            Shape::Pattern(_) => self.matches(input.completion),
        };
        let right = (input.finished || !self.finished) && shaped;
        match self.signed && !right {
            true => Ok(RewardOutcome::Score(-1.0)),
            false => verdict(right),
        }
    }

    /// Whether `text` has the shape by itself.
    pub fn matches(&self, text: &str) -> bool {
        match &self.shape {
            Shape::ThinkAnswer => thinks_then_answers(text.trim()),
            Shape::Pattern(regex) => regex.is_match(text.trim()),
        }
    }
}

const THINK: &str = "<think>";

fn thinks_then_answers(text: &str) -> bool {
    let tags = [THINK, "</think>", "<answer>", "</answer>"];
    if tags.iter().any(|tag| text.matches(tag).count() != 1) {
        return false;
    }
    let Some(rest) = text.strip_prefix(THINK) else { return false };
    let Some((_, rest)) = rest.split_once("</think>") else { return false };
    let rest = rest.trim_start();
    rest.starts_with("<answer>") && rest.ends_with("</answer>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn think_then_answer_once() {
        let format = Format::think_answer();
        assert!(format.matches(" <think>a\nb</think>\n<answer>1</answer>\n"));
        for text in [
            "",
            "<think>a</think>",
            "<think>a</think> so <answer>1</answer>",
            "x <think>a</think><answer>1</answer>",
            "<think>a</think><answer>1</answer> x",
            "<think><think>a</think><answer>1</answer>",
            "<think>a</think><answer>1</answer><answer>2</answer>",
            "<answer>1</answer><think>a</think>",
            "<think>a<answer>1</answer></think>",
        ] {
            assert!(!format.matches(text), "{text}");
        }
    }

    #[test]
    fn the_template_may_have_opened_the_thought() {
        let format = Format::think_answer();
        let whole = "<think>a</think><answer>1</answer>";
        for (prompt, completion, right) in [
            ("", whole, true),
            ("", &whole[7..], true),
            ("Assistant: <think>\n", &whole[7..], true),
            ("Assistant: <think>\n", whole, false),
            ("Assistant:", whole, true),
            ("Assistant:", &whole[7..], false),
            ("", "<answer>1</answer>", false),
            ("", "</think></think><answer>1</answer>", false),
        ] {
            let fields = crate::reward::no_fields();
            let input = RewardInput { prompt, completion, finished: true, fields };
            assert_eq!(format.check(&input), verdict(right), "{prompt} {completion}");
        }
    }

    #[test]
    fn patterns() {
        let format = Format::new(r"^<think>.*</think>\s*<answer>.*</answer>$").unwrap();
        assert!(format.matches("<think>a\nb</think>\n<answer>1</answer>\n"));
        assert!(!format.matches("<think>a</think>"));
        for pattern in ["(", "a{100000}{1000}", "(?=a)", r"(a)\1"] {
            let error = Format::new(pattern).unwrap_err().to_string();
            assert!(error.contains("config `reward`"), "{error}");
        }
    }

    #[test]
    fn an_unfinished_completion_has_no_format() {
        let (mut format, fields) = (Format::new("a").unwrap(), crate::reward::no_fields());
        let input = RewardInput { prompt: "", completion: "a", finished: false, fields };
        assert_eq!(format.check(&input), verdict(false));
        format.finished = false;
        assert_eq!(format.check(&input), verdict(true));
        let mut signed = Format { signed: true, ..format };
        assert_eq!(signed.check(&input), verdict(true));
        signed.finished = true;
        assert_eq!(signed.check(&input), Ok(RewardOutcome::Score(-1.0)));
    }
}
