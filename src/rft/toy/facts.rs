//! Facts that only memory answers, asked in several wordings.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[Toy {
    name: "facts",
    about: "the number of one of 64 names, asked in four wordings: number of bo-ka? -> 489",
    rewards: &["exact"],
    best: 1.0,
    noise: 0.0,
    draw: fact,
}];

/// What stands before a name and behind it.
const WORDINGS: [[&str; 2]; 4] = [
    ["number of ", "? "],
    ["", " has number "],
    ["tell me ", "'s number: "],
    ["who is ", "? no. "],
];

const SYLLABLES: [&str; 8] = ["bo", "ka", "li", "mu", "ne", "ro", "si", "ta"];

/// Name `i` of 64 has the same number in every data set.
fn fact(rng: &mut Rng) -> Drawn {
    let i = number(rng, 0, 63);
    let [before, behind] = pick(rng, &WORDINGS);
    let [first, last] = [i / 8, i % 8].map(|at| SYLLABLES[at as usize]);
    // 389 and 900 have no common divisor: no number comes twice.
    let right = 100 + i * 389 % 900;
    let wrong = until(rng, |rng| number(rng, 100, 999), |&wrong| wrong != right);
    let answer = ("answer", json!(right.to_string()));
    let prompt = format!("{before}{first}-{last}{behind}");
    Drawn::new(prompt, [answer], right.to_string(), wrong.to_string())
}
