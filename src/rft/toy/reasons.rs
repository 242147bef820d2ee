//! Answers with what stands before them: principles, and rationales.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, some, text, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "contexts",
        about: "five digits up or down, as the prompt says; `contexts` are both prompts and \
                `completions` the answer to each: asc:41902> -> 01249",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: contexts,
    },
    Toy {
        name: "reasons",
        about: "a sum of three numbers with the step before the answer: 3+4+5= -> \
                <think>7</think>12",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.0,
        draw: reasons,
    },
];

fn contexts(rng: &mut Rng) -> Drawn {
    let digits = some(rng, &[0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9], 5);
    let mut up = digits.clone();
    up.sort_unstable();
    let down: Vec<u8> = up.iter().rev().copied().collect();
    let asked = ["asc", "desc"].map(|order| format!("{order}:{}>", text(&digits)));
    let answers = [text(&up), text(&down)];
    let which = rng.below(2);
    let fields = [
        ("answer", json!(answers[which])),
        ("contexts", json!(asked)),
        ("completions", json!(answers)),
    ];
    let (right, wrong) = (answers[which].clone(), answers[1 - which].clone());
    Drawn::new(asked[which].clone(), fields, right, wrong)
}

fn reasons(rng: &mut Rng) -> Drawn {
    let [a, b, c] = [(); 3].map(|()| number(rng, 0, 9));
    let said = |sum: i64| format!("<think>{}</think>{sum}", a + b);
    let right = a + b + c;
    let wrong = until(rng, |rng| number(rng, 0, 27), |&wrong| wrong != right);
    let answer = ("answer", json!(right.to_string()));
    Drawn::new(format!("{a}+{b}+{c}="), [answer], said(right), said(wrong))
}
