//! Boxes in pictures.

use serde_json::Value;

use super::matching::best_pairing;
use super::{field, tagged};
use crate::reward::{Outcome, RewardInput, RewardOutcome};

/// How well the boxes of a completion lie on the gold boxes: they are paired one to one, and the
/// score is the sum of the pairs' intersections over unions, divided by the larger number of boxes,
/// so that missing and surplus boxes cost. With a threshold a pair counts 1 from there on, else 0.
///
/// The pairing is the best one for up to 32 boxes on a side, else greedy. More than 1024 boxes in a
/// completion are not paired, but counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Iou {
    /// The row's field with the gold: `[x1, y1, x2, y2]` or a list of such.
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
const MOST: usize = 1024;

impl Iou {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.gold(field(input.fields, &self.field)?)?;
        let said = parse_boxes(tagged(input.completion, "answer").unwrap_or(input.completion));
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

    fn gold(&self, value: &Value) -> Result<Vec<BoundingBox>, String> {
        let boxes = match value.as_array() {
            Some(items) if items.iter().all(Value::is_array) => {
                items.iter().map(BoundingBox::of).collect()
            }
            _ => BoundingBox::of(value).map(|one| vec![one]),
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
        let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
        Some(BoundingBox { corners: numbers?.try_into().ok()? })
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

/// The groups `[a, b, c, d]` of four numbers in `text`, wherever they stand.
pub fn parse_boxes(text: &str) -> Vec<BoundingBox> {
    // What an opening bracket starts ends before the next one, so each byte is read once.
    text.split('[').skip(1).filter_map(parse_box).collect()
}

fn parse_box(text: &str) -> Option<BoundingBox> {
    let (inside, _) = text.split_once(']')?;
    let mut corners = [0.0; 4];
    let mut parts = inside.split(',');
    for corner in &mut corners {
        *corner = parts.next()?.trim().parse().ok().filter(|x: &f64| x.is_finite())?;
    }
    parts.next().is_none().then_some(BoundingBox { corners })
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
