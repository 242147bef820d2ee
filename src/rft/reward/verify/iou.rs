//! Boxes in pictures.

use serde_json::{Map, Value};

use super::matching::best_pairing;
use super::{conclusion, field, tagged};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// How well the boxes of a completion lie on the gold boxes: they are paired one to one, and the
/// score is the sum of the pairs' intersections over unions, divided by the larger number of boxes,
/// so that missing and surplus boxes cost. With a threshold a pair counts 1 from there on, else 0.
///
/// The pairing is the best one for up to 32 boxes on a side, else greedy. More than 1024 boxes in a
/// completion are not paired, but counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Iou {
    /// The row's field with the gold: `[x1, y1, x2, y2]`, `[[x1, y1], [x2, y2]]`, or a list of such.
    pub field: String,
    /// From which overlap on a pair counts as found.
    pub threshold: Option<f64>,
}

impl Default for Iou {
    fn default() -> Iou {
        Iou { field: "boxes".into(), threshold: None }
    }
}

/// A box by its corners, `x1 < x2` and `y1 < y2`; any other is empty and overlaps nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundingBox {
    /// `x1, y1, x2, y2`.
    pub corners: [f64; 4],
}

/// Most boxes of a completion that are paired.
pub(super) const MOST: usize = 1024;

impl Iou {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let Some(answer) = conclusion(input.completion) else {
            return Ok(RewardOutcome::Score(0.0));
        };
        let said = parse_boxes(tagged(answer, "answer").unwrap_or(answer));
        let most = said.len().max(gold.len());
        if most == 0 {
            return Ok(RewardOutcome::Score(1.0));
        }
        let overlap = |a: &BoundingBox, b: &BoundingBox| match self.threshold {
            Some(threshold) => (a.iou(b) >= threshold) as u8 as f64,
            None => a.iou(b),
        };
        let weight: Vec<Vec<f64>> = gold
            .iter()
            .map(|gold| said.iter().take(MOST).map(|said| overlap(gold, said)).collect())
            .collect();
        Ok(RewardOutcome::Score((best_pairing(&weight) / most as f64) as f32))
    }

    /// Whether a row has boxes, or a list of none.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.gold(field(fields, &self.field)?).map(|_| ())
    }

    pub(super) fn gold(&self, value: &Value) -> Result<Vec<BoundingBox>, String> {
        let boxes = match (BoundingBox::of(value), value.as_array()) {
            (Some(one), _) => Some(vec![one]),
            (None, Some(items)) => items.iter().map(BoundingBox::of).collect(),
            (None, None) => None,
        };
        boxes.ok_or_else(|| {
            let got = crate::reward::excerpt(&value.to_string());
            format!(
                "row field `{}` is {got}, expected [x1, y1, x2, y2] or a list of them",
                self.field
            )
        })
    }
}

impl BoundingBox {
    fn of(value: &Value) -> Option<BoundingBox> {
        let numbers = |value: &Value| -> Option<Vec<f64>> {
            value.as_array()?.iter().map(Value::as_f64).collect()
        };
        let corners = match value.as_array()?.as_slice() {
            [a, b] => {
                [numbers(a)?, numbers(b)?].into_iter().filter(|p| p.len() == 2).flatten().collect()
            }
            _ => numbers(value)?,
        };
        Some(BoundingBox { corners: corners.try_into().ok()? })
    }

    /// Intersection over union, 0 where one of the boxes is empty.
    pub fn iou(&self, other: &BoundingBox) -> f64 {
        let ([a, b, c, d], [e, f, g, h]) = (self.corners, other.corners);
        let area = |x1: f64, y1: f64, x2: f64, y2: f64| (x2 - x1).max(0.0) * (y2 - y1).max(0.0);
        let (mine, theirs) = (area(a, b, c, d), area(e, f, g, h));
        let common = area(a.max(e), b.max(f), c.min(g), d.min(h));
        let iou = common / (mine + theirs - common);
        // Corners may be huge: what is not a number between 0 and 1 is no overlap.
        if mine > 0.0 && theirs > 0.0 && (0.0..=1.0).contains(&iou) { iou } else { 0.0 }
    }
}

/// The boxes in `text`, wherever they stand: `[x1, y1, x2, y2]` in brackets or parentheses, with a
/// score behind the corners or not, with commas or spaces, and pairs of points `(x1, y1), (x2, y2)`.
pub fn parse_boxes(text: &str) -> Vec<BoundingBox> {
    scored_boxes(text).into_iter().map(|(corners, _)| corners).collect()
}

/// The boxes in `text`, as [`parse_boxes`] finds them, with the score from 0 to 1 that stands behind
/// the corners, or behind the box after a word such as `confidence` or `score`.
pub(super) fn scored_boxes(text: &str) -> Vec<(BoundingBox, Option<f64>)> {
    // What an opening bracket starts ends before the next one, so each byte is read once.
    let (mut boxes, mut point) = (Vec::new(), None::<[f64; 2]>);
    let found = |corners, score| (BoundingBox { corners }, score);
    for group in text.split(['[', '(']).skip(1) {
        let Some((numbers, rest)) = group_of(group) else {
            point = None;
            continue;
        };
        let previous = point.take();
        match (numbers.as_slice(), previous) {
            (&[x1, y1, x2, y2], _) => boxes.push(found([x1, y1, x2, y2], score_behind(rest))),
            (&[x1, y1, x2, y2, score], _) => boxes.push(found([x1, y1, x2, y2], Some(score))),
            (&[x2, y2], Some([x1, y1])) => {
                boxes.push(found([x1, y1, x2, y2], score_behind(rest)));
            }
            // The first of two, if nothing but a comma stands before the next.
            (&[x, y], None) if rest.chars().all(|c| c == ',' || c.is_whitespace()) => {
                point = Some([x, y]);
            }
            _ => {}
        }
    }
    boxes
}

/// The number behind the word `confidence`, `score` or `conf` in `text`.
fn score_behind(text: &str) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    let words = ["confidence", "score", "conf"];
    let (at, word) = words.iter().find_map(|word| lower.find(word).map(|at| (at, word)))?;
    let behind = lower[at + word.len()..].trim_start_matches(|c| "'\"*:=` ".contains(c));
    let number = behind.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    number.parse().ok().filter(|score| (0.0..=1.0).contains(score))
}

/// Numbers up to a closing bracket, and what follows it. Of five, the last is a score from 0 to 1.
pub(super) fn group_of(text: &str) -> Option<(Vec<f64>, &str)> {
    let (inside, rest) = text.split_once([']', ')'])?;
    let mut numbers = Vec::new();
    let commas = inside.contains(',');
    let inside = inside.trim();
    for part in inside.split(|c: char| if commas { c == ',' } else { c.is_whitespace() }) {
        numbers.push(part.trim().parse().ok().filter(|x: &f64| x.is_finite())?);
        if numbers.len() > 5 {
            return None;
        }
    }
    let score = numbers.get(4).is_none_or(|score| (0.0..=1.0).contains(score));
    score.then_some((numbers, rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    fn score(iou: &Iou, completion: &str, boxes: Value) -> f32 {
        match ask(|i| iou.check(i), completion, &json!({"boxes": boxes})) {
            Ok(Score(score)) => score,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_box() {
        let iou = Iou::default();
        for (completion, expected) in [
            ("[0, 0, 10, 10]", 1.0),
            ("<answer>[0,0,10,5]</answer>", 0.5),
            ("{\"bbox_2d\": [5, 0, 15, 10]}", 1.0 / 3.0),
            ("[10, 10, 0, 0]", 0.0),
            ("[0, 0, 10]", 0.0),
            ("[0, 0, 10, 10, 0.9]", 1.0),
            ("[0, 0, 10, 10, 5]", 0.0),
            ("[0, 0, 10, 10, 0.9, 1]", 0.0),
            ("(0, 0), (10, 10)", 1.0),
            ("(0,0),(10,5)", 0.5),
            ("[[0, 0], [10, 10]]", 1.0),
            ("[(0, 0), (10, 10)]", 1.0),
            ("(0, 0, 10, 10)", 1.0),
            ("[0 0 10 5]", 0.5),
            ("[0,, 0, 10, 10]", 0.0),
            ("<|box_start|>(0,0),(10,10)<|box_end|>", 1.0),
            ("(0, 0) to (10, 10)", 0.0),
            ("(0, 0) (x) (10, 10)", 0.0),
            ("<think>[5, 5, 9, 9]</think>[0, 0, 10, 10]", 1.0),
            ("<think>[0, 0, 10, 10]", 0.0),
            ("[0, 0, 10, inf]", 0.0),
            ("[20, 20, 30, 30]", 0.0),
            ("[-1e308, -1e308, 1e308, 1e308]", 0.0),
            ("", 0.0),
        ] {
            let got = score(&iou, completion, json!([0, 0, 10, 10]));
            assert!((got - expected).abs() < 1e-6, "{completion}: {got}");
        }
    }

    #[test]
    fn many_boxes_are_paired_for_the_best_sum() {
        let gold = json!([[0, 0, 10, 10], [20, 0, 30, 10]]);
        let iou = Iou::default();
        assert_eq!(score(&iou, "[[20,0,30,10],[0,0,10,10]]", gold.clone()), 1.0);
        assert_eq!(score(&iou, "[0,0,10,10]", gold.clone()), 0.5);
        assert_eq!(
            score(&iou, "[0,0,10,10] [0,0,10,10] [0,0,10,10] [20,0,30,10]", gold.clone()),
            0.5
        );
        let half = Iou { threshold: Some(0.5), ..Iou::default() };
        assert_eq!(score(&half, "[0,0,10,6] [20,0,30,4]", gold), 0.5);
        assert_eq!(score(&half, "none", json!([])), 1.0);
        assert_eq!(
            score(&iou, "(0,0),(1,1),(2,2),(3,3)", json!([[0, 0, 1, 1], [2, 2, 3, 3]])),
            1.0
        );
        assert_eq!(score(&iou, "[0,0,1,1]", json!([[0, 0], [1, 1]])), 1.0);
        assert_eq!(score(&iou, "[0,0,1,1]", json!([[[0, 0], [1, 1]]])), 1.0);
    }

    #[test]
    fn very_many_boxes_are_no_burden() {
        let flood = "[0,0,1,1]".repeat(20_000);
        let gold: Vec<Value> = (0..40).map(|i| json!([i, 0, i + 1, 1])).collect();
        assert_eq!(score(&Iou::default(), &flood, json!(gold)), 1.0 / 20_000.0);
    }

    #[test]
    fn broken_golds_fail() {
        for boxes in [json!([1, 2, 3]), json!("x"), json!([[1, 2, 3, 4], [1]])] {
            let error = ask(|i| Iou::default().check(i), "", &json!({"boxes": boxes})).unwrap_err();
            assert!(error.contains("`boxes`"), "{error}");
        }
    }
}
