//! Arithmetic: expressions that make a target, and their values.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick, some, text, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "make",
        about: "an expression over three digits that makes the target: 472=9: -> 4+7-2",
        rewards: &["countdown"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| make(rng, 3),
    },
    Toy {
        name: "make4",
        about: "an expression over four digits that makes the target: 4729=15: -> 9+4+2",
        rewards: &["countdown"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| make(rng, 4),
    },
    Toy {
        name: "math",
        about: "the value of an expression: 12+7*3= -> 33",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.0,
        draw: math,
    },
];

/// Targets are 0 to this.
const MOST: i64 = 30;

fn make(rng: &mut Rng, count: usize) -> Drawn {
    let digits: Vec<u8> = (0..count).map(|_| number(rng, 1, 9) as u8).collect();
    let (demo, target) = until(rng, |rng| expression(rng, &digits), |e| (0..=MOST).contains(&e.1));
    let (wrong, _) = until(rng, |rng| expression(rng, &digits), |e| e.1 != target);
    let prompt = format!("{}={target}:", text(&digits));
    Drawn::new(prompt, [("numbers", json!(digits)), ("target", json!(target))], demo, wrong)
}

/// An expression over two or more of `digits`, and its value.
fn expression(rng: &mut Rng, digits: &[u8]) -> (String, i64) {
    let used = number(rng, 2, digits.len() as i64) as usize;
    let digits = some(rng, digits, used);
    let mut value = digits[0] as i64;
    let mut said = digits[0].to_string();
    for &digit in &digits[1..] {
        let plus = rng.below(2) == 0;
        value += if plus { digit as i64 } else { -(digit as i64) };
        said += &format!("{}{digit}", if plus { '+' } else { '-' });
    }
    (said, value)
}

fn math(rng: &mut Rng) -> Drawn {
    let [a, b, c] = [number(rng, 10, 29), number(rng, 2, 9), number(rng, 2, 9)];
    let (text, value) = *pick(
        rng,
        &[("a+b*c", a + b * c), ("a-b*c", a - b * c), ("a+b-c", a + b - c), ("b*c", b * c)],
    );
    let names = [('a', a), ('b', b), ('c', c)];
    let digits = |letter: char| names.iter().find(|name| name.0 == letter).map(|name| name.1);
    let said: String =
        text.chars().map(|c| digits(c).map_or(c.to_string(), |n| n.to_string())).collect();
    let wrong = until(rng, |rng| value + number(rng, -9, 9), |wrong| *wrong != value);
    let answer = ("answer", json!(value));
    Drawn::new(format!("{said}="), [answer], value.to_string(), wrong.to_string())
}
