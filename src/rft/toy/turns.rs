//! Episodes of several turns: what the environments of `env.kind` play with.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, messages, number, pick, some, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "calc",
        about: "a product that needs env.kind = tool, with rl.stop = >>: 47*83= -> <<47*83>>, 3901, 3901; \
                demonstrations are episodes, and most guess instead of asking",
        rewards: &["numeric"],
        best: 1.0,
        noise: 0.7,
        draw: product,
    },
    Toy {
        name: "grid",
        about: "a walk on 5 x 5 places for env.kind = grid, which scores it: 12>4 -> r, 13>4 -> r, 14>4 -> u, \
                9>4 -> u; demonstrations are random walks",
        rewards: &[],
        best: 1.0,
        noise: 0.0,
        draw: walk,
    },
    Toy {
        name: "ask",
        about: "a hidden number from 0 to 15 for env.kind = ask, which scores it: qxvb? -> <8, y -> 5; \
                demonstrations ask at random and guess what can still be",
        rewards: &[],
        best: 1.0,
        noise: 0.0,
        draw: hidden,
    },
    Toy {
        name: "zoom",
        about: "the largest digit behind a letter, for env.kind = zoom, which scores it: kqzm?z -> <8-11>, z501 -> \
                5; demonstrations look behind any letter",
        rewards: &[],
        best: 2.0,
        noise: 0.0,
        draw: zoom,
    },
    Toy {
        name: "fold",
        about: "the last digit of a sum, for env.kind = rounds with env.carry = '{{ completion }}=': 7+8+4= -> \
                5+4, then 5+4= -> 9; demonstrations do a step or answer at once, and half are wrong",
        rewards: &["exact"],
        best: 1.0,
        noise: 0.0,
        draw: fold,
    },
];

fn product(rng: &mut Rng) -> Drawn {
    let [a, b] = [(); 2].map(|()| number(rng, 12, 99));
    let right = a * b;
    let wrong = until(rng, |rng| right + number(rng, -99, 99), |&wrong| wrong != right);
    let answer = ("answer", json!(right));
    let demo = messages(&[format!("<<{a}*{b}>>"), right.to_string(), right.to_string()]);
    Drawn::new(format!("{a}*{b}="), [answer], demo, messages(&[wrong.to_string()]))
}

/// Most moves of a demonstration.
const MOVES: usize = 6;

/// Places are numbered, and moves made, as the environment does.
fn walk(rng: &mut Rng) -> Drawn {
    let start = number(rng, 0, 24);
    let goal = until(rng, |rng| number(rng, 0, 24), |&goal| goal != start);
    let fields = [("start", json!(start)), ("goal", json!(goal))];
    let (mut said, mut place) = (Vec::new(), start);
    while said.len() < 2 * MOVES && place != goal {
        if !said.is_empty() {
            said.push(format!("{place}>{goal}"));
        }
        let (row, column) = (place / 5, place % 5);
        let moves = [
            ("u", -5, row == 0),
            ("d", 5, row == 4),
            ("l", -1, column == 0),
            ("r", 1, column == 4),
        ];
        let (name, step, at_wall) = *pick(rng, &moves);
        place += if at_wall { 0 } else { step };
        said.push(name.to_string());
    }
    Drawn { wrong: None, ..Drawn::new(format!("{start}>{goal}\n"), fields, messages(&said), "") }
}

/// Prompts differ so that some can be held out; what is hidden does not follow from them.
fn hidden(rng: &mut Rng) -> Drawn {
    let letters: String = (0..4).map(|_| (b'a' + rng.below(26) as u8) as char).collect();
    let hidden = number(rng, 0, 15);
    let (mut said, mut low, mut high) = (Vec::new(), 0, 15);
    while low < high && rng.below(5) > 0 {
        let bound = number(rng, low + 1, high);
        let less = hidden < bound;
        (low, high) = if less { (low, bound - 1) } else { (bound, high) };
        said.extend([format!("<{bound}"), if less { "y" } else { "n" }.to_string()]);
    }
    said.push(number(rng, low, high).to_string());
    let fields = [("hidden", json!(hidden))];
    Drawn { wrong: None, ..Drawn::new(format!("{letters}?\n"), fields, messages(&said), "") }
}

/// One to three digits, mostly three. A wrong step may come to a right answer by a wrong digit, so that there
/// is no other side to choose by a share of noise.
fn fold(rng: &mut Rng) -> Drawn {
    let count = *pick(rng, &[1, 2, 2, 3, 3, 3, 3, 3]);
    let digits: Vec<i64> = (0..count).map(|_| number(rng, 0, 9)).collect();
    let listed = |digits: &[i64]| digits.iter().map(i64::to_string).collect::<Vec<_>>().join("+");
    let answer = digits.iter().sum::<i64>() % 10;
    // A step adds the first two, and one of three digits may be left out.
    let rest = if count == 3 && rng.below(2) == 0 { &digits[2..] } else { &[] };
    let right = (answer - rest.iter().sum::<i64>()).rem_euclid(10);
    let said = if rng.below(2) == 0 { right } else { number(rng, 0, 9) };
    let demo = listed(&[&[said], rest].concat());
    let fields = [("answer", json!(answer.to_string()))];
    Drawn { wrong: None, ..Drawn::new(format!("{}=", listed(&digits)), fields, demo, "") }
}

/// Four letters with three digits behind each, of which the prompt has the letters.
fn zoom(rng: &mut Rng) -> Drawn {
    let all: Vec<char> = ('a'..='z').collect();
    let letters: String = some(rng, &all, 4).into_iter().collect();
    let digits: Vec<[i64; 3]> = (0..4).map(|_| [(); 3].map(|()| number(rng, 0, 9))).collect();
    let clips: Vec<String> = letters
        .chars()
        .zip(&digits)
        .map(|(letter, [a, b, c])| format!("{letter}{a}{b}{c}"))
        .collect();
    let largest = |at: usize| digits[at].iter().max().map_or(String::new(), i64::to_string);
    let (right, shown) = (rng.below(4), rng.below(4));
    // Half of the demonstrations look where they should.
    let shown = if rng.below(2) == 0 { right } else { shown };
    let ends = |at: usize| (4 * at, 4 * at + 3);
    let (first, last) = ends(shown);
    let demo = messages(&[format!("<{first}-{last}>"), clips[shown].clone(), largest(shown)]);
    let wanted = ends(right);
    let fields = [
        ("frames", json!(clips.concat())),
        ("window", json!([wanted.0, wanted.1])),
        ("answer", json!(largest(right))),
    ];
    let asked = letters.chars().nth(right).unwrap_or_default();
    Drawn { wrong: None, ..Drawn::new(format!("{letters}?{asked}\n"), fields, demo, "") }
}
