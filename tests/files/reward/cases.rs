//! Judged answers: files of completions with a row and the verdict of a person, some of them from
//! published reports on other graders (`source`), and tables of golds with what is right and wrong.

use gradus_rft::reward::RewardInput;
use gradus_rft::reward::spec::parse;
use serde_json::{Value, json};

/// The reward that a case names, or else the one that reads the fields of its row.
fn reward_for(case: &Value) -> &str {
    match &case["row"] {
        _ if case["reward"].is_string() => case["reward"].as_str().unwrap(),
        row if row.get("answer").is_some() => "numeric",
        row if row.get("tool_calls").is_some() => "tool-call",
        row if row.get("boxes").is_some() => "iou",
        _ => "format",
    }
}

/// The score of a completion.
fn score(reward: &str, completion: &str, row: &Value) -> f32 {
    let input =
        RewardInput { prompt: "", completion, finished: true, fields: row.as_object().unwrap() };
    match parse(reward).unwrap().score(&[input]).remove(0).map(|outcome| outcome.score()) {
        Ok(Some(score)) => score,
        Ok(None) => panic!("{reward} abstained on {completion}"),
        Err(reason) => panic!("{reward} failed on {completion}: {reason}"),
    }
}

/// The lines of the files in a folder of golden data, with the files' names.
fn lines(folder: &str) -> Vec<(String, Value)> {
    let folder = crate::common::root().join("tests/golden").join(folder);
    let mut all = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = |line: &str| (name.clone(), serde_json::from_str(line).unwrap());
        all.extend(text.lines().map(read));
    }
    all
}

#[test]
fn judged_cases() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (file, case) in lines("cases") {
        let (completion, row) = (case["completion"].as_str().unwrap(), &case["row"]);
        let right = match case["expected"].as_str() {
            Some("right") => true,
            Some("wrong") => false,
            other => panic!("{file}: {other:?}"),
        };
        let got = score(reward_for(&case), completion, row);
        // A right answer scores all that there is, a wrong one nothing.
        if got != right as u8 as f32 {
            wrong.push(format!("{file}: {got}: {case}"));
        }
        count += 1;
    }
    assert!(count >= 96, "{count} cases");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// For each gold, what is right and what is wrong, put into `around`.
#[test]
fn spellings() {
    let (mut mistakes, mut count) = (Vec::new(), 0);
    for (file, line) in lines("answers") {
        let around = line["around"].as_str().unwrap();
        for (key, expected) in [("right", 1.0), ("wrong", 0.0)] {
            for said in line[key].as_array().unwrap() {
                let completion = around.replace('…', said.as_str().unwrap());
                let gold = &line["gold"];
                if score("numeric", &completion, &json!({"answer": gold})) != expected {
                    mistakes.push(format!("{file}: {gold} and `{completion}`: not {expected}"));
                }
                count += 1;
            }
        }
    }
    assert!(count > 850, "{count} spellings");
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn decimals_are_exact_without_a_tolerance() {
    let with = |spec: &str, said: &str, gold: &str| score(spec, said, &json!({"answer": gold}));
    for (spec, said, gold, right) in [
        ("numeric", "0.3333", "1/3", 0.0),
        ("numeric", "0.333333333333333333", "1/3", 0.0),
        ("numeric", "3.14159", "\\pi", 0.0),
        ("numeric:1%", "0.3333", "1/3", 1.0),
        ("numeric:0.01", "3.14", "\\pi", 1.0),
        ("numeric:0.01", "\\boxed{(1.414, 3.14)}", "(\\sqrt2, \\pi)", 1.0),
        ("numeric:0.01", "\\boxed{(3.14, 1.414)}", "(\\sqrt2, \\pi)", 0.0),
        ("numeric:1%", "5.65", "4\\sqrt2", 1.0),
        ("numeric:1%", "\\boxed{5x}", "5", 0.0),
        ("numeric:5%", "104", "100", 1.0),
        ("numeric:5%", "106", "100", 0.0),
        ("numeric:5%", "-100", "100", 0.0),
        ("numeric:5%", "\\boxed{2+3i}", "2+3i", 1.0),
        ("numeric:5%", "1e999", "1e999", 1.0),
        ("numeric:5%", "1e998", "1e999", 0.0),
    ] {
        assert_eq!(with(spec, said, gold), right, "{spec} {said} {gold}");
    }
}

#[test]
fn golds_that_are_no_answer_are_refused() {
    let reward = parse("numeric").unwrap();
    for gold in [
        "",
        " ",
        "x",
        "5x",
        "2x+3",
        "\\frac{5}{x}",
        "\\text{(C)}",
        "C",
        "yes",
        "no solution",
        "\\sin x",
        "\\frac{1}{0}",
        "x^2+1=5",
        "y = 2x",
        "\\mathbb{R}",
        "1 2",
        "1e99999",
        "9^{9^{9}}",
        "0^0",
        "\\frac{1}",
        "1.2.3",
        "$",
        "%",
        "She has 5",
        "#### Check",
        "5 + ",
        "\\sqrt{x}",
        "3 \\frac{x}{2}",
        "(a, b)",
        "1001!",
    ] {
        let row = json!({"answer": gold});
        let error = reward.check_row(row.as_object().unwrap()).expect_err(gold);
        assert!(error.contains("`answer`") && error.contains("math_verify"), "{error}");
    }
    for gold in [
        "42",
        "so\n#### 42",
        "\\boxed{5\\pi}",
        "The answer is 5.",
        "$42$",
        "42 apples",
        "<answer>3</answer>",
        "1,2",
        "\\{\\}",
    ] {
        reward.check_row(json!({"answer": gold}).as_object().unwrap()).unwrap();
    }
}
