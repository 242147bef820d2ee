//! Calls of tools.

use serde_json::{Map, Value, json};

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[Toy {
    name: "tool",
    about: "a call of one of six tools, each with three arguments of its own: c:374> -> \
            {\"name\":\"c\",\"arguments\":{\"x\":3,…}}",
    rewards: &["tool-call"],
    best: 1.0,
    noise: 0.0,
    draw: call,
}];

/// The tools with their arguments, in the order in which a prompt gives the values.
const TOOLS: [(char, [char; 3]); 6] = [
    ('a', ['x', 'y', 'z']),
    ('b', ['y', 'w', 'x']),
    ('c', ['z', 'x', 'v']),
    ('d', ['w', 'z', 'y']),
    ('e', ['v', 'y', 'z']),
    ('f', ['x', 'v', 'w']),
];

fn call(rng: &mut Rng) -> Drawn {
    let (name, keys) = TOOLS[rng.below(TOOLS.len())];
    let values = |rng: &mut Rng| [(); 3].map(|()| number(rng, 0, 9));
    let right = values(rng);
    let wrong = until(rng, values, |wrong| *wrong != right);
    let arguments = |values: [i64; 3]| {
        let each = keys.iter().zip(values).map(|(key, value)| (key.to_string(), value.into()));
        json!({ "name": name.to_string(), "arguments": each.collect::<Map<String, Value>>() })
    };
    let digits: String = right.iter().map(i64::to_string).collect();
    let gold = ("tool_calls", json!([arguments(right)]));
    let prompt = format!("{name}:{digits}>");
    Drawn::new(prompt, [gold], arguments(right).to_string(), arguments(wrong).to_string())
}
