//! `zoom`: a look before an answer. A row has `frames`, a text of which the policy sees little, `window`, the
//! first and the last of the frames that matter, and `answer`. An answer `<8-11>` asks for frames 8 to 11, which
//! are said as they stand; the first such is worth its overlap with the window (intersection over union), others
//! nothing. Any other answer ends the episode, and is worth 1 if it is `answer`.

use serde_json::{Map, Value};

use super::{Environment, Reply, Turn};

/// Who has the frames. It has no state.
pub(super) struct Zoom;

impl Environment for Zoom {
    fn step(&self, turns: &[Turn<'_>]) -> Vec<Result<Reply, String>> {
        let reply = |turn: &Turn<'_>| {
            let clip = Clip::of(&turn.start.prompt.fields)?;
            let Some(asked) = asked(turn.answer(), clip.frames.len()) else {
                return Ok(Reply::done((turn.answer().trim() == clip.answer) as u8 as f32));
            };
            let shown: String = clip.frames[asked.0..=asked.1].iter().collect();
            let first = turn.answers.len() == 1;
            let reward = if first { overlap(asked, clip.window) } else { 0.0 };
            Ok(Reply { reward, ..Reply::says(shown) })
        };
        turns.iter().map(reply).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        Clip::of(fields).map(drop)
    }
}

/// What a row holds.
struct Clip<'a> {
    frames: Vec<char>,
    window: (usize, usize),
    answer: &'a str,
}

impl Clip<'_> {
    fn of(fields: &Map<String, Value>) -> Result<Clip<'_>, String> {
        let get = |name: &str| fields.get(name).unwrap_or(&Value::Null);
        let text = |name: &str| {
            let value = get(name);
            let wrong =
                || format!("row field `{name}` is {value}, expected a text that is not empty");
            value.as_str().filter(|text| !text.is_empty()).ok_or_else(wrong)
        };
        let (frames, answer) = (text("frames")?.chars().collect::<Vec<char>>(), text("answer")?);
        let value = get("window");
        let ends: Option<Vec<usize>> = value.as_array().and_then(|ends| {
            ends.iter().map(|end| end.as_u64().and_then(|end| end.try_into().ok())).collect()
        });
        match ends.as_deref() {
            Some(&[first, last]) if first <= last && last < frames.len() => {
                Ok(Clip { frames, window: (first, last), answer })
            }
            Some(_) | None => {
                let most = frames.len() - 1;
                Err(format!("row field `window` is {value}, expected two of 0 to {most} in order"))
            }
        }
    }
}

/// The first and the last frame that an answer asks for, if it asks for frames that there are.
fn asked(answer: &str, frames: usize) -> Option<(usize, usize)> {
    let (first, last) = answer.trim().strip_prefix('<')?.strip_suffix('>')?.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < frames).then_some((first, last))
}

/// Intersection over union.
fn overlap(a: (usize, usize), b: (usize, usize)) -> f32 {
    let both = (a.1.min(b.1) + 1).saturating_sub(a.0.max(b.0));
    let each = (a.1 - a.0 + 1) + (b.1 - b.0 + 1);
    both as f32 / (each - both) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_worth_their_overlap() {
        for (answer, frames) in [
            ("<0-3>", Some((0, 3))),
            (" <2-2> ", Some((2, 2))),
            ("<3-0>", None),
            ("<0-4>", None),
            ("<0-3", None),
            ("0-3", None),
            ("<a-3>", None),
            ("<-1-3>", None),
        ] {
            assert_eq!(asked(answer, 4), frames, "{answer}");
        }
        for (a, b, worth) in [
            ((4, 7), (4, 7), 1.0),
            ((0, 7), (4, 7), 0.5),
            ((6, 9), (4, 7), 1.0 / 3.0),
            ((0, 3), (4, 7), 0.0),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (worth, worth));
        }
    }

    #[test]
    fn rows_need_frames_a_window_and_an_answer() {
        let check = |row: Value| Zoom.check_row(row.as_object().unwrap());
        let row = |frames: Value, window: Value, answer: Value| {
            check(serde_json::json!({ "frames": frames, "window": window, "answer": answer }))
        };
        row("abcd".into(), vec![1, 3].into(), "3".into()).unwrap();
        for (frames, window, answer, wrong) in [
            (Value::Null, vec![1, 3].into(), "3".into(), "`frames` is null"),
            ("".into(), vec![1, 3].into(), "3".into(), "`frames` is \"\""),
            (
                "abcd".into(),
                vec![1, 4].into(),
                "3".into(),
                "`window` is [1,4], expected two of 0 to 3",
            ),
            ("abcd".into(), vec![3, 1].into(), "3".into(), "`window` is [3,1]"),
            ("abcd".into(), vec![1].into(), "3".into(), "`window` is [1]"),
            ("abcd".into(), "1-3".into(), "3".into(), "`window` is \"1-3\""),
            ("abcd".into(), vec![1, 3].into(), 3.into(), "`answer` is 3"),
        ] {
            let error = row(frames, window, answer).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
