//! Judged answers: files of completions with a row and the verdict of a person, and tables of golds
//! with what is right and wrong for them.

use std::path::Path;

use gradus::reward::spec::parse;
use gradus::reward::{RewardInput, RewardOutcome};
use serde_json::{Value, json};

/// The reward that reads the fields of a row.
fn reward_for(row: &Value) -> &'static str {
    match row {
        row if row.get("answer").is_some() => "numeric",
        row if row.get("tool_calls").is_some() => "tool-call",
        row if row.get("boxes").is_some() => "iou",
        _ => "format",
    }
}

/// The score of a completion, 0 for a gold that is refused.
fn score(reward: &str, completion: &str, row: &Value) -> f32 {
    let input =
        RewardInput { prompt: "", completion, finished: true, fields: row.as_object().unwrap() };
    match parse(reward).unwrap().score(&[input]).remove(0) {
        Ok(RewardOutcome::Score(score)) => score,
        Ok(RewardOutcome::Abstain) => panic!("{reward} abstained on {completion}"),
        Err(reason) => panic!("{reward} failed on {completion}: {reason}"),
    }
}

#[test]
fn judged_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let (completion, row) = (case["completion"].as_str().unwrap(), &case["row"]);
            let right = match case["expected"].as_str() {
                Some("right") => true,
                Some("wrong") => false,
                other => panic!("{}: {other:?}", path.display()),
            };
            let got = score(reward_for(row), completion, row);
            // A right answer scores all that there is, a wrong one nothing.
            if got != right as u8 as f32 {
                wrong.push(format!("{}: {got}: {line}", path.file_name().unwrap().display()));
            }
            count += 1;
        }
    }
    assert!(count >= 46, "{count} cases");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// For each gold: what is right in a box, and what is wrong.
fn judge(table: &[(&str, &[&str], &[&str])], around: impl Fn(&str) -> String) {
    let mut mistakes = Vec::new();
    for (gold, right, wrong) in table {
        let said = right.iter().map(|said| (said, 1.0)).chain(wrong.iter().map(|said| (said, 0.0)));
        for (said, expected) in said {
            let completion = around(said);
            if score("numeric", &completion, &json!({"answer": gold})) != expected {
                mistakes.push(format!("`{gold}` and `{completion}`: expected {expected}"));
            }
        }
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn spellings_of_numbers() {
    let boxed = |said: &str| format!("so \\boxed{{{said}}} it is");
    judge(
        &[
            (
                "10000",
                &[
                    "10,000",
                    "10{,}000",
                    "10,\\!000",
                    "10\\,000",
                    "10 000",
                    "10\\ 000",
                    "10~000",
                    "10\\;000",
                    "10\u{a0}000",
                    "10\u{202f}000",
                    "10\u{2009}000",
                    "10'000",
                    "10_000",
                    "10000.0",
                    "10^4",
                    "1e4",
                    "1 \\times 10^4",
                    "1.0\\cdot10^{4}",
                    "10,000.00",
                    "10 thousand",
                    "１０，０００",
                    "١٠٠٠٠",
                    "100^2",
                    "+10000",
                    "\\$10,000",
                    "10{,}000\\text{ dollars}",
                    "\\text{10,000}",
                    "\\mathbf{10000}",
                    "10000.",
                    "\\displaystyle 10000",
                    "{10000}",
                    "(10000)",
                    "n = 10{,}000",
                    "20000/2",
                    "10\\,000\\,\\text{km}",
                    "€10000",
                ],
                &[
                    "10",
                    "0",
                    "000",
                    "10,00",
                    "10, 000",
                    "100,000",
                    "10.000",
                    "1000",
                    "10000x",
                    "10000n",
                    "-10000",
                    "10000 or 1",
                    "10^5",
                    "10000!",
                    "10;000",
                    "10,000,0",
                    "x",
                    "",
                    "10000 + y",
                    "10 0000",
                ],
            ),
            (
                "1234567.89",
                &[
                    "1,234,567.89",
                    "1.234.567,89",
                    "1 234 567.89",
                    "1'234'567.89",
                    "12,34,567.89",
                    "1{,}234{,}567.89",
                    "1.23456789 \\times 10^6",
                    "1.23456789e6",
                    "\\$1,234,567.89",
                ],
                &["1,234,567", "1,234,567.9", "1234567,89,1", "1.234.567"],
            ),
            ("10,\\!000", &["10000", "10,000", "10\\,000", "10^4"], &["0", "10", "000", "10,001"]),
            ("1,234", &["1234", "1 234", "1234.0"], &["1", "234", "1, 234", "1.234"]),
            (
                "2.5",
                &["2{,}5", "5/2", "2\\frac12", "2 1/2", "2½", "2 ½", "2.50", "250\\%"],
                &["25", "2,5", "2"],
            ),
            (
                "0.5",
                &["1/2", ".5", "\\frac{1}{2}", "50\\%", "50 percent", "½", "2^{-1}", "0.50"],
                &["5", "0.49999", "0,5", "1/3"],
            ),
            ("50%", &["50", "0.5", "50\\%", "1/2", "50.0 \\%"], &["5", "0.05", "51\\%", "5000\\%"]),
            (
                "-3",
                &[
                    "−3",
                    "–3",
                    "-3.0",
                    "- 3",
                    "-\\frac{6}{2}",
                    "\\frac{-6}{2}",
                    "\\frac{6}{-2}",
                    "{-3}",
                    "(-3)",
                    "-\\$3",
                    "x=-3",
                ],
                &["3", "—", "-", "--", "-4", "\\pm 3"],
            ),
            (
                "0.\\overline{3}",
                &["1/3", "0.(3)", "\\frac13", "0.3\\overline{3}", "0.\\bar{3}"],
                &["0.3", "0.333333", "3"],
            ),
            ("0.1\\overline{6}", &["1/6"], &["0.16", "0.1\\overline{5}"]),
            (
                "1e-5",
                &["0.00001", "10^{-5}", "1 \\times 10^{-5}", "1E-5", "1/100000"],
                &["1e5", "1e-6", "0", "-5"],
            ),
            (
                "3 \\times 10^8",
                &[
                    "300000000",
                    "3e8",
                    "3\\cdot 10^{8}",
                    "3*10^8",
                    "3*10**8",
                    "3 x 10^8",
                    "3×10⁸",
                    "0.3 \\times 10^9",
                    "300 million",
                ],
                &[
                    "8",
                    "3",
                    "10^8",
                    "5 \\times 10^8",
                    "3 \\times 10^9",
                    "3 \\times 10",
                    "3*10^{-8}",
                ],
            ),
            ("12_{10}", &["12"], &["10", "1210"]),
            (
                "4343_6",
                &["4343", "4343_6", "4343_{6}", "4343₆", "999_{10}"],
                &["4343_7", "434", "6"],
            ),
            (
                "123456789012345678901234567890123456789012",
                &[
                    "123456789012345678901234567890123456789012.0",
                    "123,456,789,012,345,678,901,234,567,890,123,456,789,012",
                ],
                &[
                    "123456789012345678901234567890123456789013",
                    "1.23456789012345678901234567890123456789e41",
                ],
            ),
            ("1e300", &["10^{300}", "1e300"], &["1e301", "1e299", "1e9999"]),
        ],
        boxed,
    );
}

#[test]
fn fractions_roots_and_constants() {
    let boxed = |said: &str| format!("\\[\\boxed{{{said}}}\\]");
    judge(
        &[
            (
                "3/4",
                &[
                    "\\frac{3}{4}",
                    "\\frac34",
                    "\\frac 34",
                    "\\frac{ 3 }{ 4 }",
                    "\\frac {3}{4}",
                    "\\dfrac{3}{4}",
                    "\\tfrac34",
                    "\\cfrac{3}{4}",
                    "0.75",
                    "75\\%",
                    "{3 \\over 4}",
                    "¾",
                    "6/8",
                    "3 / 4",
                    "3 \\div 4",
                    "\\frac{3}4",
                    "\\frac3{4}",
                    "\\left(\\frac{3}{4}\\right)",
                    "\\frac{\\frac{3}{2}}{2}",
                    "x = \\frac{3}{4}",
                    "1 - \\frac14",
                    "\\frac{1}{2}+\\frac{1}{4}",
                    "\\text{3/4}",
                    "3:4",
                    "\\frac{3}{4}\\text{ cup}",
                    "3⁄4",
                ],
                &[
                    "3",
                    "4",
                    "34",
                    "4/3",
                    "\\frac{3}{4x}",
                    "3/4/2",
                    "\\frac{3}{}",
                    "\\frac{3}",
                    "3/0",
                    "\\frac{3}{4}x",
                    "3\\frac{1}{4}",
                ],
            ),
            (
                "3\\frac{1}{2}",
                &[
                    "3.5",
                    "7/2",
                    "3 1/2",
                    "3½",
                    "3\\frac12",
                    "3\\dfrac{1}{2}",
                    "3 \\frac{1}{2}",
                    "\\frac{7}{2}",
                    "3+\\frac12",
                ],
                &["1/2", "3", "3/2", "3\\cdot\\frac12", "31/2", "-3\\frac12"],
            ),
            ("-3\\frac12", &["-3.5", "-7/2", "-3 1/2", "−3½"], &["-2.5", "3.5"]),
            ("11/3", &["3\\frac23", "2\\frac{5}{3}", "3 2/3"], &["10/3", "2/3"]),
            (
                "4\\sqrt{2}",
                &[
                    "4\\sqrt2",
                    "\\sqrt{32}",
                    "\\sqrt{2}\\cdot4",
                    "4 \\sqrt {2}",
                    "4√2",
                    "4*sqrt(2)",
                    "2\\sqrt{8}",
                    "\\frac{8}{\\sqrt{2}}",
                    "\\sqrt{2} \\times 4",
                    "4 \\cdot 2^{1/2}",
                    "4(\\sqrt{2})",
                    "8/\\sqrt2",
                    "2^{5/2}",
                    "4√(2)",
                    "2^{2.5}",
                ],
                &[
                    "2",
                    "4",
                    "42",
                    "7\\sqrt{2}",
                    "4\\sqrt{3}",
                    "-4\\sqrt{2}",
                    "4\\sqrt{2}x",
                    "5.65685",
                    "\\sqrt{4}2",
                    "\\pm4\\sqrt2",
                    "4\\sqrt[3]{2}",
                ],
            ),
            (
                "\\frac{\\sqrt{2}}{2}",
                &[
                    "\\frac{1}{\\sqrt{2}}",
                    "\\sqrt{\\frac12}",
                    "\\sqrt2/2",
                    "2^{-1/2}",
                    "\\sqrt{0.5}",
                ],
                &["2", "\\sqrt2", "1/2", "0.7071"],
            ),
            (
                "\\sqrt{2}-1",
                &["\\frac{1}{1+\\sqrt{2}}", "-1+\\sqrt2", "\\sqrt{3-2\\sqrt{2}}"],
                &["1-\\sqrt2", "\\sqrt{2-1}"],
            ),
            (
                "\\frac{1+\\sqrt{5}}{2}",
                &[
                    "\\frac12 + \\frac{\\sqrt5}{2}",
                    "\\frac{2}{\\sqrt5-1}",
                    "(1+\\sqrt{5})/2",
                    "\\sqrt{\\frac{3+\\sqrt5}{2}}",
                ],
                &["\\frac{1-\\sqrt5}{2}", "1.618", "\\frac{1+\\sqrt{5}}{3}"],
            ),
            (
                "\\sqrt{2+\\sqrt{2}}",
                &["\\sqrt{2+\\sqrt2}", "\\frac{\\sqrt{8+4\\sqrt2}}{2}"],
                &["\\sqrt{2}+\\sqrt{2}", "2", "\\sqrt{2-\\sqrt2}"],
            ),
            (
                "\\sqrt[3]{16}",
                &["2\\sqrt[3]{2}", "16^{1/3}", "2 \\cdot 2^{\\frac13}", "\\frac{4}{\\sqrt[3]{4}}"],
                &["4", "2\\sqrt{2}", "2.52"],
            ),
            ("\\sqrt[3]{-8}", &["-2"], &["2", "-8"]),
            (
                "\\sqrt{2}+\\sqrt{3}",
                &["\\sqrt3+\\sqrt2", "\\sqrt{5+2\\sqrt6}", "\\frac{1}{\\sqrt3-\\sqrt2}"],
                &["\\sqrt{5}", "\\sqrt6"],
            ),
            (
                "5\\pi",
                &[
                    "5π",
                    "5 \\pi",
                    "\\pi \\cdot 5",
                    "5\\cdot\\pi",
                    "5pi",
                    "5*\\pi",
                    "\\frac{10\\pi}{2}",
                ],
                &["5", "\\pi", "15.708", "5\\pi x", "5\\pi^2", "5p"],
            ),
            (
                "\\frac{\\pi}{4}",
                &[
                    "\\pi/4",
                    "\\frac14\\pi",
                    "0.25\\pi",
                    "\\frac{\\pi^2}{4\\pi}",
                    "45^\\circ",
                    "45°",
                ],
                &["\\frac{1}{4}", "45", "\\frac{\\pi}{2}", "\\frac{4}{\\pi}", "50°"],
            ),
            (
                "2+3i",
                &["3i+2", "2+3\\cdot i", "\\frac{4+6i}{2}", "(2 + 3i)", "2 + 3 i", "i(3-2i)"],
                &["2-3i", "5", "2", "3i", "5i"],
            ),
            (
                "e^2",
                &["e^{2}", "e \\cdot e", "\\exp(2)", "\\exp 2", "\\frac{e^3}{e}"],
                &["2", "e", "7.389"],
            ),
            (
                "\\ln 2",
                &["\\ln(2)", "\\frac{\\ln 8}{3}", "\\frac12\\ln 4", "-\\ln\\frac12", "ln(2)"],
                &["2", "\\ln 3", "0.693"],
            ),
            (
                "3",
                &[
                    "\\log_2 8",
                    "\\log_{2}{8}",
                    "\\frac{\\log 8}{\\log 2}",
                    "\\sqrt{9}",
                    "\\sqrt 9",
                    "|{-3}|",
                    "\\lfloor 3.7 \\rfloor",
                    "\\binom{3}{1}",
                    "2+1",
                    "\\frac{9}{3}",
                    "\\frac93",
                    "9^{1/2}",
                    "\\sqrt[3]{27}",
                ],
                &["\\log_3 8", "\\binom{4}{2}", "2+2", "9^{1/3}"],
            ),
            (
                "120",
                &["5!", "\\binom{10}{3}", "2\\cdot 60", "5 \\cdot 4!", "1.2 \\times 10^2"],
                &["5", "6!", "5!!"],
            ),
            (
                "1/(\\pi+1)",
                &["\\frac{1}{1+\\pi}", "\\frac{2}{2\\pi+2}"],
                &["\\pi+1", "\\frac{1}{\\pi}"],
            ),
        ],
        boxed,
    );
}

#[test]
fn units_currencies_and_percent() {
    let boxed = |said: &str| format!("Thus $\\boxed{{{said}}}$.");
    judge(
        &[
            (
                "18",
                &[
                    "18\\text{ cm}^2",
                    "18 \\text{ cm}^{2}",
                    "18\\,\\mathrm{cm^2}",
                    "18 cm^2",
                    "18 cm²",
                    "18\\text{ cm}",
                    "18 \\text{ square centimeters}",
                    "18 \\text{ sq. cm}",
                    "18^\\circ",
                    "18°",
                    "18 degrees",
                    "18\\%",
                    "\\$18",
                    "18\\$",
                    "18 \\text{ dollars}",
                    "18 apples",
                    "18 \\text{ apples}",
                    "18\\text{ m/s}",
                    "18 m/s",
                    "18 km/h",
                    "18 miles per hour",
                    "18 \\text{ mph}",
                    "18^{th}",
                    "18^\\text{th}",
                    "18th",
                    "18 \\text{ years old}",
                    "18\\text{ kg}\\cdot\\text{m}^2",
                    "18 ~\\text{cm}^3",
                    "18 \\textbf{ hours}",
                    "18\\text{cm}",
                    "18cm",
                    "18 \\mbox{ inches}",
                    "18\\text{ ways}",
                    "\\text{18 ways}",
                    "18 people in total",
                    "\\text{Area} = 18",
                    "AB = 18",
                    "f(3) = 18",
                    "x_1 = 18",
                    "\\angle ABC = 18^\\circ",
                    "18 = x",
                    "\\approx 18",
                    "9+9=18",
                    "\\textbf{(C)}\\ 18",
                    "\\text{(C) } 18",
                    "(C) 18",
                    "18 \\text{ m}",
                    "m\\angle A = 18°",
                    "18\\text{.}",
                    "\\theta = 18^{\\circ}",
                ],
                &[
                    "2",
                    "18x",
                    "18 x",
                    "18xy",
                    "18\\text{ cm}^2 + x",
                    "18^2",
                    "18 \\text{ or } 19",
                    "x^2+17=18",
                    "2x = 18",
                    "18 times 2",
                    "18 plus 1",
                    "18/cm/3",
                    "180°",
                    "18!",
                    "18a+b",
                ],
            ),
            (
                "18\\text{ cm}^2",
                &["18", "18 cm^2", "18 square centimeters", "0.0018\\text{ m}^2"],
                &["2", "18\\text{ m}^2", "18 kg", "18\\text{ cm}"],
            ),
            (
                "5\\text{ m}",
                &["5", "5 m", "500\\text{ cm}", "5 meters", "5 metres", "0.005\\text{ km}"],
                &["5 cm", "500", "5 s", "5 kg"],
            ),
            (
                "2.5 hours",
                &[
                    "2.5",
                    "150 minutes",
                    "2 hours 30 minutes",
                    "2 \\text{ hours and } 30 \\text{ minutes}",
                    "2\\frac12 \\text{ hours}",
                ],
                &["2", "30", "150", "150 hours", "2 hours 30 seconds"],
            ),
            (
                "60 mph",
                &["60", "60 miles per hour", "60 \\text{ mi/h}", "1 \\text{ mile/min}"],
                &["60 km/h", "1"],
            ),
            ("$0.50", &["0.5", "\\$0.50", "50 cents", "\\$.50", "1/2"], &["\\$50", "5", "€0.50"]),
            (
                "\\$12.50",
                &["12.5", "\\$12.50", "12.50 dollars", "12 dollars and 50 cents"],
                &["€12.50", "12", "50"],
            ),
            (
                "90^\\circ",
                &[
                    "90",
                    "90°",
                    "90 degrees",
                    "90^{\\circ}",
                    "\\frac{\\pi}{2}",
                    "\\frac{\\pi}{2}\\text{ radians}",
                ],
                &["\\pi", "9", "90 radians"],
            ),
            (
                "25\\%",
                &["25", "0.25", "1/4", "25 percent", "25\\text{ percent}", "25 \\%"],
                &["2.5", "250\\%", "0.0025"],
            ),
            (
                "3.5 million",
                &["3500000", "3,500,000", "3.5 \\times 10^6", "3.5 \\text{ million}"],
                &["3.5", "3.5 billion"],
            ),
            ("7 dozen", &["84", "7 \\text{ dozen}"], &["7", "12"]),
        ],
        boxed,
    );
}

#[test]
fn lists_sets_tuples_and_intervals() {
    let boxed = |said: &str| format!("<answer>${said}$</answer>");
    judge(
        &[
            (
                "1331 and 1728",
                &[
                    "1331, 1728",
                    "1728, 1331",
                    "1728 and 1331",
                    "1331 \\text{ and } 1728",
                    "\\{1331, 1728\\}",
                    "{1331, 1728}",
                    "1331; 1728",
                    "x = 1331, x = 1728",
                    "x=1331 \\text{ or } x=1728",
                    "1331,1728",
                    "11^3, 12^3",
                    "1,331 and 1,728",
                    "n=1331 or n=1728",
                ],
                &[
                    "1728",
                    "1331",
                    "1331, 1728, 1",
                    "1331, 1729",
                    "(1728, 1331)",
                    "1331 + 1728",
                    "1331-1728",
                ],
            ),
            (
                "7",
                &["\\{7\\}", "x = 7", "7, 7", "7.0"],
                &[
                    "5, 7",
                    "7, 5",
                    "(3, 7)",
                    "[7, 8]",
                    "\\{5, 7\\}",
                    "5 \\text{ or } 7",
                    "7 and 5",
                    "\\pm 7",
                    "3:7",
                ],
            ),
            (
                "\\pm 2021",
                &[
                    "2021, -2021",
                    "-2021, 2021",
                    "\\pm2021",
                    "±2021",
                    "\\{-2021, 2021\\}",
                    "x = \\pm 2021",
                    "x=2021 \\text{ or } x=-2021",
                    "2021 and -2021",
                    "\\mp 2021",
                ],
                &["2021", "-2021", "2021, 2021", "\\pm 2020"],
            ),
            (
                "3 \\pm \\sqrt{2}",
                &[
                    "3+\\sqrt2, 3-\\sqrt2",
                    "3-\\sqrt{2} \\text{ and } 3+\\sqrt{2}",
                    "3 \\mp \\sqrt{2}",
                    "\\frac{6 \\pm \\sqrt{8}}{2}",
                ],
                &["3+\\sqrt2", "3", "-3\\pm\\sqrt2", "\\sqrt{2} \\pm 3"],
            ),
            (
                "(3, 5)",
                &[
                    "(3,5)",
                    "\\left(3, 5\\right)",
                    "(3.0, \\frac{10}{2})",
                    "x = 3, y = 5",
                    "3, 5",
                    "( 3 , 5 )",
                    "(x, y) = (3, 5)",
                    "\\boxed{(3,5)}",
                    "\\text{(3, 5)}",
                ],
                &["5", "3", "(5, 3)", "[3, 5]", "(3, 5, 1)", "(3)", "\\{3, 5\\}", "(3, 5]"],
            ),
            ("(1,234)", &["(1, 234)", "(1,234)", "1234"], &["(1, 23)", "234"]),
            (
                "[3, 5)",
                &["[3,5)", "3 \\le x < 5", "3 ≤ x < 5", "x \\in [3, 5)", "5 > x \\geq 3", "[3,5["],
                &["(3,5)", "[3,5]", "3 < x < 5", "3"],
            ),
            (
                "(-\\infty, 3]",
                &[
                    "x \\le 3",
                    "x <= 3",
                    "(-∞, 3]",
                    "3 \\ge x",
                    "\\left(-\\infty, 3\\right]",
                    "]-\\infty, 3]",
                    "x \\in (-\\infty, 3]",
                ],
                &["x < 3", "x \\ge 3", "3", "(\\infty, 3]", "[-3, \\infty)"],
            ),
            (
                "(-\\infty, 1) \\cup (2, \\infty)",
                &["(2,\\infty) \\cup (-\\infty,1)", "x < 1 \\text{ or } x > 2", "x<1 or x>2"],
                &["(-\\infty, 1)", "(1, 2)", "(-\\infty, 1] \\cup (2, \\infty)"],
            ),
            (
                "\\{1, 2, 3\\}",
                &[
                    "1, 2, 3",
                    "\\{3, 2, 1\\}",
                    "{1,2,3}",
                    "\\left\\{1,2,3\\right\\}",
                    "\\lbrace 1, 2, 3 \\rbrace",
                ],
                &["\\{1, 2\\}", "\\{1, 2, 4\\}", "123", "\\{1, 2, 3, 4\\}"],
            ),
            ("\\emptyset", &["\\varnothing", "\\{\\}", "∅", "\\{ \\}"], &["0", "\\{0\\}"]),
            ("\\infty", &["∞", "+\\infty"], &["-\\infty", "0"]),
            (
                "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
                &[
                    "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
                    "\\begin{pmatrix} 1 \\\\ \\frac{4}{2} \\\\ \\end{pmatrix}",
                    "\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}",
                ],
                &[
                    "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}",
                    "(1, 2)",
                    "\\begin{pmatrix} 1 & 2 \\end{pmatrix}",
                    "1",
                ],
            ),
            (
                "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
                &["\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"],
                &[
                    "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}",
                    "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}",
                ],
            ),
            (
                "x = 2, y = 3",
                &["y = 3, x = 2", "x=2 and y=3", "(2, 3)"],
                &["x = 3, y = 2", "2", "(3, 2)"],
            ),
            ("1:2", &["2:4", "1/2", "1 : 2", "0.5", "\\frac12"], &["2:1", "1", "2", "1:2:3"]),
            ("2:3:4", &["4:6:8", "2:3:4"], &["2:3", "2:4:3"]),
            (
                "100, 200, 300",
                &["100,200,300", "300, 200, 100", "100; 200; 300"],
                &["100", "600", "100, 200"],
            ),
            ("[1, 2] \\cup \\{5\\}", &["[1,2] \\cup \\{5\\}"], &["[1,2]", "5"]),
            (
                "(\\frac{1}{2}, \\sqrt{3})",
                &["(0.5, \\sqrt3)", "\\left(\\dfrac12, \\sqrt{3}\\right)"],
                &["(\\sqrt{3}, 0.5)", "(0.5, 1.732)"],
            ),
            (
                "\\langle 1, 2 \\rangle",
                &["\\langle 1,2\\rangle", "⟨1, 2⟩"],
                &["(1, 3)", "\\langle 2, 1\\rangle"],
            ),
        ],
        boxed,
    );
}

#[test]
fn places_of_answers() {
    for (gold, right, wrong) in [
        (
            "42",
            &[
                "42",
                "42.",
                "So 42",
                "The answer is 42",
                "The answer is 42.",
                "The answer is: 42",
                "the answer is $42$.",
                "The answer is \\(42\\).",
                "The answer is **42**.",
                "The answer is:\n42",
                "Answer: 42",
                "**Answer:** 42",
                "**Answer**: 42",
                "Final answer: 42",
                "Final Answer:\n\n42",
                "**Final Answer:**\n42",
                "**Final Answer**\n42",
                "### Final Answer\n\n$42$",
                "# Answer\n42\n",
                "The final answer is:\n\n$$42$$",
                "The final answer is:\n\\[\n42\n\\]",
                "The final answer is $\\boxed{42}$. I hope it is correct.",
                "#### 42",
                "####42",
                "####\n42",
                "#### 42 apples",
                "#### $42$",
                "#### \\$42",
                "#### 42.",
                "#### **42**",
                "#### x = 42",
                "So we get 42.\n\n#### Check\nLooks fine.",
                "#### Step 1: add 2 and 3\nwe get 42\n\n**42**",
                "## Step 1\n6*7 = 42",
                "6 * 7 = 42",
                "6 \\times 7 = 42.",
                "x = 42",
                "Hence $x = 42$.",
                "Hence \\(x = 42\\)",
                "The total is 42 dollars.",
                "It costs $42.",
                "We need 42 of them.",
                "<answer>42</answer>",
                "<answer> 42 </answer>",
                "<answer>\\boxed{42}</answer>",
                "<answer>The answer is 42.</answer>",
                "<answer>She has 42 apples left.</answer>",
                "<answer>$42$</answer>",
                "<answer>x = 42</answer>",
                "<answer>**42**</answer>",
                "\\boxed{42}",
                "\\boxed {42}",
                "\\boxed{ 42 }",
                "$\\boxed{42}$",
                "\\fbox{42}",
                "$\\boxed 42$",
                "\\boxed{\\boxed{42}}",
                "\\boxed{\\text{The answer is } 42}",
                "first \\boxed{41}, then \\boxed{42}",
                "\\boxed{42} (see \\boxed{})",
                "<think>the answer is 41</think> 42",
                "<think>\\boxed{41}</think>\\boxed{42}",
                "41 </think> 42",
                "<think>#### 41</think>\n42",
                "<think>\nhm\n</think>\n\n<answer>42</answer>",
                "<reasoning>41</reasoning>\n42",
                "The answer is 42 because 6*7 = 42.",
                "The answer is therefore 42.",
                "The answer to the question is 42.",
                "The answer would be 42",
                "the answer is that there are 42 apples.",
                "The answer is approximately 42.",
                "The answer is x = 42.",
                "The answer is 42 (forty-two).",
                "The answer is 42!",
                "THE ANSWER IS 42",
                "{\"answer\": 42}",
                "{\"answer\": \"42\"}",
                "答案是42。",
                "答案：42",
                "所以一共有42个苹果。",
                "是42。",
                "The answer is 42, since 42 = 6*7.",
                "The answer is `42`.",
                "The answer is not 41. The answer is 42.",
                "The answer is 41? No, the answer is 42.",
                "ANSWER = 42",
                "So the answer is simply 42 km.",
            ][..],
            &[
                "",
                "none",
                "41",
                "42 or 43",
                "The answer is 41",
                "The answer is 42x",
                "The answer is 42 + y",
                "42, no: 43",
                "#### 41\n",
                "x42",
                "\\boxed{41} 42",
                "<answer>41</answer> 42",
                "<think>42",
                "<think>42</think>",
                "<think>42</think> 41",
                "The answer is 42 times 2",
                "The answer is 42/y",
                "The answer is 142",
                "The answer is 4 2",
                "\\boxed{4}2",
                "#### 42x",
                "42/0",
                "= 42y",
                "2x + 42",
                "H42",
                "42x",
                "42 + x",
                "The answer is -42",
                "The answer is - 42",
                "The answer is –42",
                "42%5",
                "4.2",
                "420",
                "42 to 43",
                "The answer is 42 out of 50",
                "\\boxed{42}, \\boxed{43}",
                "\\boxed{42} and \\boxed{43}",
                "<answer>42 or 43</answer>",
                "The answer is not 42",
            ][..],
        ),
        (
            "-5",
            &[
                "The answer is –5",
                "The answer is −5",
                "The answer is -5.",
                "x=-5",
                "\\boxed{-5}",
                "so −5",
            ],
            &["The answer is 5", "5", "10 - 5", "10-5"],
        ),
        (
            "3.5",
            &[
                "The answer is 3 1/2",
                "The answer is 3½ cups.",
                "3 1/2",
                "7/2",
                "The answer is 3\\frac{1}{2}",
            ],
            &["1/2", "The answer is 3", "3 1"],
        ),
        (
            "1000",
            &["The answer is 1,000", "It is 1,000.", "The total is $1,000.00", "1 000"],
            &["1,00", "The answer is 1", "The sum 1, 000"],
        ),
        (
            "5 and 7",
            &[
                "x = 5 or x = 7",
                "The answer is 5 and 7.",
                "\\boxed{5} and \\boxed{7}",
                "the roots are 5 and 7",
                "$\\boxed{7}$, $\\boxed{5}$",
                "Answer: 5, 7",
            ],
            &["7", "5", "\\boxed{7}", "5 and 8"],
        ),
        (
            "(3, 5)",
            &["The answer is (3, 5).", "So the point is $(3, 5)$.", "#### (3, 5)", "Answer: (3,5)"],
            &["The answer is (5, 3).", "5"],
        ),
        (
            "\\frac{3}{4}",
            &[
                "The answer is $\\frac{3}{4}$",
                "so $p = \\frac{3}{4}$",
                "\\[\nx = \\frac{3}{4}\n\\]",
                "The probability is 3/4.",
                "It's 0.75.",
            ],
            &["4", "\\frac{4}{3}", "The answer is \\frac{3}{4}x"],
        ),
        (
            "120",
            &["\\boxed{5!}", "The answer is 5! = 120", "120"],
            &["The answer is 5!", "\\boxed{120!}"],
        ),
    ] {
        judge(&[(gold, right, wrong)], str::to_string);
    }
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
