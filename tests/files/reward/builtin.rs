//! Rewards by name, and verifiers on texts that nobody would write.

use std::time::{Duration, Instant};

use gradus_rft::reward::command::parse_reply;
use gradus_rft::reward::spec::{Clamp, Combine, SpecOptions, help, parse, parse_all};
use gradus_rft::reward::verify::{
    Format, Json, MathAnswer, boxed, canonical, code_block, evaluate, normalize, parse_boxes,
    parse_calls, tagged,
};
use gradus_rft::reward::{Reward, RewardInput, RewardOutcome, score};
use proptest::prelude::*;
use serde_json::json;

use super::code::{code, fenced};
use super::{ask, judge, one};

#[test]
fn names() {
    let row = json!({
        "answer": "#### 10", "numbers": [2, 5], "target": 10, "boxes": [0, 0, 2, 2],
        "tool_calls": {"name": "f"}, "schema": {"type": "object"}
    });
    for (spec, completion, expected) in [
        ("numeric", "ten is 10", 1.0),
        ("numeric:0.5", "10.4", 1.0),
        ("numeric:0.5", "10.6", 0.0),
        ("numeric:10%", "10.9", 1.0),
        ("exact", "#### 10", 1.0),
        ("format", "<think>a</think><answer>b</answer>", 1.0),
        ("format:^a+:b*$", "aa:", 1.0),
        ("json:k", "{\"k\": 1}", 1.0),
        ("json:k,l", "{\"k\": 1}", 0.0),
        ("tool-call", "{\"name\": \"f\"}", 1.0),
        ("iou", "[0, 0, 2, 1]", 0.5),
        ("iou:0.6", "[0, 0, 2, 1]", 0.0),
        ("countdown", "2*5", 1.0),
        ("countdown:all,0.1", "2+5", 0.1),
        ("countdown:0.25", "5", 0.25),
        (" 0.5 * numeric", "10", 0.5),
        ("-2*numeric", "10", -2.0),
        ("1e-1*format:1*0", "10", 0.1),
    ] {
        assert_eq!(ask(&*parse(spec).unwrap(), completion, &row), one(expected), "{spec}");
    }
}

#[test]
fn names_that_are_wrong() {
    for (spec, words) in [
        ("nummeric", &["`nummeric`", "numeric[:TOLERANCE", "cmd:PROGRAM"][..]),
        ("numeric:x", &["`numeric:x`", "percentage"]),
        ("exact:1", &["nothing"]),
        ("format:(", &["format pattern"]),
        ("iou:2", &["threshold"]),
        ("countdown:most", &["`all`"]),
        ("0.5", &["weight"]),
        ("inf*exact", &["`inf*exact`"]),
        ("1e99*exact", &["weight"]),
        ("cmd:", &["no program"]),
        ("cmd:no-such-program-1 x", &["no-such-program-1"]),
        ("cmd:'", &["quote"]),
        ("code:no-such-program-1", &["no-such-program-1"]),
        ("http://", &["http://"]),
        ("numeric:1,", &["comma"]),
        ("relative:1", &["nothing"]),
        ("placed:2,1", &["2,1,0"]),
        ("set:words", &["`chars`"]),
        ("similar:0", &["threshold"]),
        ("xml-count:a,a", &["names of tags"]),
        ("signed-format:(", &["format pattern"]),
        ("diversity:0", &["characters"]),
        ("", &["numeric"]),
    ] {
        let error = parse(spec).err().unwrap().to_string();
        assert!(error.contains("config `reward`"), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{spec}: {error}");
    }
    for (combine, specs) in [
        (Combine::Harmonic, &["exact"][..]),
        (Combine::Min, &["exact"]),
        (Combine::Harmonic, &["exact", "-1*format"]),
    ] {
        let options = SpecOptions { combine, ..SpecOptions::default() };
        let error = parse_all(specs, &options).err().unwrap().to_string();
        assert!(error.contains("config `reward.combine`"), "{error}");
    }
    let none: [&str; 0] = [];
    assert!(parse_all(&none, &SpecOptions::default()).is_err());
    assert!(help().lines().count() >= 27 && help().contains("NOT a security sandbox"));
}

#[test]
fn sums_pass_on_failures_and_abstentions() {
    let specs = ["numeric", "0.2*format:^so", "-0.5*format:!"];
    let sum = parse_all(&specs, &SpecOptions::default()).unwrap();
    let row = json!({"answer": 3});
    for (completion, expected) in [("so 3", 1.2), ("so 3!", 0.7), ("4!", -0.5), ("4", 0.0)] {
        assert_eq!(ask(&*sum, completion, &row), one(expected), "{completion}");
    }
    let error = ask(&*sum, "so 3", &json!({})).unwrap_err();
    assert!(error.starts_with("numeric: ") && error.contains("`answer`"), "{error}");
    let input = RewardInput {
        prompt: "",
        completion: "",
        finished: true,
        fields: row.as_object().unwrap(),
    };
    assert_eq!(score(&*sum, &[input; 3]).unwrap().rewards, [0.0; 3]);
}

/// The reward of ReLIFT: 1 or 0 for an answer, -1 for a broken shape.
#[test]
fn parts_are_combined_as_the_options_say() {
    let options = SpecOptions { combine: Combine::Min, ..SpecOptions::default() };
    let least = parse_all(&["exact", "signed-format"], &options).unwrap();
    let row = json!({"answer": 3});
    for (completion, expected) in [
        ("<think>?</think><answer>3</answer>", 1.0),
        ("<think>?</think><answer>4</answer>", 0.0),
        ("<answer>3</answer> so", -1.0),
        ("4", -1.0),
    ] {
        assert_eq!(ask(&*least, completion, &row), one(expected), "{completion}");
    }
    let clamp = Some(Clamp { low: -0.5, high: 0.5 });
    let options = SpecOptions { clamp, ..SpecOptions::default() };
    assert_eq!(ask(&*parse_all(&["exact"], &options).unwrap(), "3", &row), one(0.5));
    let specs = ["exact", "0.5*format:3", "format:4"];
    let Ok(outcome) = judge(&*parse_all(&specs, &SpecOptions::default()).unwrap(), "3", &row)
    else {
        panic!("no outcome")
    };
    let parts = outcome.judgment().unwrap().parts;
    let named = |(name, value): &(&str, f32)| (name.to_string(), *value);
    let expected: Vec<_> =
        [("exact", 1.0), ("format", 1.0), ("format-2", 0.0)].iter().map(named).collect();
    assert_eq!(parts, expected);
}

/// Verifiers with their least and their largest score.
const BOUNDS: [(&str, f32, f32); 22] = [
    ("numeric:1%,0.1", 0.0, 1.0),
    ("exact", 0.0, 1.0),
    ("relative", 0.0, 1.0),
    ("placed", 0.0, 2.0),
    ("similar", 0.0, 1.0),
    ("set", 0.0, 1.0),
    ("set:chars", 0.0, 1.0),
    ("format", 0.0, 1.0),
    ("signed-format", -1.0, 1.0),
    ("xml-count", 0.0, 1.0),
    ("json", 0.0, 1.0),
    ("tool-call", 0.0, 1.0),
    ("tool-graded", -3.0, 3.0),
    ("iou", 0.0, 1.0),
    ("detect", 0.0, 2.0),
    ("point", 0.0, 1.0),
    ("interval", 0.0, 1.0),
    ("graph", 0.0, 1.0),
    ("checklist", 0.0, 1.0),
    ("length", 0.0, 1.0),
    ("countdown:0.1", 0.0, 1.0),
    ("chart-code", 0.0, 1.0),
];

/// Pieces out of which interesting texts are made.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[-+0-9.,e/%$ ]{0,8}",
        prop::sample::select(vec![
            "\\boxed{",
            "}",
            "{",
            "\\frac",
            "<answer>",
            "</answer>",
            "####",
            "answer is",
            "[",
            "]",
            "(",
            ")",
            "*",
            "<tool_call>",
            "</tool_call>",
            "{\"name\": \"f\"}",
            "```python\n",
            "\n```",
            "\u{2212}",
            "\\",
            "\\times",
            "é",
            "\\sqrt",
            "\\text{",
            "\\pm",
            "\\cup",
            "\\pi",
            "\\overline{",
            "\\begin{pmatrix}",
            "^",
            "_",
            "!",
            " and ",
            "x = ",
            "½",
            "³",
            "<think>",
            "</think>",
            "cm",
            "°",
            ",\\!",
            "{,}",
        ])
        .prop_map(String::from),
        ".{0,6}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn answer(text: &str) -> MathAnswer {
    MathAnswer::gold(text).or_else(|| MathAnswer::completion(text)).unwrap()
}

fn same(a: &MathAnswer, b: &MathAnswer) -> bool {
    a.is(b, 0.0, 0.0) && b.is(a, 0.0, 0.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn verifiers_take_any_text(text in pieces()) {
        let row = json!({
            "answer": "1/2", "numbers": [1, 2, 3], "target": 6, "boxes": [[0, 0, 1, 1], [1, 1, 2, 2]],
            "tool_calls": [{"name": "f"}], "schema": {"type": ["object", "array"]},
            "interval": [1, 2], "edges": "ab,bc", "node": "b", "checklist": ["a", {"lacks": "b"}],
            "length": 2, "code": "plt.bar(['a'], [1])"
        });
        for (spec, least, most) in BOUNDS {
            match ask(&*parse(spec).unwrap(), &text, &row) {
                Ok(RewardOutcome::Score(score)) => {
                    prop_assert!((least..=most).contains(&score), "{spec}: {score}");
                }
                other => prop_assert!(false, "{spec}: {other:?}"),
            }
        }
        let _ = (code_block(&text), tagged(&text, "x"), normalize(&text), parse_reply(text.as_bytes(), 1));
        // As a gold, any text is a number or a failure.
        let _ = ask(&*parse("numeric").unwrap(), "1", &json!({"answer": text}));
    }

    #[test]
    fn decimals_round_trip(value in any::<i64>(), places in 0usize..6) {
        let scaled = value as i128;
        let power = 10i128.pow(places as u32);
        let (whole, part) = (scaled.abs() / power, scaled.abs() % power);
        let sign = if value < 0 { "\u{2212}" } else { "" };
        let grouped: Vec<String> = whole.to_string().bytes().rev().collect::<Vec<_>>().chunks(3)
            .map(|group| group.iter().rev().map(|&b| b as char).collect()).rev().collect();
        let tail = if places > 0 { format!(".{part:0places$}") } else { String::new() };
        let fancy = answer(&format!("${sign}{}{tail}$", grouped.join(",")));
        let plain = answer(&format!("{value}e-{places}"));
        let fraction = answer(&format!("\\frac{{{value}}}{{{power}}}"));
        prop_assert!(same(&fancy, &plain) && same(&plain, &fraction));
        let next = answer(&format!("{}e-{places}", scaled + 1));
        prop_assert!(!same(&plain, &next));
        let last = answer(&format!("so {value}."));
        prop_assert!(same(&last, &answer(&value.to_string())));
    }

    /// Sums and products of surds, in one order and another.
    #[test]
    fn surds_have_a_normal_form(
        terms in prop::collection::vec((-9i64..10, 1u32..40, 1u32..5), 1..5),
        scale in 1u32..30,
    ) {
        let write = |(c, r, d): &(i64, u32, u32)| format!("\\frac{{{c}\\sqrt{{{r}}}}}{{{d}}}");
        let forward: Vec<String> = terms.iter().map(write).collect();
        let backward: Vec<String> = terms.iter().rev().map(|(c, r, d)| {
            // c√r/d = cs√(r·s²)/(d·s²)
            let square = scale * scale;
            format!("({}\\sqrt{{{}}})/{}", c * scale as i64, r * square, d * square)
        }).collect();
        let (a, b) = (answer(&forward.join("+")), answer(&backward.join(" + ")));
        prop_assert!(same(&a, &b), "{forward:?} {backward:?}");
        let more = answer(&format!("{}+1", forward.join("+")));
        prop_assert!(!same(&a, &more));
        let value: f64 = terms.iter().map(|&(c, r, d)| c as f64 * (r as f64).sqrt() / d as f64).sum();
        let decimals = answer(&format!("{value:.12}"));
        prop_assert!(a.is(&decimals, 1e-9, 0.0));
    }

    #[test]
    fn boxes_and_braces_round_trip(inside in "[a-z{}0-9]{0,12}", before in "[a-z]{0,8}") {
        let depth = inside.chars().try_fold(0i32, |depth, c| {
            let depth = depth + (c == '{') as i32 - (c == '}') as i32;
            (depth >= 0).then_some(depth)
        });
        prop_assume!(depth == Some(0));
        let text = format!("{before}\\boxed{{{inside}}} .");
        // An empty box is none.
        prop_assert_eq!(boxed(&text), Some(inside.as_str()).filter(|inside| !inside.is_empty()));
        prop_assert_eq!(boxed(&text[..text.len() - 3]), None);
    }

    #[test]
    fn printed_boxes_are_read(corners in prop::array::uniform4(-1e6f64..1e6)) {
        let found = parse_boxes(&format!("I see {corners:?} there"));
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!(found[0].corners, corners);
        prop_assert!((0.0..=1.0).contains(&found[0].iou(&found[0])));
    }

    #[test]
    fn sums_are_evaluated(terms in prop::collection::vec(1i128..1000, 1..12)) {
        let text = terms.iter().map(i128::to_string).collect::<Vec<_>>().join(" + ");
        let (value, used) = evaluate(&format!("({text})")).unwrap();
        prop_assert_eq!(value.unwrap().parts(), Some((terms.iter().sum::<i128>(), 1)));
        prop_assert_eq!(used.len(), terms.len());
    }

    #[test]
    fn calls_round_trip(name in "[a-z]{1,8}", keys in prop::collection::btree_map(".{0,5}", any::<i32>(), 0..5)) {
        let call = json!({"name": name, "arguments": keys});
        let text = format!("ok <tool_call>{call:#}</tool_call>");
        let calls = parse_calls(&text);
        prop_assert_eq!(calls.len(), 1);
        let read = json!({"arguments": calls[0].as_ref().unwrap().arguments, "name": name});
        prop_assert_eq!(canonical(&read), canonical(&call));
    }
}

/// Figures for the log: `cargo test --test files reward::builtin -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn times() {
    let row = json!({
        "answer": "24", "numbers": [2, 3, 4], "target": 24, "boxes": [[0, 0, 2, 2], [1, 1, 3, 3]],
        "tool_calls": [{"name": "f"}], "tests": [{"stdout": "1"}]
    });
    let fields = row.as_object().unwrap();
    let thought = "Three times 4 is 12, and 12 times 2 is 24. ".repeat(20);
    let text = format!("<think>{thought}</think>\n<answer>2*3*4 = 24</answer>");
    let input = RewardInput { prompt: "", completion: &text, finished: true, fields };
    for spec in
        ["numeric", "exact", "format", "format:^<think>.*</think>", "json", "iou", "countdown"]
    {
        let (reward, inputs) = (parse(spec).unwrap(), vec![input; 4096]);
        let begun = Instant::now();
        reward.score(&inputs);
        println!("{spec}: {:.0} samples/s", 4096.0 / begun.elapsed().as_secs_f64());
    }
    let text = fenced("print(1)");
    let inputs = vec![RewardInput { completion: &text, ..input }; 100];
    let begun = Instant::now();
    code().score(&inputs);
    println!("code: {:.0} runs/s", 100.0 / begun.elapsed().as_secs_f64());
}

/// Pieces of text; a text of one of them over and over makes a careless parser quadratic.
const PIECES: [&str; 72] = [
    "\\boxed{",
    "{",
    "1",
    "1,111,",
    "(",
    "1+",
    "[",
    "[1,",
    "<answer>",
    "</answer>",
    "\\frac{1}{",
    "1/",
    "-",
    "1e",
    "$",
    "<tool_call>",
    "<think>",
    "####",
    "answer is ",
    "answer to ",
    "answer ",
    "answer:\n",
    "答案是",
    "\\boxed",
    "\\boxed ",
    "\\boxed{1} and ",
    "<tool_call>{\"",
    "<tool_call>{}</tool_call>",
    "</think>",
    "\\sqrt{",
    "\\sqrt",
    "√",
    "2^",
    "9^{9",
    "!",
    "\\text{",
    "{,}000",
    " 000",
    ",\\!000",
    "\\pm ",
    "\\pm1+",
    "1,",
    "1 and ",
    "(1,",
    "\\{1,",
    "\\frac12",
    "\\overline{",
    "0.(",
    "x = ",
    "= ",
    "\\cup ",
    "\\begin{pmatrix}",
    "1 & ",
    "1 cm ",
    "1 km/",
    "1:",
    "³",
    "½",
    "_{1",
    "|",
    "\\ln",
    "\\binom",
    "π",
    "(1,2),",
    "(1,2",
    "```\n",
    "\u{2212}",
    "x ",
    "'a',",
    "[1,2,3,4,.5]",
    "bar(",
    "a-",
];

/// Verifiers that read a text as others do.
const READ_ALIKE: [&str; 3] = ["placed", "set:chars", "signed-format"];

/// Each of the long texts must take a moment only.
#[test]
fn long_texts_take_linear_time() {
    let row = json!({
        "answer": "1", "numbers": [1, 2], "target": 3, "boxes": [0, 0, 1, 1], "tool_calls": [],
        "interval": [1, 2], "edges": "ab,bc", "path": "ac", "checklist": ["a", {"matches": "b$"}],
        "length": 2, "code": "plt.bar(['a', 'b'], [1, 2])"
    });
    let (begun, mut slowest) = (Instant::now(), (Duration::ZERO, "", ""));
    for piece in PIECES {
        let text = piece.repeat(200_000 / piece.len());
        // `options` wants letters in its row, and has nothing that takes time.
        for (spec, ..) in BOUNDS.iter().filter(|bounds| !READ_ALIKE.contains(&bounds.0)) {
            let one = Instant::now();
            ask(&*parse(spec).unwrap(), &text, &row).unwrap();
            slowest = slowest.max((one.elapsed(), spec, piece));
        }
        Format::new("^<think>.*</think>.*<answer>.*</answer>$").unwrap().matches(&text);
        let _ = (code_block(&text), ask(&Json::default(), &text, &row));
    }
    println!("{slowest:?}, {:?} together", begun.elapsed());
    assert!(slowest.0 < Duration::from_secs(3), "{slowest:?}");
}
