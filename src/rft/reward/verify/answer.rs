//! Where a completion says its answer.

/// The part of `text` in the last answer tag, or else in the last box.
pub fn final_answer(text: &str) -> Option<&str> {
    tagged(text, "answer").or_else(|| boxed(text))
}

/// Content of the last `<tag>…</tag>`.
pub fn tagged<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let end = text.rfind(&close)?;
    let start = text[..end].rfind(&open)? + open.len();
    Some(text[start..end].trim())
}

/// Content of the last `\boxed{…}` with balanced braces; of nested boxes, the innermost. Escaped
/// braces are text, empty boxes are none. `\fbox{…}`, `\boxed {…}` and `\boxed 5` are boxes too.
/// Where the last box is not closed there is none: what it was to hold is unknown, and what an
/// earlier one holds is not the conclusion.
pub fn boxed(text: &str) -> Option<&str> {
    let (found, open) = boxes(text);
    let last = found.into_iter().max_by_key(|found| found.start).filter(|_| !open)?;
    Some(last.content(text))
}

/// Contents of the last boxes of `text` that follow each other with nothing but `,`, `and`, `or`
/// between them, as one list, with the percent sign behind the last. It is empty if the last box is
/// not closed.
pub(super) fn last_boxes(text: &str) -> Option<String> {
    let (found, open) = boxes(text);
    if open {
        return Some(String::new());
    }
    let mut at = found.iter().enumerate().max_by_key(|(_, found)| found.start)?.0;
    let percent = percent_follows(text, &found[at]);
    let mut contents = vec![found[at].content(text)];
    while let Some(before) = at.checked_sub(1) {
        let (left, right) = (found[before].end + 1, found[at].outer);
        let between = text.get(left..right).unwrap_or("?");
        let words = between.split(|c: char| c.is_whitespace() || "$,;\\(){}".contains(c));
        if !words.into_iter().all(|word| matches!(word, "" | "and" | "or" | "text" | "quad")) {
            break;
        }
        contents.push(found[before].content(text));
        at = before;
    }
    contents.reverse();
    Some(contents.join(", ") + if percent { "\\%" } else { "" })
}

/// Whether a percent sign stands right behind a box, where it belongs to what is in it.
fn percent_follows(text: &str, found: &Found) -> bool {
    let rest = text[found.end..].trim_start_matches(['}', '$']);
    // Behind a space a bare sign begins a comment.
    rest.starts_with('%')
        || rest.strip_prefix("\\,").unwrap_or(rest).trim_start().starts_with("\\%")
}

/// A box: where it begins, and its content.
struct Found {
    outer: usize,
    start: usize,
    end: usize,
}

impl Found {
    fn content<'a>(&self, text: &'a str) -> &'a str {
        text[self.start..self.end].trim()
    }
}

/// The boxes of `text` that hold something, in the order of their ends, and whether one is open
/// behind all of them.
fn boxes(text: &str) -> (Vec<Found>, bool) {
    let bytes = text.as_bytes();
    // Open braces, and for those of a box, where it begins and where its content does.
    let (mut open, mut found): (Vec<Option<(usize, usize)>>, Vec<Found>) = (Vec::new(), Vec::new());
    let mut at = 0;
    let mut keep = |outer, start, end| {
        if !text[start..end].trim().is_empty() {
            found.push(Found { outer, start, end });
        }
    };
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let rest = &text[at + 1..];
                let command = ["boxed", "fbox"].into_iter().find(|name| rest.starts_with(name));
                let Some(command) = command else {
                    at += 2;
                    continue;
                };
                let (outer, after) = (at, at + 1 + command.len());
                let spaces = text[after..].len() - text[after..].trim_start().len();
                if bytes.get(after + spaces) == Some(&b'{') {
                    at = after + spaces + 1;
                    open.push(Some((outer, at)));
                } else {
                    let start = after + spaces;
                    let bare = |c: char| !c.is_whitespace() && c != '$' && c != '}';
                    at = start
                        + text[start..]
                            .chars()
                            .take_while(|&c| bare(c))
                            .map(char::len_utf8)
                            .sum::<usize>();
                    // Any other word is prose about boxes.
                    if text[start..at]
                        .starts_with(|c: char| c.is_ascii_digit() || "-.\\".contains(c))
                    {
                        keep(outer, start, at);
                    }
                }
                continue;
            }
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some((outer, start))) = open.pop() {
                    keep(outer, start, at);
                }
            }
            _ => {}
        }
        at += 1;
    }
    let opened = open.into_iter().flatten().map(|(_, start)| start).max();
    let last = found.iter().map(|found| found.start).max();
    (found, opened.is_some() && opened > last)
}

/// Most places of a kind that are looked at, from the end.
const PLACES: usize = 16;

/// What stands behind each `####`, the last first, with the place of the mark.
pub(super) fn hashes(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let marks = text.rmatch_indices("####").take(PLACES);
    marks.map(|(at, mark)| (at, next_words(&text[at + mark.len()..])))
}

/// What stands behind each phrase that announces an answer, the last first, with its place:
/// `answer is`, `Answer:`, `answer to the question is`, a heading `Final answer`, and the same in
/// Chinese.
pub(super) fn answer_phrases(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let english = lower_matches(text, "answer")
        .take(4 * PLACES)
        .filter_map(|at| announced(text, "answer", at));
    let chinese = text.rmatch_indices("答案").filter_map(|(at, word)| {
        let rest = &text[at + word.len()..];
        let rest = ["是", "为", "为：", "："].iter().find_map(|is| rest.strip_prefix(is))?;
        Some((at, next_words(rest)))
    });
    let mut all: Vec<(usize, &str)> = english.take(PLACES).chain(chinese.take(PLACES)).collect();
    all.sort_by_key(|&(at, _)| std::cmp::Reverse(at));
    all.into_iter()
}

/// Where `word`, in lower case, stands in any case and alone, the last first.
pub(super) fn lower_matches<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    (0..(bytes.len() + 1).saturating_sub(word.len())).rev().filter(move |&at| {
        bytes[at..at + word.len()].eq_ignore_ascii_case(word.as_bytes())
            && !at.checked_sub(1).is_some_and(|before| bytes[before].is_ascii_alphanumeric())
    })
}

/// What stands behind `so`, `thus`, `hence` or `therefore` to the end of the line, with the place.
pub(super) fn conclusions(text: &str) -> impl Iterator<Item = (usize, &str)> {
    ["so", "thus", "hence", "therefore"].into_iter().flat_map(move |word| {
        let rest = |at: usize| &text[at + word.len()..];
        let ends = move |at: &usize| !rest(*at).starts_with(char::is_alphanumeric);
        lower_matches(text, word).filter(ends).take(PLACES).map(move |at| {
            let line = rest(at).lines().next().unwrap_or("");
            (at, line.trim_start_matches([',', ':', ' ', '\t', '*']).trim())
        })
    })
}

/// What the `word` at `at`, in lower case, announces.
pub(super) fn announced<'a>(text: &'a str, word: &str, at: usize) -> Option<(usize, &'a str)> {
    const MARKUP: &[char] = &[' ', '\t', '*', '_', '"', '`', ')', ']', '}'];
    /// Longest `to the question …` before `is`.
    const ASIDE: usize = 120;
    let rest = &text[at + word.len()..];
    let rest = rest.strip_prefix(['s', 'S']).unwrap_or(rest);
    let bare = rest.trim_start_matches(MARKUP);
    const VERBS: [&str; 10] = [
        "is",
        "are",
        "was",
        "were",
        "would be",
        "will be",
        "should be",
        "must be",
        "equals",
        "comes to",
    ];
    let verb = |rest: &'_ str| {
        VERBS
            .iter()
            .find(|verb| {
                let follows = rest.as_bytes().get(verb.len());
                rest.get(..verb.len()).is_some_and(|start| start.eq_ignore_ascii_case(verb))
                    && !follows.is_some_and(u8::is_ascii_alphanumeric)
            })
            .map(|verb| verb.len())
    };
    if let Some(behind) = bare.strip_prefix([':', '=', '：']) {
        return Some((at, next_words(behind)));
    }
    if let Some(length) = verb(bare) {
        return Some((at, next_words(&bare[length..])));
    }
    if ["to ", "for ", "of "].iter().any(|word| bare.starts_with(word)) {
        let line = bare.lines().next().unwrap_or("");
        let is = line.match_indices([' ', ':']).take_while(|&(i, _)| i < ASIDE).find_map(
            |(i, mark)| {
                let behind = &line[i + mark.len()..];
                if mark == ":" { Some(i + 1) } else { verb(behind).map(|length| i + 1 + length) }
            },
        )?;
        return Some((at, next_words(&bare[is..])));
    }
    // A heading alone on its line, or `final answer` at the end of one.
    let start = text[..at].rfind('\n').map_or(0, |line| line + 1);
    let before = text[start..at].trim_matches(|c: char| c.is_whitespace() || "#*_".contains(c));
    let heading = before.is_empty()
        || before.to_ascii_lowercase().ends_with("final")
        || before.eq_ignore_ascii_case("the");
    (heading && bare.starts_with(['\n', '\r'])).then(|| (at, next_words(bare)))
}

/// The rest of the line, or the first line after it that says something.
fn next_words(text: &str) -> &str {
    let says = |line: &&str| line.chars().any(|c| c.is_alphanumeric() || "∞√∅".contains(c));
    let line = text.lines().find(says).unwrap_or("");
    line.trim_start_matches([' ', '\t', ':', '=', '*', '_', '"', '`', '：', '}', ')']).trim()
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
            (r"\boxed{1} then \boxed{2", None),
            (r"\boxed{1 then \boxed{2}", Some("2")),
            (r"\boxed{\{1, 2\}}", Some(r"\{1, 2\}")),
            (r"\boxed{", None),
            (r"}}\boxed{4}", Some("4")),
            (r"\boxed {42} since", Some("42")),
            (r"\fbox{4}", Some("4")),
            (r"$\boxed 5$ is", Some("5")),
            (r"$\boxed5$", Some("5")),
            (r"\boxed{7} goes into \boxed{}", Some("7")),
            (r"\boxedx 5", None),
            ("no box \\", None),
            (r"é\é\boxed{é}", Some("é")),
        ] {
            assert_eq!(boxed(text), inside, "{text}");
        }
    }

    #[test]
    fn boxes_in_a_row_are_a_list() {
        for (text, inside) in [
            (r"\boxed{1} and \boxed{2}.", "1, 2"),
            (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$", "1, 2, 3"),
            (r"\boxed{1} \text{ or } \boxed{2}", "1, 2"),
            (r"\boxed{1}, so \boxed{2}", "2"),
            (r"\boxed{\boxed{3}}", "3"),
            (r"$\boxed{5}\%$", r"5\%"),
            (r"$\boxed{5}$%", r"5\%"),
            (r"$\boxed{5}\,\%$", r"5\%"),
            (r"$\boxed{5} % so$", "5"),
            (r"\boxed{1} and \boxed{2}\%", r"1, 2\%"),
            (r"\boxed{5\%}\%", r"5\%\%"),
            (r"\boxed{5}, which is 10\%", "5"),
        ] {
            assert_eq!(last_boxes(text).as_deref(), Some(inside), "{text}");
        }
    }

    #[test]
    fn tags() {
        assert_eq!(final_answer("<answer>7</answer> \\boxed{8}"), Some("7"));
        assert_eq!(final_answer("<answer>1</answer><answer> 2 </answer>"), Some("2"));
        assert_eq!(final_answer("<answer>7 </answer"), None);
    }

    #[test]
    fn phrases_and_hashes() {
        let phrase = |text| answer_phrases(text).next().map(|(_, rest)| rest);
        for (text, rest) in [
            ("The Answer is: 3.\nYes", Some("3.")),
            ("answer: 4, answer is 5", Some("5")),
            ("The answer is:\n\n$$42$$", Some("$$42$$")),
            ("**Final Answer:**\n42", Some("42")),
            ("## Final Answer\n\\[\n42\n\\]", Some("42")),
            ("The answer to the question is 7", Some("7")),
            ("Therefore, the answer would be 7", Some("7")),
            ("{\"answer\": 42}", Some("42}")),
            ("答案是 5。", Some("5。")),
            ("the answer isn't here", None),
            ("I answered: 5", None),
            ("my answer\n5", None),
        ] {
            assert_eq!(phrase(text), rest, "{text}");
        }
        assert_eq!(hashes("#### 1\n####\n 2").collect::<Vec<_>>(), [(7, "2"), (0, "1")]);
        let found: Vec<_> = conclusions("Also so: 5\nTHUS, 6. Sofa, so").collect();
        assert_eq!(found, [(26, ""), (5, "5"), (11, "6. Sofa, so")]);
    }
}
