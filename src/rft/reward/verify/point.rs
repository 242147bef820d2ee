//! Points in pictures.

use serde_json::{Map, Value};

use super::iou::{BoundingBox, Iou, group_of, parse_boxes};
use super::numbers::numbers;
use super::{field, said, verdict};
use crate::reward::{Outcome, RewardInput};

/// 1 if the point lies in one of the gold boxes, its edges included, else 0: the grounding reward of
/// UI-Venus (arXiv:2508.10833).
///
/// The point is the center of the answer's last box, as [`parse_boxes`] finds it; without a box the
/// last `(x, y)` or `[x, y]`; without brackets the only two numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The row's field with the gold: `[x1, y1, x2, y2]`, `[[x1, y1], [x2, y2]]`, or a list of such.
    pub field: String,
}

impl Default for Point {
    fn default() -> Point {
        Point { field: "boxes".into() }
    }
}

impl Point {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.reader().gold(field(input.fields, &self.field)?)?;
        let point = said(input.completion).and_then(point);
        verdict(point.is_some_and(|point| gold.iter().any(|gold| holds(gold, point))))
    }

    /// Whether a row has boxes.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.reader().check_row(fields)
    }

    fn reader(&self) -> Iou {
        Iou { field: self.field.clone(), ..Iou::default() }
    }
}

fn point(text: &str) -> Option<[f64; 2]> {
    if let Some(BoundingBox { corners: [x1, y1, x2, y2] }) = parse_boxes(text).last() {
        return Some([0.5 * x1 + 0.5 * x2, 0.5 * y1 + 0.5 * y2]);
    }
    let groups = text.split(['[', '(']).skip(1).filter_map(group_of);
    if let Some(&[x, y]) =
        groups.map(|(group, _)| group).filter(|group| group.len() == 2).last().as_deref()
    {
        return Some([x, y]);
    }
    match *numbers(text) {
        [x, y] => Some([x, y]),
        _ => None,
    }
}

fn holds(gold: &BoundingBox, [x, y]: [f64; 2]) -> bool {
    let [x1, y1, x2, y2] = gold.corners;
    (x1..=x2).contains(&x) && (y1..=y2).contains(&y)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::RewardOutcome::Score;
    use crate::reward::verify::tests::ask;

    #[test]
    fn points_and_centers_of_boxes() {
        let row = json!({"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]});
        for (completion, score) in [
            ("(5, 5)", 1.0),
            ("<answer>[25, 30]</answer>", 1.0),
            ("click(x=1, y=2)", 1.0),
            ("5, 5", 1.0),
            ("[2, 2, 40, 8]", 0.0),
            ("[2, 2, 6, 8]", 1.0),
            ("(0, 0), (10, 12)", 1.0),
            ("(50, 50) or (5, 5)", 1.0),
            ("[5, 5] then [50, 50]", 0.0),
            ("15, 15", 0.0),
            ("5 5 5", 0.0),
            ("<think>(5, 5)", 0.0),
            ("", 0.0),
        ] {
            let got = ask(|i| Point::default().check(i), completion, &row);
            assert_eq!(got, Ok(Score(score)), "{completion}");
        }
        assert!(Point::default().check_row(&Map::new()).unwrap_err().contains("`boxes`"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_box_holds_its_own_center(x in -50i32..50, y in -50i32..50, w in 1i32..50, h in 1i32..50) {
            let gold = [x, y, x + w, y + h];
            let row = json!({"boxes": gold});
            let check = |i: &RewardInput<'_>| Point::default().check(i);
            prop_assert_eq!(ask(check, &format!("{gold:?}"), &row), Ok(Score(1.0)));
            let outside = format!("({}, {})", x + w + 1, y);
            prop_assert_eq!(ask(check, &outside, &row), Ok(Score(0.0)));
        }
    }
}
