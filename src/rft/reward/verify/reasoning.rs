//! Reasoning set apart from what a completion concludes.

/// Pairs of marks around reasoning.
const MARKS: [(&str, &str); 8] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
];

/// What begins the answer of models that write into channels.
const FINAL_CHANNEL: &str = "<|channel|>final<|message|>";

/// The part of a completion that is its answer: what follows the last closing mark of reasoning,
/// with or without an opening one, as a chat template may have opened it. `None` where reasoning is
/// open at the end, since it has come to no answer. A text without marks is all answer.
pub fn conclusion(text: &str) -> Option<&str> {
    let mut rest = text;
    if let Some(at) = rest.rfind(FINAL_CHANNEL) {
        rest = &rest[at + FINAL_CHANNEL.len()..];
    }
    let ends = MARKS.iter().filter_map(|(_, close)| rest.rfind(close).map(|at| at + close.len()));
    rest = &rest[ends.max().unwrap_or(0)..];
    let open = MARKS.iter().any(|(open, _)| rest.contains(open));
    (!open).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_follows_the_last_closing_mark() {
        for (text, answer) in [
            ("42", Some("42")),
            ("<think>5</think> 6", Some(" 6")),
            ("5</think>6", Some("6")),
            ("<think>5</think>6<think>7</think>8", Some("8")),
            ("<think>say </think> twice</think>8", Some("8")),
            ("<think>5", None),
            ("<think>5</think>6<think>7", None),
            ("<reasoning>5</reasoning><answer>6</answer>", Some("<answer>6</answer>")),
            ("<|begin_of_thought|>5<|end_of_thought|>6", Some("6")),
            ("[THINK]5[/THINK]6", Some("6")),
            ("◁think▷5◁/think▷6", Some("6")),
            ("<|channel|>analysis<|message|>5<|end|><|channel|>final<|message|>6", Some("6")),
            ("", Some("")),
        ] {
            assert_eq!(conclusion(text), answer, "{text}");
        }
    }
}
