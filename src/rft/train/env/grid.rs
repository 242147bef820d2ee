//! `grid`: a walk on 5 x 5 places. A row has `start` and `goal`, each a number from 0 to 24, row by row from
//! the top left. An answer is a move, `u`, `d`, `l` or `r`; against a wall, and for anything else, the walk
//! stays. What is said is the place and the goal, as the prompt says them: `12>4`. The walk is over at the
//! goal, which is worth 1; nothing else is worth anything.

use serde_json::{Map, Value};

use super::{Environment, Reply, Turn, number};

/// Places of a side.
const SIDE: i64 = 5;

/// The walk. Where one is follows from its row and its moves.
pub(super) struct Grid;

impl Environment for Grid {
    fn step(&self, turns: &[Turn<'_>]) -> Vec<Result<Reply, String>> {
        let reply = |turn: &Turn<'_>| {
            let (start, goal) = places(&turn.start.prompt.fields)?;
            let place = turn.answers.iter().fold(start, |place, answer| moved(place, answer));
            Ok(match place == goal {
                true => Reply::done(1.0),
                false => Reply::says(shown(place, goal)),
            })
        };
        turns.iter().map(reply).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        places(fields).map(drop)
    }
}

fn places(fields: &Map<String, Value>) -> Result<(i64, i64), String> {
    let place = |name| number(fields, name, 0..SIDE * SIDE);
    let (start, goal) = (place("start")?, place("goal")?);
    match start == goal {
        true => Err(format!("row fields `start` and `goal` are both {start}")),
        false => Ok((start, goal)),
    }
}

/// A place and the goal as a policy reads them.
fn shown(place: i64, goal: i64) -> String {
    format!("{place}>{goal}")
}

fn moved(place: i64, answer: &str) -> i64 {
    let (row, column) = (place / SIDE, place % SIDE);
    let (row, column) = match answer.trim() {
        "u" => (row - 1, column),
        "d" => (row + 1, column),
        "l" => (row, column - 1),
        "r" => (row, column + 1),
        // No move is known by another name.
        _ => (row, column),
    };
    let within = |at: i64| (0..SIDE).contains(&at);
    if within(row) && within(column) { row * SIDE + column } else { place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_go_as_they_are_told_and_stop_at_walls() {
        let walk = |moves: &str| moves.chars().fold(0, |place, m| moved(place, &m.to_string()));
        for (moves, place) in [("", 0), ("rr", 2), ("dd", 10), ("uld", 5), ("rrrrrrr", 4), ("x", 0)]
        {
            assert_eq!(walk(moves), place, "{moves}");
        }
        assert_eq!((0..9).fold(24, |place, _| moved(place, " d ")), 24);
        assert_eq!(moved(6, "rr"), 6);
    }

    #[test]
    fn rows_need_two_places() {
        let check = |row: Value| Grid.check_row(row.as_object().unwrap());
        check(serde_json::json!({ "start": 0, "goal": 24 })).unwrap();
        for (row, wrong) in [
            (serde_json::json!({ "start": 0 }), "`goal` is null"),
            (
                serde_json::json!({ "start": 25, "goal": 1 }),
                "`start` is 25, expected a whole number from 0 to 24",
            ),
            (serde_json::json!({ "start": 3, "goal": 3 }), "both 3"),
        ] {
            let error = check(row).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
