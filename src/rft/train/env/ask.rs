//! `ask`: a hidden number. A row has `hidden`, from 0 to 15. An answer `<8` asks whether the number is less,
//! which is answered by `y` or `n`, and costs `env.question_cost`; any other answer ends the episode, and is
//! worth 1 if it is the number. With `env.question_value` a question is worth that much times the share that
//! its answer rules out of the numbers that could still be: a question that was asked before is worth nothing.

use serde_json::{Map, Value};

use super::{Environment, Reply, Turn, number};

/// One more than the largest number.
const MOST: i64 = 16;

/// Who knows the number. It has no state.
pub(super) struct Ask {
    /// What a question costs.
    pub cost: f32,
    /// What a question is worth that rules out everything.
    pub value: f32,
}

impl Environment for Ask {
    fn step(&self, turns: &[Turn<'_>]) -> Vec<Result<Reply, String>> {
        let reply = |turn: &Turn<'_>| {
            let hidden = number(&turn.start.prompt.fields, "hidden", 0..MOST)?;
            let Some(bound) = asked(turn.answer()) else {
                let right = turn.answer().trim() == hidden.to_string();
                return Ok(Reply::done(right as u8 as f32));
            };
            let said = if hidden < bound { "y" } else { "n" };
            let earlier = &turn.answers[..turn.answers.len() - 1];
            let (before, after) = (left(hidden, earlier), left(hidden, turn.answers));
            let news = (before - after) as f32 / before as f32;
            Ok(Reply { reward: self.value * news - self.cost, ..Reply::says(said) })
        };
        turns.iter().map(reply).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> Result<(), String> {
        number(fields, "hidden", 0..MOST).map(drop)
    }
}

/// The bound that an answer asks about, if it is a question.
fn asked(answer: &str) -> Option<i64> {
    answer.trim().strip_prefix('<')?.trim().parse().ok()
}

/// How many numbers can still be, after the questions among `answers`; at least 1.
fn left(hidden: i64, answers: &[String]) -> i64 {
    let (mut low, mut high) = (0, MOST);
    for bound in answers.iter().filter_map(|answer| asked(answer)) {
        match hidden < bound {
            true => high = high.min(bound),
            false => low = low.max(bound),
        }
    }
    high - low
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::train::env::Start;
    use crate::train::task::Prompt;

    /// What each answer is worth when 5 is hidden.
    #[test]
    fn questions_are_worth_what_they_rule_out() {
        let fields = Arc::new(serde_json::json!({ "hidden": 5 }).as_object().unwrap().clone());
        let prompt = Prompt { fields, ..Prompt::plain("") };
        let worth = |cost: f32, value: f32, said: &[&str]| -> Vec<(Option<String>, f32)> {
            let said: Vec<String> = said.iter().map(|text| text.to_string()).collect();
            let turn = |n: usize| Turn {
                episode: 0,
                start: Start { prompt: &prompt, seed: 0 },
                answers: &said[..n],
                finished: true,
            };
            let turns: Vec<Turn<'_>> = (1..=said.len()).map(turn).collect();
            let replies = Ask { cost, value }.step(&turns).into_iter().map(Result::unwrap);
            replies.map(|reply| (reply.says, reply.reward)).collect()
        };
        let says = |text: &str, reward: f32| (Some(text.to_string()), reward);
        // 16 numbers, 8, 4, still 4, still 4.
        let questions = ["<8", " < 4", "<8", "<-3", "<99", "5"];
        let paid = worth(0.0, 1.0, &questions);
        let [half, none, right] = [0.5, 0.0, 1.0];
        let said = ["y", "n", "y", "n", "y"];
        let news = [half, half, none, none, none];
        let want: Vec<_> = said.iter().zip(news).map(|(text, worth)| says(text, worth)).collect();
        assert_eq!(paid[..5], want);
        assert_eq!(paid[5], (None, right));
        assert_eq!(worth(0.25, 0.0, &["<8", "4"]), [says("y", -0.25), (None, 0.0)]);
        for guess in ["<", "<x", "", "05", "five"] {
            assert_eq!(worth(0.25, 1.0, &[guess]), [(None, 0.0)], "{guess}");
        }
    }
}
