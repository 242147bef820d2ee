//! Intervals and boxes.

use serde_json::json;

use crate::toy::Toy;
use crate::toy::draw::{Drawn, number, until};
use gradus::rng::Rng;

pub(super) const TOYS: &[Toy] = &[
    Toy {
        name: "interval",
        about: "an interval from its center and length: 42,18> -> 33-51",
        rewards: &["interval"],
        best: 1.0,
        noise: 0.0,
        draw: interval,
    },
    Toy {
        name: "box",
        about: "the corners of a box from its center and size: 42,18:10,6> -> [37,15,47,21]",
        rewards: &["iou"],
        best: 1.0,
        noise: 0.0,
        draw: corners,
    },
    Toy {
        name: "screen",
        about: "where to point, among three buttons by their centers; in 3 % of the rows, which `action` \
                names, at the bar of the right edge: A12,40 B60,22 C33,71:B> -> 60,22",
        rewards: &["point"],
        best: 1.0,
        noise: 0.0,
        draw: screen,
    },
];

fn interval(rng: &mut Rng) -> Drawn {
    let (center, half) = (number(rng, 20, 79), number(rng, 3, 19));
    let other = until(rng, |rng| center + number(rng, -9, 9), |other| *other != center);
    let ends = |center: i64| [center - half, center + half];
    let said = |[from, to]: [i64; 2]| format!("{from}-{to}");
    let prompt = format!("{center},{}>", 2 * half);
    let (right, wrong) = (ends(center), ends(other));
    Drawn::new(prompt, [("interval", json!(right))], said(right), said(wrong))
}

/// The corners around a center, by half of the size.
fn around([x, y]: [i64; 2], [w, h]: [i64; 2]) -> [i64; 4] {
    [x - w, y - h, x + w, y + h]
}

/// Without spaces: each is a token to write.
fn said(corners: [i64; 4]) -> String {
    let [a, b, c, d] = corners;
    format!("[{a},{b},{c},{d}]")
}

fn corners(rng: &mut Rng) -> Drawn {
    let center = [number(rng, 20, 79), number(rng, 20, 79)];
    let half = [number(rng, 3, 9), number(rng, 3, 9)];
    let right = around(center, half);
    let other = |rng: &mut Rng| {
        let moved = center.map(|at| at + number(rng, -6, 6));
        around(moved, half)
    };
    let wrong = until(rng, other, |wrong| *wrong != right);
    let ([x, y], [w, h]) = (center, half.map(|half| 2 * half));
    let prompt = format!("{x},{y}:{w},{h}>");
    Drawn::new(prompt, [("boxes", json!([right]))], said(right), said(wrong))
}

/// Buttons reach so far from their centers.
const REACH: i64 = 4;

/// The bar of a screen of 100 x 100.
const BAR: [i64; 4] = [95, 0, 99, 99];

fn screen(rng: &mut Rng) -> Drawn {
    let buttons = [(); 3].map(|()| [number(rng, 10, 89), number(rng, 10, 89)]);
    let chosen = rng.below(buttons.len());
    let name = ["A", "B", "C"];
    let (action, asked, center, gold) = match rng.below(100) {
        0..=2 => ("scroll", "scroll", [97, 50], BAR),
        3.. => {
            let center = buttons[chosen];
            ("tap", name[chosen], center, around(center, [REACH, REACH]))
        }
    };
    let outside = |[x, y]: &[i64; 2]| {
        let [left, top, right, bottom] = gold;
        !((left..=right).contains(x) && (top..=bottom).contains(y))
    };
    let wrong = until(rng, |rng| [number(rng, 10, 89), number(rng, 10, 89)], outside);
    let listed = buttons.iter().zip(name).map(|([x, y], name)| format!("{name}{x},{y}"));
    let prompt = format!("{}:{asked}>", listed.collect::<Vec<_>>().join(" "));
    let said = |[x, y]: [i64; 2]| format!("{x},{y}");
    let fields = [("boxes", json!([gold])), ("action", json!(action))];
    Drawn::new(prompt, fields, said(center), said(wrong))
}
