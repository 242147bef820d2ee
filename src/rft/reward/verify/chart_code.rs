//! Programs that draw a chart, compared as texts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::matching::best_pairing;
use super::{code_block, conclusion, field, verdict};
use crate::reward::{Judgment, Outcome, RewardInput};

/// How near a program that draws a chart comes to the row's program, by what stands in the two: the
/// text part of the reward of MSRL (arXiv:2508.13587). Nothing is run. The score is the mean of four
/// parts, each from 0 to 1:
///
/// * `data`: lists of numbers, paired one to one; a pair scores the share of places whose numbers are
///   within 5 %, and all pairs together are divided by the larger number of lists;
/// * `type`: 1 if the same functions of charts (`bar`, `plot`, `pie`, …) are called equally often;
/// * `layout`: 1 if calls such as `subplots` have the same numbers in the same order;
/// * `text`: strings, paired likewise by 1 - edit distance / the longer length.
///
/// What both lack is right. Comments do not count. The program is the last code block of the answer,
/// or all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChartCode {
    /// The row's field with the gold program.
    pub field: String,
}

impl Default for ChartCode {
    fn default() -> ChartCode {
        ChartCode { field: "code".into() }
    }
}

/// Functions that draw a chart.
const CHARTS: [&str; 24] = [
    "bar",
    "barh",
    "barplot",
    "boxplot",
    "contour",
    "contourf",
    "countplot",
    "errorbar",
    "fill_between",
    "heatmap",
    "hexbin",
    "hist",
    "histplot",
    "imshow",
    "lineplot",
    "pie",
    "plot",
    "quiver",
    "scatter",
    "scatterplot",
    "stackplot",
    "stem",
    "step",
    "violinplot",
];

/// Functions that say where charts stand.
const LAYOUTS: [&str; 5] = ["add_subplot", "GridSpec", "subplot", "subplot2grid", "subplots"];

/// How far a number may be from the gold one, as a share of it.
const NEAR: f64 = 0.05;

/// Most lists or strings of a program that are paired, and characters of a string that are compared:
/// what is beyond is counted.
const PAIRED: usize = 32;
const CHARS: usize = 128;

impl ChartCode {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(input.fields)?;
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let said = Chart::of(code_block(answer).unwrap_or(answer));
        let parts = [
            ("data", paired(&said.data, &gold.data, |a, b| near(a, b))),
            ("type", (said.charts == gold.charts) as u8 as f64),
            ("layout", (said.layout == gold.layout) as u8 as f64),
            ("text", paired(&said.texts, &gold.texts, |a, b| alike(a, b))),
        ];
        let score = parts.iter().map(|(_, value)| value).sum::<f64>() / parts.len() as f64;
        let parts = parts.map(|(name, value)| (name.to_string(), value as f32)).to_vec();
        Ok(Judgment { score: score as f32, parts, feedback: None }.into())
    }

    /// Whether a row has a program with a chart in it.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(fields).map(|_| ())
    }

    fn gold(&self, fields: &Map<String, Value>) -> Result<Chart, String> {
        let value = field(fields, &self.field)?;
        let gold = value.as_str().map(|text| Chart::of(code_block(text).unwrap_or(text)));
        gold.filter(|gold| !gold.charts.is_empty())
            .ok_or_else(|| super::unfit(&self.field, value, "a program that draws a chart"))
    }
}

/// What a program says of its chart.
#[derive(Debug, Default, PartialEq)]
struct Chart {
    data: Vec<Vec<f64>>,
    charts: BTreeMap<String, usize>,
    layout: Vec<f64>,
    texts: Vec<String>,
}

/// A piece of a program.
enum Token<'a> {
    Word(&'a str),
    Number(f64),
    Text(&'a str),
    Sign(u8),
}

impl Chart {
    fn of(program: &str) -> Chart {
        let mut chart = Chart::default();
        // Open brackets, and how many of them are calls of a layout.
        let (mut open, mut layouts) = (Vec::<Open>::new(), 0);
        let (mut word, mut sign) = ("", b' ');
        for token in tokens(program) {
            match token {
                Token::Number(number) => {
                    let number = if sign == b'-' { -number } else { number };
                    if layouts > 0 {
                        chart.layout.push(number);
                    }
                    if let Some(Open::List(list)) = open.last_mut() {
                        list.push(number);
                    }
                }
                Token::Text(text) => chart.texts.push(text.chars().take(CHARS).collect()),
                Token::Sign(b'(') => {
                    if CHARTS.contains(&word) {
                        *chart.charts.entry(word.to_string()).or_default() += 1;
                    }
                    let layout = LAYOUTS.contains(&word);
                    layouts += layout as usize;
                    open.push(if layout { Open::Layout } else { Open::Other });
                }
                Token::Sign(b'[') => open.push(Open::List(Vec::new())),
                Token::Sign(b')' | b']') => match open.pop() {
                    Some(Open::List(list)) if !list.is_empty() => chart.data.push(list),
                    Some(Open::Layout) => layouts -= 1,
                    Some(Open::List(_) | Open::Other) | None => {}
                },
                Token::Word(_) | Token::Sign(_) => {}
            }
            (word, sign) = match token {
                Token::Word(name) => (name, b' '),
                Token::Sign(byte) => ("", byte),
                Token::Number(_) | Token::Text(_) => ("", b' '),
            };
        }
        chart
    }
}

enum Open {
    List(Vec<f64>),
    Layout,
    Other,
}

/// The pieces of a program, without its comments.
fn tokens(program: &str) -> Vec<Token<'_>> {
    let bytes = program.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    let end_of = |from: usize, inside: fn(u8) -> bool| {
        from + bytes[from..].iter().take_while(|&&byte| inside(byte)).count()
    };
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'#' => at = end_of(at, |byte| byte != b'\n'),
            quote @ (b'\'' | b'"') => {
                let (inside, end) = string(program, at, quote);
                found.push(Token::Text(inside));
                at = end;
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                at = end_of(at, |b| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80);
                found.push(Token::Word(&program[start..at]));
            }
            byte if byte.is_ascii_digit()
                || byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) =>
            {
                at = end_of(at, |b| b.is_ascii_digit() || b == b'.' || b == b'_' || b == b'e');
                let number = program[start..at].replace('_', "").parse();
                found.extend(number.ok().filter(|x: &f64| x.is_finite()).map(Token::Number));
            }
            byte => {
                at += 1;
                found.extend((!byte.is_ascii_whitespace()).then_some(Token::Sign(byte)));
            }
        }
    }
    found
}

/// What the string at `at` holds, and where it is over. Three quotes are those of a longer string; one
/// without an end is over at the end of its line.
fn string(program: &str, at: usize, quote: u8) -> (&str, usize) {
    let bytes = program.as_bytes();
    let long = bytes[at..].starts_with(&[quote; 3]);
    let marks = if long { 3 } else { 1 };
    let start = at + marks;
    let mut end = start;
    while end < bytes.len() && !bytes[end..].starts_with(&[quote; 3][..marks]) {
        match bytes[end] {
            b'\n' if !long => break,
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
    // A backslash may stand before the end, or before a character of several bytes.
    let mut end = end.min(bytes.len());
    while !program.is_char_boundary(end) {
        end += 1;
    }
    let closed = bytes[end..].starts_with(&[quote; 3][..marks]);
    (&program[start..end], if closed { end + marks } else { end })
}

/// The weight of the best pairing over the larger number.
fn paired<T>(said: &[T], gold: &[T], weight: impl Fn(&T, &T) -> f64) -> f64 {
    let most = said.len().max(gold.len());
    if most == 0 {
        return 1.0;
    }
    let row = |gold| said.iter().take(PAIRED).map(|said| weight(said, gold)).collect();
    let weights: Vec<Vec<f64>> = gold.iter().take(PAIRED).map(row).collect();
    best_pairing(&weights) / most as f64
}

/// The share of places at which two lists have nearly the same number.
fn near(said: &[f64], gold: &[f64]) -> f64 {
    let equal = said.iter().zip(gold).filter(|(p, t)| (*p - *t).abs() <= NEAR * t.abs()).count();
    equal as f64 / said.len().max(gold.len()).max(1) as f64
}

/// 1 - the edit distance over the longer length.
fn alike(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + (x != y) as usize;
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    1.0 - row[b.len()] as f64 / a.len().max(b.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::verify::tests::ask;

    const GOLD: &str = "fig, ax = plt.subplots(1, 2)\n# a comment [9, 9]\nax[0].bar(['a', 'b'], \
                        [10, -20.5])\nax[1].plot([1, 2, 3])\nplt.title(\"Sales\")\n";

    fn judge(completion: &str) -> Judgment {
        let outcome = ask(|i| ChartCode::default().check(i), completion, &json!({"code": GOLD}));
        outcome.unwrap().judgment().unwrap()
    }

    fn parts(completion: &str) -> [f32; 4] {
        let judgment = judge(completion);
        let values: Vec<f32> = judgment.parts.iter().map(|part| part.1).collect();
        assert!((judgment.score - values.iter().sum::<f32>() / 4.0).abs() < 1e-6);
        values.try_into().unwrap()
    }

    #[test]
    fn the_gold_is_all_right() {
        assert_eq!(parts(GOLD), [1.0; 4]);
        assert_eq!(parts(&format!("<think>?</think>Here:\n```python\n{GOLD}```\n")), [1.0; 4]);
        let chart = Chart::of(GOLD);
        // The brackets of an index hold numbers as well: they are alike in both programs.
        assert!(
            chart.data.contains(&vec![10.0, -20.5]) && chart.data.contains(&vec![1.0, 2.0, 3.0])
        );
        assert_eq!(chart.layout, [1.0, 2.0]);
        assert_eq!(chart.texts, ["a", "b", "Sales"]);
    }

    #[test]
    fn each_part_counts_for_itself() {
        let near = GOLD.replace("10,", "10.4,").replace("3]", "4]");
        // The lists: [0], [1], [10.4, -20.5] and [1, 2, 4], of which one has two of three right.
        let [data, rest @ ..] = parts(&near);
        assert!((data - (3.0 + 2.0 / 3.0) / 4.0).abs() < 1e-6 && rest == [1.0; 3], "{data}");
        assert_eq!(parts(&GOLD.replace(".bar(", ".barh("))[1], 0.0);
        assert_eq!(parts(&GOLD.replace("(1, 2)", "(2, 1)"))[2], 0.0);
        let text = parts(&GOLD.replace("Sales", "Sale"))[3];
        assert!((text - (2.0 + 0.8) / 3.0).abs() < 1e-6, "{text}");
        assert_eq!(judge("<think>no").score, 0.0);
        assert_eq!(parts("no chart"), [0.0; 4]);
    }

    #[test]
    fn rows_without_a_chart_are_refused() {
        for row in [json!({}), json!({"code": "print(1)"}), json!({"code": 3})] {
            let error = ChartCode::default().check_row(row.as_object().unwrap()).unwrap_err();
            assert!(error.contains("`code`"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_text_is_a_program(text in "([a-c\\[\\]()'\"\\\\#.0-9,é\n-]|bar\\(|'''){0,24}") {
            let got = parts(&text);
            prop_assert!(got.iter().all(|part| (0.0..=1.0).contains(part)), "{text}: {got:?}");
        }

        #[test]
        fn likeness_is_symmetric(a in "[ab]{0,6}", b in "[ab]{0,6}") {
            prop_assert_eq!(alike(&a, &b), alike(&b, &a));
            prop_assert!((0.0..=1.0).contains(&alike(&a, &b)) && alike(&a, &a) == 1.0);
        }
    }
}
