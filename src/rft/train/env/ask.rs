//! `ask`: a hidden number. A row has `hidden`, from 0 to 15. An answer `<8` asks whether the number is less,
//! which is answered by `y` or `n` and costs 0.1; any other answer ends the episode, and is worth 1 if it
//! is the number.

use serde_json::{Map, Value};

use super::{Environment, Reply, Turn, number};

/// One more than the largest number.
const MOST: i64 = 16;

/// What a question costs.
const COST: f32 = 0.1;

/// Who knows the number. It has no state.
pub(super) struct Ask;

impl Environment for Ask {
    fn step(&self, turns: &[Turn<'_>]) -> Vec<Result<Reply, String>> {
        let reply = |turn: &Turn<'_>| {
            let hidden = number(&turn.start.prompt.fields, "hidden", 0..MOST)?;
            let answer = turn.answer().trim();
            Ok(match answer.strip_prefix('<').map(|bound| bound.trim().parse::<i64>()) {
                Some(Ok(bound)) => {
                    let said = if hidden < bound { "y" } else { "n" };
                    Reply { reward: -COST, ..Reply::says(said) }
                }
                // No question, or one that nobody can answer.
                Some(Err(_)) | None => Reply::done((answer == hidden.to_string()) as u8 as f32),
            })
        };
        turns.iter().map(reply).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        number(fields, "hidden", 0..MOST).map(drop)
    }
}
