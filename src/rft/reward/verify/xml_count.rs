//! Marks of tags, counted.

use crate::reward::{Outcome, RewardInput};

use super::graded;

/// The share of the opening and closing marks of some tags that stand in the completion exactly once,
/// less a thousandth for each character behind the last mark, and never below 0. It is the term of the
/// GRPO demonstrations that leads a model to a shape step by step, which MOTIF (arXiv:2507.02851) uses
/// with weight 0.5.
///
/// Where the prompt ends in an opening mark, as some chat templates do, it counts as the completion's.
#[derive(Clone, Debug, PartialEq)]
pub struct XmlCount {
    tags: Vec<String>,
}

impl Default for XmlCount {
    fn default() -> XmlCount {
        XmlCount { tags: vec!["think".into(), "answer".into()] }
    }
}

/// What a character behind the last mark costs.
const SURPLUS: f64 = 0.001;

impl XmlCount {
    /// The tags whose names stand in `names`, with commas between them; `None` if one of them is none
    /// or stands there twice.
    pub fn of(names: &str) -> Option<XmlCount> {
        let tags: Vec<String> = names.split(',').map(|name| name.trim().to_string()).collect();
        let word = |c: char| c.is_alphanumeric() || "_-:".contains(c);
        let distinct = tags.iter().enumerate().all(|(i, tag)| !tags[..i].contains(tag));
        let named = tags.iter().all(|tag| !tag.is_empty() && tag.chars().all(word));
        (distinct && named).then_some(XmlCount { tags })
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let (text, prompt) = (input.completion.trim(), input.prompt.trim_end());
        let (mut once, mut end) = (0, 0);
        for mark in self.tags.iter().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")]) {
            let opened = prompt.ends_with(&mark) as usize;
            once += (text.matches(&mark).count() + opened == 1) as usize;
            end = end.max(text.rfind(&mark).map_or(0, |at| at + mark.len()));
        }
        // Without a mark the share is 0 already.
        let surplus = text[end..].trim().chars().count();
        let share = once as f64 / (2 * self.tags.len()) as f64;
        graded((share - SURPLUS * surplus as f64).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::no_fields;

    fn score(xml: &XmlCount, prompt: &str, completion: &str) -> f32 {
        let input = RewardInput { prompt, completion, finished: true, fields: no_fields() };
        match xml.check(&input) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn marks_are_counted() {
        let xml = XmlCount::default();
        for (prompt, completion, expected) in [
            ("", "<think>a</think>\n<answer>b</answer>\n", 1.0),
            ("", "<think>a</think><answer>b</answer> end", 0.997),
            ("", "<think>a</think>", 0.5),
            ("", "<think>a<think>b</think><answer>c</answer>", 0.75),
            ("", "a", 0.0),
            ("", "", 0.0),
            ("Go: <think>\n", "a</think><answer>b</answer>", 1.0),
            ("Go: <think>\n", "<think>a</think><answer>b</answer>", 0.75),
        ] {
            let got = score(&xml, prompt, completion);
            assert!((got - expected).abs() < 1e-6, "{completion}: {got}");
        }
        let one = XmlCount::of(" plan ").unwrap();
        assert_eq!(score(&one, "", "<plan></plan>"), 1.0);
        for names in ["", "a,", "a,a", "a b", "<a>"] {
            assert_eq!(XmlCount::of(names), None, "{names}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn scores_are_shares(text in "(<think>|</think>|<answer>|</answer>|a|é){0,12}") {
            let got = score(&XmlCount::default(), "", &text);
            prop_assert!((0.0..=1.0).contains(&got), "{text}: {got}");
        }
    }
}
