//! Short texts: a line of code that draws a chart, and a résumé.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, pick, some, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "chart",
        about: "a line of code that draws a list: bar 34,58,21 kg> -> bar([34,58,21],'kg')",
        rewards: &["chart-code"],
        best: 1.0,
        noise: 0.0,
        draw: chart,
    },
    Toy {
        name: "resume",
        about: "a sentence with all keywords, not longer than it must be: rust,java,perl> -> i know \
                rust, java and perl",
        rewards: &["checklist", "0.5*length"],
        best: 1.5,
        noise: 0.0,
        draw: resume,
    },
];

fn chart(rng: &mut Rng) -> Drawn {
    let kind = *pick(rng, &["bar", "plot", "pie"]);
    let unit = *pick(rng, &["kg", "cm", "eur", "sec"]);
    let values = |rng: &mut Rng| [(); 3].map(|()| number(rng, 10, 99));
    let right = values(rng);
    // More than 5 % off, so that no reward takes it for right.
    let far = |wrong: &[i64; 3]| {
        wrong.iter().zip(right).any(|(wrong, right)| 20 * (wrong - right).abs() > right)
    };
    let wrong = until(rng, values, far);
    let listed = |values: [i64; 3]| values.map(|value| value.to_string()).join(",");
    let code = |values: [i64; 3]| format!("{kind}([{}],'{unit}')", listed(values));
    let prompt = format!("{kind} {} {unit}>", listed(right));
    Drawn::new(prompt, [("code", json!(code(right)))], code(right), code(wrong))
}

const SKILLS: [&str; 8] = ["rust", "java", "perl", "bash", "ruby", "html", "lisp", "odin"];

fn resume(rng: &mut Rng) -> Drawn {
    let skills = some(rng, &SKILLS, 4);
    let said = |[a, b, c]: [&str; 3]| format!("i know {a}, {b} and {c}");
    let (right, wrong) = ([skills[0], skills[1], skills[2]], [skills[0], skills[3], skills[2]]);
    let fields = [("checklist", json!(right)), ("length", json!([3, 6]))];
    Drawn::new(format!("{}>", right.join(",")), fields, said(right), said(wrong))
}
