//! Expressions over given numbers that make a target.

use std::cmp::Reverse;

use serde_json::{Map, Value};

use super::answer::{answer_phrases, conclusions, final_answer, hashes};
use super::math::rational;
use super::ratio::Ratio;
use super::{conclusion, field, scalar, verdict};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// 1 if the completion is an expression that makes the row's target out of the row's numbers.
///
/// The expression is the content of the last answer tag or box, else the whole completion, else what
/// the last `####`, `answer is`, `Answer:` or `so` announces. `= 24` may follow it if it is the target,
/// a period may end it, and `$` and `**` may stand around it. It has the operators `+ - * /` (also `×`,
/// `÷`, `\times`, `\div`, `\cdot`) with the usual precedence, and parentheses up to 64 deep. Arithmetic
/// is exact; a division by 0 or a part beyond 4096 bits makes no value, which is wrong. An expression
/// of more than 4096 bytes is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Countdown {
    /// Whether every number must be used exactly once, rather than at most once.
    pub all: bool,
    /// Score of an expression over allowed numbers with another value. Beware: dividing advantages
    /// by the group's deviation makes much of it where no completion of a group is right.
    pub partial: f32,
    /// Whether a completion that was cut off scores 0.
    pub finished: bool,
}

impl Default for Countdown {
    fn default() -> Countdown {
        Countdown { all: false, partial: 0.0, finished: true }
    }
}

impl Countdown {
    /// The least and the largest score.
    pub fn bounds(&self) -> (f64, f64) {
        (0.0f64.min(self.partial.into()), 1.0f64.max(self.partial.into()))
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let (numbers, target) = task(input.fields)?;
        if self.finished && !input.finished {
            return verdict(false);
        }
        let Some(answer) = conclusion(input.completion) else { return verdict(false) };
        let (said, result) = stated(answer);
        Ok(RewardOutcome::Score(self.judge(&said, result.as_deref(), &numbers, &target)))
    }

    /// Whether a row has numbers and a target.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        task(fields).map(|_| ())
    }

    fn judge(&self, said: &str, result: Option<&str>, numbers: &[Ratio], target: &Ratio) -> f32 {
        let Some((value, used)) = evaluate(said) else { return 0.0 };
        if !self.may_use(used, numbers) {
            return 0.0;
        }
        let stated = result.is_none_or(|result| rational(result).as_ref() == Some(target));
        if value.as_ref() == Some(target) && stated { 1.0 } else { self.partial }
    }

    fn may_use(&self, used: Vec<Ratio>, numbers: &[Ratio]) -> bool {
        let mut left = numbers.to_vec();
        for number in used {
            match left.iter().position(|allowed| *allowed == number) {
                Some(at) => left.swap_remove(at),
                None => return false,
            };
        }
        left.is_empty() || !self.all
    }
}

/// The expression that a completion states, and what it says to be its value.
fn stated(answer: &str) -> (String, Option<String>) {
    let sides = |text: &str| {
        let text = bare(text);
        match text.split_once('=') {
            Some((said, result)) => (said.to_string(), Some(result.to_string())),
            None => (text, None),
        }
    };
    if let Some(said) = final_answer(answer) {
        return sides(said);
    }
    let whole = sides(answer);
    if evaluate(&whole.0).is_some() {
        return whole;
    }
    let places = hashes(answer).chain(answer_phrases(answer)).chain(conclusions(answer));
    let mut places: Vec<_> = places.collect();
    places.sort_by_key(|&(at, _)| Reverse(at));
    let mut found = places.into_iter().map(|(_, place)| {
        let end = [". ", ", "].iter().filter_map(|stop| place.find(stop)).min();
        sides(&place[..end.unwrap_or(place.len())])
    });
    found.find(|(said, _)| evaluate(said).is_some()).unwrap_or(whole)
}

/// `text` without what stands around mathematics.
fn bare(text: &str) -> String {
    let mut text = text.trim();
    loop {
        let around = [("$", "$"), ("**", "**"), ("`", "`"), ("\\(", "\\)"), ("\\[", "\\]")];
        let inside = around
            .into_iter()
            .find_map(|(open, close)| text.strip_prefix(open)?.strip_suffix(close));
        let inside = inside.or_else(|| text.strip_suffix('.'));
        // The mark in front of it may be one of the words before.
        match inside.or_else(|| text.strip_suffix("**")) {
            Some(inside) => text = inside.trim(),
            None => return text.replace("\\left(", "(").replace("\\right)", ")"),
        }
    }
}

/// The numbers and the target of a row.
fn task(fields: &Map<String, Value>) -> Result<(Vec<Ratio>, Ratio), String> {
    let key = if fields.get("numbers").is_some_and(|n| !n.is_null()) { "numbers" } else { "nums" };
    let numbers = numbers(key, field(fields, key)?)?;
    let target = field(fields, "target")?;
    let target = ratio(target).ok_or_else(|| {
        let got = crate::reward::excerpt(&target.to_string());
        format!("row field `target` is {got}, expected a number")
    })?;
    Ok((numbers, target))
}

fn ratio(value: &Value) -> Option<Ratio> {
    rational(&scalar(value)?)
}

fn numbers(key: &str, value: &Value) -> Result<Vec<Ratio>, String> {
    let all = value.as_array().and_then(|items| items.iter().map(ratio).collect());
    all.ok_or_else(|| {
        let got = crate::reward::excerpt(&value.to_string());
        format!("row field `{key}` is {got}, expected a list of numbers")
    })
}

/// Deepest nesting of parentheses.
const DEPTH: usize = 64;
/// Most bytes of an expression, which bounds the time that its exact value takes.
const LENGTH: usize = 4096;

/// The value of an arithmetic expression, `None` if it has none, and the numbers in it; `None` if
/// `text` is no expression.
pub fn evaluate(text: &str) -> Option<(Option<Ratio>, Vec<Ratio>)> {
    let mut parser = Parser { rest: text.trim(), depth: 0, used: Vec::new() };
    if parser.rest.len() > LENGTH {
        return None;
    }
    let value = parser.sum()?;
    parser.rest.is_empty().then_some((value, parser.used))
}

/// Recursive descent. The outer `Option` is the syntax, the inner one the arithmetic.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
    used: Vec<Ratio>,
}

impl Parser<'_> {
    fn take(&mut self, tokens: &[&str]) -> bool {
        let found = tokens.iter().find_map(|&token| self.rest.strip_prefix(token));
        if let Some(rest) = found {
            self.rest = rest.trim_start();
        }
        found.is_some()
    }

    fn sum(&mut self) -> Option<Option<Ratio>> {
        let mut value = self.product()?;
        loop {
            let minus = self.take(&["-", "\u{2212}"]);
            if !minus && !self.take(&["+"]) {
                return Some(value);
            }
            let right = self.product()?;
            value = both(value, right, if minus { Ratio::checked_sub } else { Ratio::checked_add });
        }
    }

    fn product(&mut self) -> Option<Option<Ratio>> {
        let mut value = self.factor()?;
        loop {
            let over = self.take(&["/", "÷", "\\div"]);
            if !over && !self.take(&["*", "×", "·", "\\times", "\\cdot"]) {
                return Some(value);
            }
            let right = self.factor()?;
            value = both(value, right, if over { Ratio::checked_div } else { Ratio::checked_mul });
        }
    }

    fn factor(&mut self) -> Option<Option<Ratio>> {
        if !self.take(&["("]) {
            return self.number().map(Some);
        }
        self.depth += 1;
        if self.depth > DEPTH {
            return None;
        }
        let value = self.sum()?;
        self.depth -= 1;
        self.take(&[")"]).then_some(value)
    }

    fn number(&mut self) -> Option<Ratio> {
        let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.rest.split_at(digits);
        let number = Ratio::integer(number.parse().ok()?);
        self.rest = rest.trim_start();
        self.used.push(number.clone());
        Some(number)
    }
}

fn both(
    left: Option<Ratio>,
    right: Option<Ratio>,
    op: fn(&Ratio, &Ratio) -> Option<Ratio>,
) -> Option<Ratio> {
    op(&left?, &right?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn expressions_have_values() {
        let value =
            |text| evaluate(text).map(|(value, _)| value.map(|ratio| ratio.parts().unwrap()));
        for (text, expected) in [
            ("1+2*3", Some(Some((7, 1)))),
            ("(1+2)*3", Some(Some((9, 1)))),
            ("8/(3-8/3)", Some(Some((24, 1)))),
            ("10 - 4 \u{2212} 3", Some(Some((3, 1)))),
            ("8 ÷ 2 × 3", Some(Some((12, 1)))),
            ("2 \\times 3 \\div 4", Some(Some((3, 2)))),
            ("1/(2-2)", Some(None)),
            ("7", Some(Some((7, 1)))),
            ("", None),
            ("1+", None),
            ("(1", None),
            ("1)", None),
            ("-1", None),
            ("1 2", None),
            ("1.5", None),
            ("2**3", None),
            ("2(3)", None),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert!(evaluate(&format!("{}1{}", "(".repeat(64), ")".repeat(64))).is_some());
        assert!(evaluate(&"(".repeat(100_000)).is_none());
    }

    #[test]
    fn numbers_are_used_as_allowed() {
        let row = json!({"nums": [2, 3, 4, 4], "target": 24});
        let check =
            |verifier: Countdown, completion| match ask(|i| verifier.check(i), completion, &row) {
                Ok(Score(score)) => score,
                other => panic!("{other:?}"),
            };
        let any = || Countdown { partial: 0.1, ..Countdown::default() };
        let all = || Countdown { all: true, ..Countdown::default() };
        for (completion, loose, strict) in [
            ("2*3*4", 1.0, 0.0),
            ("<think>2+3</think> 2*3*4", 1.0, 0.0),
            ("<think>2*3*4", 0.0, 0.0),
            ("<answer>(2+4)*4*3/3</answer>", 0.0, 0.0),
            ("4*4+2*(3+1)", 0.0, 0.0),
            ("(4+4)*3", 1.0, 0.0),
            ("\\boxed{(2+4)*4 = 24}", 1.0, 0.0),
            ("(2+4)*4 = 25", 0.1, 0.0),
            ("4*(3+4)-2", 0.1, 0.0),
            ("2+3+4+4", 0.1, 0.0),
            ("4*4*3/2 = 24", 1.0, 1.0),
            ("24", 0.0, 0.0),
            ("so 2*3*4", 1.0, 0.0),
            ("Answer: 2*3*4", 1.0, 0.0),
            ("**Answer:** 2*3*4", 1.0, 0.0),
            ("The answer is (4+4)*3", 1.0, 0.0),
            ("The answer is (4+4)*3, which is 24.", 1.0, 0.0),
            ("The answer is 4*4*3/2 = 24.", 1.0, 1.0),
            ("#### 2*3*4", 1.0, 0.0),
            ("(4+4)*3.", 1.0, 0.0),
            ("$(4+4)\\cdot 3$", 1.0, 0.0),
            ("$\\left(4+4\\right)\\cdot 3$.", 1.0, 0.0),
            ("\\(2*3*4\\)", 1.0, 0.0),
            ("\\boxed{(4+4)*3=24}", 1.0, 0.0),
            ("**(4+4)*3**", 1.0, 0.0),
            ("The answer is 2*3*4. The answer is 2+3", 0.1, 0.0),
            ("The answer is (4+4)*3 or 2*3*4", 0.0, 0.0),
            ("The answer is 5*5-1", 0.0, 0.0),
            ("Answer: 24", 0.0, 0.0),
            ("2*3*4 is the answer", 0.0, 0.0),
            ("we have 2*3*4", 0.0, 0.0),
            ("Answer: **2*3*4**", 1.0, 0.0),
            ("$", 0.0, 0.0),
        ] {
            assert_eq!(check(any(), completion), loose, "{completion}");
            assert_eq!(check(all(), completion), strict, "{completion}");
        }
    }

    #[test]
    fn broken_rows_fail() {
        let check = |i: &RewardInput<'_>| Countdown::default().check(i);
        for (row, word) in [
            (json!({"target": 1}), "`nums`"),
            (json!({"numbers": [1]}), "`target`"),
            (json!({"numbers": 1, "target": 1}), "`numbers`"),
            (json!({"numbers": [1], "target": "x"}), "`target`"),
        ] {
            let error = ask(check, "1", &row).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
