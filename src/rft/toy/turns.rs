//! Episodes of several turns: what the environments of `env.kind` play with.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "calc",
        about: "a product that needs env.kind = tool, with rl.stop = >>: 47*83= -> <<47*83>>, 3901, 3901; \
                demonstrations are the whole episode, and most guess instead",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.7,
        draw: product,
    },
    Toy {
        name: "grid",
        about: "a walk on 5 x 5 places for env.kind = grid, which scores it: 12>4 -> r, 13>4 -> r, 14>4 -> u, \
                9>4 -> u; demonstrations are random first moves",
        rewards: &[],
        best: 1.0,
        noise: 0.0,
        draw: walk,
    },
    Toy {
        name: "ask",
        about: "a hidden number from 0 to 15 for env.kind = ask, which scores it: qxvb? -> <8, y -> 5; \
                demonstrations are random questions and guesses",
        rewards: &[],
        best: 1.0,
        noise: 0.0,
        draw: hidden,
    },
];

fn product(rng: &mut Rng) -> Drawn {
    let [a, b] = [(); 2].map(|()| number(rng, 12, 99));
    let right = a * b;
    let wrong = until(rng, |rng| right + number(rng, -99, 99), |&wrong| wrong != right);
    let answer = ("answer", json!(right));
    let demo = format!("<<{a}*{b}>>\n{right}\n{right}");
    Drawn::new(format!("{a}*{b}="), [answer], demo, wrong.to_string())
}

/// Places are numbered as the environment numbers them.
fn walk(rng: &mut Rng) -> Drawn {
    let start = number(rng, 0, 24);
    let goal = until(rng, |rng| number(rng, 0, 24), |&goal| goal != start);
    let fields = [("start", json!(start)), ("goal", json!(goal))];
    let said = pick(rng, &["u", "d", "l", "r"]).to_string();
    Drawn { wrong: None, ..Drawn::new(format!("{start}>{goal}\n"), fields, said, "") }
}

/// Prompts differ so that some can be held out; what is hidden does not follow from them.
fn hidden(rng: &mut Rng) -> Drawn {
    let letters: String = (0..4).map(|_| (b'a' + rng.below(26) as u8) as char).collect();
    let (hidden, said) = (number(rng, 0, 15), number(rng, 0, 15));
    let said = if rng.below(2) == 0 { format!("<{said}") } else { said.to_string() };
    let fields = [("hidden", json!(hidden))];
    Drawn { wrong: None, ..Drawn::new(format!("{letters}?\n"), fields, said, "") }
}
