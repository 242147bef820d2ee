//! A bandit of three arms, whose best policy has a closed form.

use serde_json::{Map, json};

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[Toy {
    name: "bandit3",
    about: "one of three arms, worth 2.5, 2 and 1, whatever the prompt; `completion` is a random arm, \
            `completions` with `scores` are pulls of two other policies (CoPG, arXiv:2406.19185): 417? -> a",
    rewards: &["2.5*format:^a$", "2*format:^b$", "format:^c$"],
    best: 2.5,
    noise: 0.0,
    draw: pull,
}];

const ARMS: [(&str, f64); 3] = [("a", 2.5), ("b", 2.0), ("c", 1.0)];

/// Who pulled: probabilities of the arms.
const POLICIES: [[f64; 3]; 2] = [[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]];

/// No arm is the answer to learn from: `completion` teaches the reference policy, which pulls each as often. Prompts
/// differ so that some can be held out.
fn pull(rng: &mut Rng) -> Drawn {
    let prompt = format!("{:03}?", number(rng, 0, 999));
    let pulled = POLICIES.map(|[first, second, _]| {
        let draw = rng.uniform();
        ARMS[(draw >= first) as usize + (draw >= first + second) as usize]
    });
    let fields = [
        ("prompt", json!(prompt)),
        ("completion", json!(pick(rng, &ARMS).0)),
        ("completions", json!(pulled.map(|arm| arm.0))),
        ("scores", json!(pulled.map(|arm| arm.1))),
    ];
    let row = fields.map(|(name, value)| (name.to_string(), value));
    Drawn { row: Map::from_iter(row), demo: None, wrong: None }
}
