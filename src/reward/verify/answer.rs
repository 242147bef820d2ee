//! Where a completion says its answer.

/// What marked an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// `<answer>…</answer>`.
    Tag,
    /// `\boxed{…}`.
    Boxed,
    /// The rest of a line after `####`.
    Hashes,
    /// The rest of a line after `answer is` or `answer:`.
    Phrase,
}

/// The part of `text` that is marked as its answer. A tag goes before a box, a box before `####`,
/// `####` before a phrase; of several alike, the last counts: what comes late is the conclusion.
pub fn final_answer(text: &str) -> Option<(Marker, &str)> {
    tagged(text, "answer")
        .map(|inside| (Marker::Tag, inside))
        .or_else(|| boxed(text).map(|inside| (Marker::Boxed, inside)))
        .or_else(|| text.rfind("####").map(|at| (Marker::Hashes, line(&text[at + 4..]))))
        .or_else(|| phrase(text).map(|rest| (Marker::Phrase, rest)))
}

/// Content of the last `<tag>…</tag>`.
pub fn tagged<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let end = text.rfind(&close)?;
    let start = text[..end].rfind(&open)? + open.len();
    Some(text[start..end].trim())
}

/// Content of the last `\boxed{…}` with balanced braces; of nested boxes, the innermost. Escaped
/// braces are text.
pub fn boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let bytes = text.as_bytes();
    // Open braces, and for those of a box, where its content starts.
    let (mut open, mut last): (Vec<Option<usize>>, Option<(usize, usize)>) = (Vec::new(), None);
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if bytes[at..].starts_with(OPEN.as_bytes()) => {
                at += OPEN.len();
                open.push(Some(at));
                continue;
            }
            b'\\' => at += 1,
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && last.is_none_or(|(latest, _)| start > latest)
                {
                    last = Some((start, at));
                }
            }
            _ => {}
        }
        at += 1;
    }
    last.map(|(start, end)| text[start..end].trim())
}

/// What follows the last `answer is` or `answer:` on its line, whatever the case.
fn phrase(text: &str) -> Option<&str> {
    // Lowering ASCII alone keeps every byte where it was.
    let lower = text.to_ascii_lowercase();
    let ends = ["answer is", "answer:"]
        .map(|phrase| lower.rfind(phrase).map(|at| at + phrase.len()).unwrap_or_default());
    let start = ends[0].max(ends[1]);
    (start > 0).then(|| line(&text[start..]))
}

fn line(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', ':']).lines().next().unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_may_nest_and_the_last_counts() {
        for (text, inside) in [
            (r"so \boxed{\frac{1}{2}}.", Some(r"\frac{1}{2}")),
            (r"\boxed{1} then \boxed{2}", Some("2")),
            (r"\boxed{\boxed{3}}", Some("3")),
            (r"\boxed{1} then \boxed{2", Some("1")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{", None),
            (r"}}\boxed{4}", Some("4")),
            ("no box \\", None),
        ] {
            assert_eq!(boxed(text), inside, "{text}");
        }
    }

    #[test]
    fn markers_have_an_order() {
        let found = |text| final_answer(text).map(|(marker, inside)| (marker, inside.to_string()));
        for (text, marker, inside) in [
            ("<answer>7</answer> \\boxed{8}", Marker::Tag, "7"),
            ("<answer>1</answer><answer> 2 </answer>", Marker::Tag, "2"),
            ("\\boxed{8} #### 9", Marker::Boxed, "8"),
            ("the answer is 3\n#### 9 apples\nbye", Marker::Hashes, "9 apples"),
            ("The Answer is: 3.\nYes", Marker::Phrase, "3."),
            ("answer: 4, answer is 5", Marker::Phrase, "5"),
        ] {
            assert_eq!(found(text), Some((marker, inside.to_string())), "{text}");
        }
        assert_eq!(found("<answer>7 </answer"), None);
        assert_eq!(found("42"), None);
    }
}
