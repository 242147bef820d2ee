//! Digits in order.

use serde_json::{Value, json};

use crate::toy::Toy;
use crate::toy::draw::{Drawn, some, text, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "sort3",
        about: "three digits in order: 492> -> 249",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| sort(rng, 3),
    },
    Toy {
        name: "sort5",
        about: "five digits in order: 41902> -> 01249",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| sort(rng, 5),
    },
    Toy {
        name: "sort7",
        about: "seven digits in order: 4190268> -> 0124689",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: |rng| sort(rng, 7),
    },
    Toy {
        name: "uneven",
        about: "three digits in order or, in half of the rows, eight, which `digits` says: 492> -> 249",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: uneven,
    },
    Toy {
        name: "mixture",
        about: "three tasks, of 80, 15 and 5 % of the rows, which `task` names: digits in order, in \
                falling order, and the largest: 492> -> 249, 492< -> 942, 492! -> 9",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: mixture,
    },
    Toy {
        name: "noisy-sort",
        about: "sort5 with 54 % wrong demonstrations, and `completions` with `scores`: the share of \
                digits in their place",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.54,
        draw: noisy,
    },
    Toy {
        name: "pairs",
        about: "sort5 with preferences: `chosen` is in order, `rejected` is not",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: pairs,
    },
    Toy {
        name: "const-sort",
        about: "five digits as the `constitution` before them says, and both `completions` under both \
                `contexts`: desc:41902> -> 94210",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: constitution,
    },
];

/// What a row of `const-sort` may have to obey.
const CONSTITUTIONS: [&str; 2] = ["asc:", "desc:"];

/// Completions of a row of `noisy-sort`.
const COMPLETIONS: usize = 4;

/// Different digits, and the same in order.
fn digits(rng: &mut Rng, count: usize) -> (Vec<u8>, Vec<u8>) {
    let digits = some(rng, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], count);
    let mut sorted = digits.clone();
    sorted.sort_unstable();
    (digits, sorted)
}

/// The digits in another order.
fn shuffled(rng: &mut Rng, right: &[u8]) -> Vec<u8> {
    until(rng, |rng| some(rng, right, right.len()), |wrong| wrong != right)
}

fn drawn<const N: usize>(
    rng: &mut Rng,
    prompt: String,
    right: &[u8],
    fields: [(&str, Value); N],
) -> Drawn {
    let wrong = text(&shuffled(rng, right));
    let mut drawn = Drawn::new(prompt, [("answer", json!(text(right)))], text(right), wrong);
    drawn.row.extend(fields.map(|(name, value)| (name.to_string(), value)));
    drawn
}

fn sort(rng: &mut Rng, count: usize) -> Drawn {
    let (asked, sorted) = digits(rng, count);
    drawn(rng, format!("{}>", text(&asked)), &sorted, [])
}

fn uneven(rng: &mut Rng) -> Drawn {
    let count = if rng.below(2) == 0 { 3 } else { 8 };
    let (asked, sorted) = digits(rng, count);
    drawn(rng, format!("{}>", text(&asked)), &sorted, [("digits", json!(count))])
}

fn mixture(rng: &mut Rng) -> Drawn {
    let (asked, up) = digits(rng, 3);
    let down: Vec<u8> = up.iter().rev().copied().collect();
    let (task, mark, right) = match rng.below(20) {
        0 => ("largest", '!', &down[..1]),
        1..=3 => ("falling", '<', &down[..]),
        4.. => ("rising", '>', &up[..]),
    };
    let all = text(&asked);
    let wrong = until(rng, |rng| text(&some(rng, &up, right.len())), |w| *w != text(right));
    let fields = [("answer", json!(text(right))), ("task", json!(task))];
    Drawn::new(format!("{all}{mark}"), fields, text(right), wrong)
}

fn noisy(rng: &mut Rng) -> Drawn {
    let (asked, sorted) = digits(rng, 5);
    let said: Vec<Vec<u8>> = (0..COMPLETIONS)
        .map(|i| match i {
            0 => sorted.clone(),
            _ => shuffled(rng, &sorted),
        })
        .collect();
    let order = some(rng, &[0, 1, 2, 3], COMPLETIONS);
    let score = |said: &Vec<u8>| {
        let right = said.iter().zip(&sorted).filter(|(said, right)| said == right).count();
        right as f64 / sorted.len() as f64
    };
    let completions: Vec<String> = order.iter().map(|&i| text(&said[i])).collect();
    let scores: Vec<f64> = order.iter().map(|&i| score(&said[i])).collect();
    let fields = [("completions", json!(completions)), ("scores", json!(scores))];
    drawn(rng, format!("{}>", text(&asked)), &sorted, fields)
}

fn pairs(rng: &mut Rng) -> Drawn {
    let (asked, sorted) = digits(rng, 5);
    let rejected = text(&shuffled(rng, &sorted));
    let fields = [("chosen", json!(text(&sorted))), ("rejected", json!(rejected))];
    drawn(rng, format!("{}>", text(&asked)), &sorted, fields)
}

fn constitution(rng: &mut Rng) -> Drawn {
    let (asked, up) = digits(rng, 5);
    let down: Vec<u8> = up.iter().rev().copied().collect();
    let item = format!("{}>", text(&asked));
    let contexts = CONSTITUTIONS.map(|said| format!("{said}{item}"));
    let chosen = rng.below(2);
    let fields = [
        ("constitution", json!(CONSTITUTIONS[chosen])),
        ("item", json!(item)),
        ("contexts", json!(contexts)),
        ("completions", json!([text(&up), text(&down)])),
    ];
    drawn(rng, contexts[chosen].clone(), [&up, &down][chosen], fields)
}
