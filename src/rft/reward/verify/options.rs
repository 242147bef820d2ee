//! Multiple choice.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::answer::{announced, answer_phrases, conclusions, hashes, lower_matches};
use super::{field, parsed, said, scalar, unfit, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the letters that are chosen are the gold ones, no more and no fewer, else 0: the reward of
/// multiple choice in Curr-ReFT (arXiv:2503.07065).
///
/// Letters are read from the answer tag or the box, or else from all that follows the reasoning. They
/// are letters by themselves with anything but words between them (`A, C`, `(a) and (c)`) or capital
/// letters in a row (`AC`); in a sentence what the last phrase announces (`The answer is C`, `Correct: C`,
/// `The correct option is D: 42`, `#### B`, `So, C`); else one letter in front of its text or its reason
/// (`B. Paris`, `B because …`), or the only one that is called an option (`Option C fits`). Anything else
/// chooses nothing: so do `A city` and a sentence with several letters of which none is announced.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The row's field with the gold: letters as in an answer, or a list of letters.
    pub field: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { field: "answer".into() }
    }
}

impl Options {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let said = said(input.completion).filter(|_| input.finished).and_then(letters);
        verdict(said == Some(gold))
    }

    /// Whether a row has letters.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    fn gold(&self, value: &Value) -> Result<BTreeSet<char>, String> {
        let value = parsed(value);
        let text = match value.as_ref() {
            Value::Array(items) => {
                items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|all| all.join(","))
            }
            one => scalar(one),
        };
        let letters = text.as_deref().and_then(letters);
        letters.ok_or_else(|| unfit(&self.field, &value, "letters as in `AC` or `A, C`"))
    }
}

/// The letters that `text` chooses, in upper case; none if it does not choose in a way that is
/// understood.
fn letters(text: &str) -> Option<BTreeSet<char>> {
    let text = plain(text);
    if let Some(all) = listed(&text) {
        return Some(all);
    }
    for (_, place) in places(&text) {
        let choice = match place {
            Place::Answer(rest) => head(rest),
            Place::Conclusion(rest) => listed(rest).map_or(Choice::Nothing, Choice::Letters),
        };
        match choice {
            Choice::Letters(letters) => return Some(letters),
            Choice::Unclear => return None,
            Choice::Nothing => {}
        }
    }
    labeled(&text).or_else(|| option(&text))
}

/// `text` without what changes only the looks, in Markdown and LaTeX.
fn plain(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '$' | '*' | '_' | '`' | '"' | '{' | '}' => {}
            '\\' => {
                let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
                let (name, behind) = rest.split_at(length);
                match name {
                    "text" | "textbf" | "textit" | "textrm" | "mathbf" | "mathrm" | "mathit"
                    | "mathsf" | "boldsymbol" | "bf" | "rm" | "left" | "right" | "boxed" => {
                        rest = behind;
                    }
                    // `\(`, `\[` and `\,`.
                    "" => {
                        let mark = rest.chars().next().filter(char::is_ascii);
                        rest = &rest[mark.map_or(0, char::len_utf8)..];
                        out.push(' ');
                    }
                    _ => out.push('\\'),
                }
            }
            c => out.push(c),
        }
    }
    out
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect()
}

/// The letter that a word is, in upper case.
fn single(word: &str) -> Option<char> {
    let mut chars = word.chars();
    let letter = chars.next().filter(char::is_ascii_alphabetic)?;
    chars.next().is_none().then(|| letter.to_ascii_uppercase())
}

fn joins(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "and" | "or")
}

/// Letters in a row, if the word is that.
fn row(word: &str) -> Option<BTreeSet<char>> {
    word.chars().all(|c| c.is_ascii_uppercase()).then(|| word.chars().collect())
}

/// The letters of a text that has nothing else.
fn listed(text: &str) -> Option<BTreeSet<char>> {
    let words = words(text);
    let all: Option<BTreeSet<char>> =
        words.iter().filter(|word| !joins(word)).map(|word| single(word)).collect();
    all.filter(|all| !all.is_empty()).or_else(|| match words.as_slice() {
        [word] => row(word),
        _ => None,
    })
}

/// Where a text may say its choice.
enum Place<'a> {
    /// Behind words that announce one: a choice, and more.
    Answer(&'a str),
    /// Behind `so`: a choice and nothing else.
    Conclusion(&'a str),
}

/// All places that announce a choice, the last first.
fn places(text: &str) -> Vec<(usize, Place<'_>)> {
    let options = ["option", "choice", "correct"].into_iter().flat_map(|word| {
        let announces = move |at: &usize| announces_option(text, word, *at);
        let found = lower_matches(text, word).take(MENTIONS).filter(announces);
        found.filter_map(move |at| announced(text, word, at))
    });
    let answers = answer_phrases(text).chain(hashes(text)).chain(options);
    let mut all: Vec<_> = answers.map(|(at, rest)| (at, Place::Answer(rest))).collect();
    all.extend(conclusions(text).map(|(at, rest)| (at, Place::Conclusion(rest))));
    all.sort_by_key(|&(at, _)| Reverse(at));
    all
}

/// Whether the word at `at` may announce a choice. `Options: A) …` lists what there is, and so may
/// `Option: …`, as opposed to `Correct option: …`.
fn announces_option(text: &str, word: &str, at: usize) -> bool {
    let rest = &text[at + word.len()..];
    let before = text[..at].trim_end_matches(|c: char| !c.is_alphanumeric());
    let begin = before.rfind(|c: char| !c.is_alphanumeric()).map_or(0, |space| space + 1);
    let before = before.get(begin..).unwrap_or_default().to_lowercase();
    let chosen = word == "correct" || matches!(before.as_str(), "correct" | "right" | "best");
    !rest.starts_with(['s', 'S']) && (chosen || !rest.starts_with([':', '=']))
}

/// What a text chooses at its start.
enum Choice {
    Letters(BTreeSet<char>),
    /// Letters, of which it is not clear which are chosen.
    Unclear,
    Nothing,
}

/// The letters at the start of `rest`, behind which something else may follow.
fn head(mut rest: &str) -> Choice {
    const FILLERS: [&str; 7] =
        ["option", "choice", "letter", "the", "therefore", "clearly", "definitely"];
    let next =
        |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric()).map(char::len_utf8).sum();
    let (mut all, mut joined) = (BTreeSet::new(), false);
    loop {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
        let length: usize = next(rest);
        let (word, behind) = rest.split_at(length);
        if all.is_empty() && FILLERS.contains(&word.to_ascii_lowercase().as_str()) {
            rest = behind;
            continue;
        }
        if joins(word) && !all.is_empty() {
            (joined, rest) = (true, behind);
            continue;
        }
        let letters = single(word).map(|letter| BTreeSet::from([letter]));
        let letters = letters.or_else(|| row(word).filter(|_| all.is_empty() && length > 1));
        match letters.filter(|_| ends(behind)) {
            Some(letters) => all.extend(letters),
            // `A or a city`, as opposed to `A, a city`.
            None if joined => return Choice::Unclear,
            None => break,
        }
        // More of them follow behind a comma or `and` only.
        let after = behind.trim_start_matches(CLOSERS).trim_start_matches(' ');
        joined = false;
        if !after.starts_with([',', '/', '&']) && !joins(&after[..next(after)]) {
            break;
        }
        rest = after;
    }
    if all.is_empty() { Choice::Nothing } else { Choice::Letters(all) }
}

const CLOSERS: &[char] = &[')', ']', '\''];

/// Whether a letter ends before `behind`, rather than being a word of a sentence or a variable.
fn ends(behind: &str) -> bool {
    let after = behind.trim_start_matches(CLOSERS);
    let mut chars = after.chars();
    match chars.next() {
        None | Some('\n' | '\r') => true,
        Some('.' | ',' | ';' | ':' | '!' | '?' | '/' | '&') => {
            after.len() < 2
                || !chars.as_str().starts_with(char::is_alphanumeric)
                || after.starts_with([',', '/', '&'])
        }
        Some(c) if c.is_whitespace() => {
            let next = chars.as_str().trim_start();
            let word = words(next).first().map_or(String::new(), |word| word.to_lowercase());
            let reason =
                matches!(word.as_str(), "because" | "since" | "as" | "which" | "and" | "or");
            after.len() < behind.len()
                || next.is_empty()
                || next.starts_with(['-', '–', '—', '(', '&'])
                || reason && next.starts_with(char::is_alphanumeric)
        }
        Some(c) => !c.is_ascii() && !c.is_alphanumeric(),
    }
}

/// The letter in front of its text or its reason: `(B) Paris`, `B. Paris`, `B because …`. None where
/// other letters stand in front of theirs.
fn labeled(text: &str) -> Option<BTreeSet<char>> {
    let words = words(text);
    let [first, second, ..] = words.as_slice() else { return None };
    let letter = single(first)?;
    let behind = text.split_once(*first)?.1;
    let upper = first.starts_with(|c: char| c.is_ascii_uppercase());
    if upper && behind.starts_with([' ', ',', ')']) && matches!(*second, "because" | "since") {
        return Some(BTreeSet::from([letter]));
    }
    let labels = |text: &str| text.starts_with([')', '.', ':']);
    let others = text.match_indices(|c: char| c.is_ascii_uppercase()).any(|(at, other)| {
        let before = text[..at].chars().next_back();
        let (line, closed) = (text[..at].trim_end_matches([' ', '(']), &text[at + 1..]);
        let begins = line.is_empty() || line.ends_with('\n');
        !other.starts_with(letter)
            && !before.is_some_and(char::is_alphanumeric)
            && (closed.starts_with(')') || begins && labels(closed))
    });
    (labels(behind) && !others).then(|| BTreeSet::from([letter]))
}

/// Most mentions of options that are looked at, from the end.
const MENTIONS: usize = 64;

/// The one letter that stands behind `option` or `choice` wherever a text has that.
fn option(text: &str) -> Option<BTreeSet<char>> {
    let mut all = BTreeSet::new();
    for word in ["option", "choice"] {
        for at in lower_matches(text, word).take(MENTIONS) {
            let line = text[at + word.len()..].lines().next().unwrap_or("");
            let words = words(line);
            let letter = words.first().filter(|word| word.starts_with(char::is_uppercase));
            let Some(letter) = letter.and_then(|word| single(word)) else { continue };
            let denies =
                |word: &str| matches!(word, "not" | "wrong" | "incorrect" | "false" | "t" | "or");
            if words.iter().any(|word| denies(word)) {
                return None;
            }
            all.insert(letter);
        }
    }
    (all.len() == 1).then_some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn letters_are_a_set() {
        for (completion, gold, score) in [
            ("<answer>C, A</answer>", json!("AC"), 1.0),
            ("(a) and (c)", json!(["A", "C"]), 1.0),
            ("CA", json!("A, C"), 1.0),
            ("\\boxed{B}", json!("B"), 1.0),
            ("B. Paris", json!("b"), 1.0),
            ("(B) A city", json!("B"), 1.0),
            ("A, B, C", json!("A,C"), 0.0),
            ("A", json!("A,C"), 0.0),
            ("A city", json!("A"), 0.0),
            ("CAB is", json!("A"), 0.0),
            ("<think>B", json!("B"), 0.0),
            ("", json!("A"), 0.0),
        ] {
            let got = ask(|i| Options::default().check(i), completion, &json!({"answer": gold}));
            assert_eq!(got, Ok(Score(score)), "{completion}");
        }
        for gold in [json!("Paris"), json!(3), json!([])] {
            let row = json!({"answer": gold});
            let error = Options::default().check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains("`answer`"), "{error}");
        }
    }

    /// What a text chooses, as a row of letters; empty for nothing.
    fn chosen(text: &str) -> String {
        super::super::said(text).and_then(letters).unwrap_or_default().into_iter().collect()
    }

    #[test]
    fn announced_letters() {
        for (text, expected) in [
            ("Answer: C", "C"),
            ("The answer is C", "C"),
            ("The answer is C.", "C"),
            ("The answer is (C)", "C"),
            ("The answer is (C) Paris.", "C"),
            ("the answer is (c).", "C"),
            ("The answer is: C, since D is too small.", "C"),
            ("The answer is C because A does not fit", "C"),
            ("The answer is C - Paris", "C"),
            ("The answer is option C.", "C"),
            ("The answer is $A$", "A"),
            ("The answer is $\\textbf{(A)}$.", "A"),
            ("**Answer: B**", "B"),
            ("**Answer:** B\n\nA is too small.", "B"),
            ("Answer:\n(D)", "D"),
            ("Answers: A, C", "AC"),
            ("The answer is A and C.", "AC"),
            ("The answer is AC.", "AC"),
            ("The answer is A. B is wrong.", "A"),
            ("The answer is B, a city", "B"),
            ("Correct: C", "C"),
            ("The correct option is D: 42", "D"),
            ("Correct option: D", "D"),
            ("The correct answer is D.", "D"),
            ("#### B", "B"),
            ("答案是 C。", "C"),
            ("The answer is not A. The answer is B.", "B"),
            ("The answer is A? No, the answer is B.", "B"),
            ("A) Paris\nB) Rome\nThe answer is B", "B"),
            ("A. Paris is in France. The answer is B", "B"),
            ("The answer is 42, which is option C", "C"),
            ("Option C", "C"),
            ("Option C is correct.", "C"),
            ("So, C", "C"),
            ("A is too small. So, C.", "C"),
            ("Therefore (B)", "B"),
            ("B because A does not fit", "B"),
            ("(B), because (A) does not fit", "B"),
            ("The answer is C, not B.", "C"),
            ("\\boxed{\\text{A}}", "A"),
            ("\\boxed{\\textbf{(C) } 42}", "C"),
            ("$\\mathbf{(A)}$", "A"),
            ("<answer>The answer is C</answer>", "C"),
        ] {
            assert_eq!(chosen(text), expected, "{text}");
        }
    }

    #[test]
    fn sentences_that_choose_nothing() {
        for text in [
            "A city",
            "The answer is a city",
            "The answer is A city",
            "The answer is not A",
            "The answer is unclear",
            "The answer is A or a city",
            "Answer: Paris",
            "I think A fits but B does not",
            "A and B do not fit",
            "A) Paris\nB) Rome",
            "(A) Paris (B) Rome",
            "Options: A) Paris, B) Rome",
            "Option A or option B",
            "Option A is wrong",
            "Options C and D differ",
            "So a city",
            "so it is a, as I said",
            "a because of it",
            "The answer is A = 5",
            "The answer is C's area",
        ] {
            assert_eq!(chosen(text), "", "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn order_does_not_count(mut chosen in prop::collection::vec("[A-F]", 1..6)) {
            let gold = chosen.join("");
            chosen.reverse();
            let row = json!({"answer": gold});
            let got = ask(|i| Options::default().check(i), &chosen.join(" and "), &row);
            prop_assert_eq!(got, Ok(Score(1.0)));
        }

        /// What a phrase announces is chosen, in any looks and whatever stands around it.
        #[test]
        fn looks_do_not_count(letter in "[A-H]", looks in 0usize..7, phrase in 0usize..6, end in 0usize..4) {
            let looks = ["…", "(…)", "**…**", "$…$", "\\boxed{…}", "\\text{(…)}", "`…`"][looks];
            let phrase = ["The answer is ", "Answer: ", "So, ", "Correct: ", "#### ", ""][phrase];
            let end = ["", ".", "\n", " "][end];
            let text = format!("{phrase}{}{end}", looks.replace('…', &letter));
            prop_assert_eq!(chosen(&text), letter, "{}", text);
        }

        #[test]
        fn any_text_is_judged(text in "([A-Ca-c]|[Aa]nswer|is|so|option|[ :.,()\\\\{}\n$éß。]){0,24}") {
            chosen(&text);
        }
    }
}
