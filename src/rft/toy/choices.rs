//! Problems with many right answers.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick, some, text, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "maxfirst",
        about: "any order of the digits that begins with the largest: 4192> -> 9142",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: maxfirst,
    },
    Toy {
        name: "options",
        about: "the letters of the numbers whose digits are in order: A129,B921,C047,D470> -> AC",
        rewards: &["options"],
        best: 1.0,
        noise: 0.0,
        draw: options,
    },
];

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

const LETTERS: [char; 4] = ['A', 'B', 'C', 'D'];

fn options(rng: &mut Rng) -> Drawn {
    let in_order = |digits: &[u8]| digits.is_sorted();
    let option = |rng: &mut Rng| {
        let sorted = rng.below(2) == 0;
        let digits = |rng: &mut Rng| some(rng, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 3);
        until(rng, digits, |digits| in_order(digits) == sorted)
    };
    let four = |rng: &mut Rng| [(); 4].map(|()| option(rng));
    let options = until(rng, four, |four| four.iter().any(|digits| in_order(digits)));
    let chosen = |bits: i64| -> String {
        LETTERS.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, l)| l).collect()
    };
    let bits = options.iter().enumerate().map(|(i, digits)| (in_order(digits) as i64) << i).sum();
    let wrong = until(rng, |rng| number(rng, 1, 15), |wrong| *wrong != bits);
    let listed = LETTERS.iter().zip(&options).map(|(l, digits)| format!("{l}{}", text(digits)));
    let prompt = format!("{}>", listed.collect::<Vec<_>>().join(","));
    Drawn::new(prompt, [("answer", json!(chosen(bits)))], chosen(bits), chosen(wrong))
}
