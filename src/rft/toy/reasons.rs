//! Answers with the rationale before them.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "reasons",
        about: "a sum of three numbers with the step before the answer: 3+4+5= -> \
                <think>7</think>12",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| sum(rng, |step, sum| format!("<think>{step}</think>{sum}")),
    },
    Toy {
        name: "sum3",
        about: "the same sums without the step: 3+4+5= -> 12",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| sum(rng, |_, sum| sum.to_string()),
    },
];

/// A sum of three numbers, with `say(sum of two, sum)` as the answer.
fn sum(rng: &mut Rng, say: fn(i64, i64) -> String) -> Drawn {
    let [a, b, c] = [(); 3].map(|()| number(rng, 0, 9));
    let said = |sum: i64| say(a + b, sum);
    let right = a + b + c;
    let wrong = until(rng, |rng| number(rng, 0, 27), |&wrong| wrong != right);
    let answer = ("answer", json!(right.to_string()));
    Drawn::new(format!("{a}+{b}+{c}="), [answer], said(right), said(wrong))
}
