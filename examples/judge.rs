//! Scores completions with a reward, outside of any training.
//!
//! ```sh
//! cargo run --release --example judge -- numeric < samples.jsonl
//! ```
//!
//! A line is `{"completion": …, "row": {…}}`; `prompt` and `finished` may be given. For each, a line
//! `{"score": …}`, with the reward's `parts` and `feedback` if it has any, or `{"error": …}` is
//! printed, in order.

use std::io::{self, BufRead, Write};

use gradus_rft::reward::spec::parse;
use gradus_rft::reward::{Judgment, RewardInput, RewardOutcome};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = std::env::args().nth(1).ok_or("which reward? For example `numeric`")?;
    let reward = parse(&spec)?;
    let lines: Vec<Value> = io::stdin()
        .lock()
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<_, Box<dyn std::error::Error>>>()?;
    let none = Map::new();
    let text = |line: &'_ Value, key: &str| line[key].as_str().unwrap_or("").to_string();
    let texts: Vec<(String, String)> =
        lines.iter().map(|line| (text(line, "prompt"), text(line, "completion"))).collect();
    let inputs: Vec<RewardInput<'_>> = lines
        .iter()
        .zip(&texts)
        .map(|(line, (prompt, completion))| RewardInput {
            prompt,
            completion,
            finished: line["finished"].as_bool().unwrap_or(true),
            fields: line["row"].as_object().unwrap_or(&none),
        })
        .collect();
    let mut out = io::stdout().lock();
    for outcome in reward.score(&inputs) {
        let line = match outcome.map(RewardOutcome::judgment) {
            Ok(Some(Judgment { score, parts, feedback })) => {
                let mut line = json!({ "score": score });
                if !parts.is_empty() {
                    line["parts"] = parts.into_iter().collect();
                }
                if let Some(feedback) = feedback {
                    line["feedback"] = feedback.into();
                }
                line
            }
            Ok(None) => json!({ "score": null }),
            Err(reason) => json!({ "error": reason }),
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}
