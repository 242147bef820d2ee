//! Boxes in pictures, with confidences.

use serde_json::{Map, Value};

use super::iou::{BoundingBox, Iou, MOST, scored_boxes};
use super::{conclusion, field, tagged};
use crate::reward::{Judgment, Outcome, RewardInput};

/// From 0 to 2, the detection reward of Visual-RFT (arXiv:2503.01785) without its format: how well
/// boxes lie on the gold boxes, and how well their confidences say which do.
///
/// The surest box goes first and takes the free gold box that it overlaps most, if their intersection
/// over union reaches the threshold. The part `iou` is the sum of these overlaps, divided by the larger
/// number of boxes. The part `confidence` is the mean over the boxes that are said of their confidence
/// where one took a gold box, and of 1 less that where it did not. The score is the sum of both.
///
/// Boxes are found as by [`parse_boxes`](super::parse_boxes). A confidence from 0 to 1 stands behind
/// the corners, or behind the box after the word `confidence` or `score`; a box without one is sure.
/// No box is right where there is no gold, which scores 2, and wrong elsewhere, which scores 0. More
/// than 1024 boxes are not paired, but counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Detect {
    /// The row's field with the gold: `[x1, y1, x2, y2]`, `[[x1, y1], [x2, y2]]`, or a list of such.
    pub field: String,
    /// From which overlap on a box counts as found.
    pub threshold: f64,
}

impl Default for Detect {
    fn default() -> Detect {
        Detect { field: "boxes".into(), threshold: 0.5 }
    }
}

impl Detect {
    /// The least and the largest score.
    pub fn bounds(&self) -> (f64, f64) {
        (0.0, 2.0)
    }

    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let gold = self.reader().gold(field(input.fields, &self.field)?)?;
        let [iou, confidence] = match conclusion(input.completion) {
            Some(answer) => self.parts(&gold, tagged(answer, "answer").unwrap_or(answer)),
            None => [0.0, 0.0],
        };
        let parts = vec![("iou".to_string(), iou as f32), ("confidence".into(), confidence as f32)];
        Ok(Judgment { score: (iou + confidence) as f32, parts, feedback: None }.into())
    }

    /// Whether a row has boxes, or a list of none.
    pub fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        self.reader().check_row(fields)
    }

    fn reader(&self) -> Iou {
        Iou { field: self.field.clone(), ..Iou::default() }
    }

    fn parts(&self, gold: &[BoundingBox], answer: &str) -> [f64; 2] {
        let mut said: Vec<(BoundingBox, f64)> =
            scored_boxes(answer).into_iter().map(|(b, score)| (b, score.unwrap_or(1.0))).collect();
        let (count, most) = (said.len(), said.len().max(gold.len()));
        if most == 0 {
            return [1.0, 1.0];
        }
        // Of equally sure boxes the first.
        said.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (mut free, mut overlaps, mut confidence) = (vec![true; gold.len()], 0.0, 0.0);
        for (i, (corners, sure)) in said.iter().enumerate() {
            let open = (0..gold.len()).filter(|&j| free[j] && i < MOST);
            let best = open
                .map(|j| (j, corners.iou(&gold[j])))
                .reduce(|best, next| if next.1 > best.1 { next } else { best });
            match best.filter(|(_, overlap)| *overlap >= self.threshold) {
                Some((j, overlap)) => {
                    free[j] = false;
                    overlaps += overlap;
                    confidence += sure;
                }
                None => confidence += 1.0 - sure,
            }
        }
        [overlaps / most as f64, confidence / count.max(1) as f64]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::reward::verify::tests::ask;

    fn judge(completion: &str, boxes: Value) -> Judgment {
        let outcome = ask(|i| Detect::default().check(i), completion, &json!({"boxes": boxes}));
        outcome.unwrap().judgment().unwrap()
    }

    #[test]
    fn overlap_and_confidence() {
        let gold = json!([[0, 0, 10, 10], [20, 0, 30, 10]]);
        for (completion, iou, confidence) in [
            ("[0,0,10,10,1] [20,0,30,10,1]", 1.0, 1.0),
            ("[0,0,10,10,0.8] [20,0,30,5,0.6]", 0.75, 0.7),
            ("[0,0,10,10,0.8] [50,0,60,10,0.1]", 0.5, 0.85),
            // The second of two boxes on one gold is wrong, even if it lies better.
            ("[0,0,10,8,0.9] [0,0,10,10,0.4]", 0.4, 0.75),
            ("{'Position': [0,0,10,10], 'Confidence': 0.25}", 0.5, 0.25),
            ("[0,0,10,10]", 0.5, 1.0),
            ("[0,0,10,4,0.3]", 0.0, 0.7),
            ("<think>[0,0,10,10]", 0.0, 0.0),
            ("", 0.0, 0.0),
        ] {
            let Judgment { score, parts, .. } = judge(completion, gold.clone());
            assert!((parts[0].1 - iou).abs() < 1e-6, "{completion}: {parts:?}");
            assert!((parts[1].1 - confidence).abs() < 1e-6, "{completion}: {parts:?}");
            assert!((score - iou - confidence).abs() < 1e-6);
        }
        assert_eq!(judge("nothing there", json!([])).score, 2.0);
        assert_eq!(judge("[0,0,1,1,0.2]", json!([])).score, 0.8);
        assert!(Detect::default().check_row(&Map::new()).unwrap_err().contains("`boxes`"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// With different confidences the order of boxes does not count, and scores are bounded.
        #[test]
        fn order_does_not_count(boxes in prop::collection::vec((0i32..20, 1i32..20), 0..6)) {
            let write = |(i, (x, w)): (usize, &(i32, i32))| {
                format!("[{x}, 0, {}, 10, 0.{}]", x + w, i + 1)
            };
            let all: Vec<String> = boxes.iter().enumerate().map(write).collect();
            let back: Vec<String> = all.iter().rev().cloned().collect();
            let gold = json!([[0, 0, 10, 10], [10, 0, 20, 10]]);
            let forward = judge(&all.join(" "), gold.clone());
            // Confidences are added up in the same order either way.
            prop_assert_eq!(&forward, &judge(&back.join(" "), gold));
            prop_assert!((0.0..=2.0).contains(&forward.score));
        }
    }
}
