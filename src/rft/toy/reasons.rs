//! Answers with the rationale before them.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[Toy {
    name: "reasons",
    about: "a sum of three numbers with the step before the answer: 3+4+5= -> \
                <think>7</think>12",
    rewards: &["numeric"],
    best: 1.0,
    noise: 0.0,
    draw: reasons,
}];

fn reasons(rng: &mut Rng) -> Drawn {
    let [a, b, c] = [(); 3].map(|()| number(rng, 0, 9));
    let said = |sum: i64| format!("<think>{}</think>{sum}", a + b);
    let right = a + b + c;
    let wrong = until(rng, |rng| number(rng, 0, 27), |&wrong| wrong != right);
    let answer = ("answer", json!(right.to_string()));
    Drawn::new(format!("{a}+{b}+{c}="), [answer], said(right), said(wrong))
}
