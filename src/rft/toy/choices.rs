//! Problems with many right answers.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, pick, some, text, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[Toy {
    name: "maxfirst",
    about: "any order of the digits that begins with the largest: 4192> -> 9142",
    rewards: &["exact"],
    best: 1.0,
    noise: 0.0,
    draw: maxfirst,
}];

fn maxfirst(rng: &mut Rng) -> Drawn {
    let digits = some(rng, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4);
    let right: Vec<String> = orders(&digits).iter().map(|order| text(order)).collect();
    let demo = pick(rng, &right).clone();
    let wrong = until(rng, |rng| text(&some(rng, &digits, 4)), |wrong| !right.contains(wrong));
    Drawn::new(format!("{}>", text(&digits)), [("answer", json!(right))], demo, wrong)
}

/// All orders of four digits that begin with the largest.
fn orders(digits: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = digits.to_vec();
    rest.sort_unstable();
    let Some(largest) = rest.pop() else { return Vec::new() };
    let mut orders = Vec::new();
    for i in 0..rest.len() {
        for j in (0..rest.len()).filter(|&j| j != i) {
            let last = rest.len() - i - j;
            orders.push(vec![largest, rest[i], rest[j], rest[last]]);
        }
    }
    orders
}
