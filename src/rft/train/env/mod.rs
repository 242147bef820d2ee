//! Environments: what answers a policy between its turns.
//!
//! A completion of a run without an environment is an episode of one turn. With one the policy answers,
//! the environment says something, the policy answers in the light of all before, and so on until the
//! environment says that it is done or a limit is reached. The ids of an episode only grow: the prompt's,
//! those that were sampled, those of what was said. What was sampled is never encoded again, so that the
//! first importance ratio of every sampled token is exactly 1; what was said carries no loss.
//!
//! | `env.kind` | what it says | who scores an episode |
//! |---|---|---|
//! | `tool` | the value of the expression that an answer asks for | `reward.functions`, by the last answer |
//! | `grid` | where a walk has come to | itself: 1 at the goal |
//! | `ask` | yes or no to a question about a hidden number | itself: 1 for the number, less for questions |
//! | `zoom` | the frames that an answer asks for | itself: their overlap with the right ones, and 1 for the answer |
//! | `rounds` | nothing: a fresh prompt has the answer before in it; see `rounds.rs` | `reward.functions`, by the last answers |
//! | `cmd:COMMAND` | what a program says: [`command`] | itself |
//! | `own` | what [`crate::train::Trainer::with_environment`] was given says | itself |
//!
//! The reward of an episode is the sum of its turns' rewards, with what `reward.functions` say of its last
//! answer; it is the reward of the whole sequence. An episode in which the environment failed is left out as
//! one about which a reward failed, and no other is touched.

mod ask;
mod calculator;
#[cfg(feature = "hf")]
mod check;
pub mod command;
mod episode;
mod frame;
mod grid;
mod judge;
mod playing;
mod rounds;
mod shown;
mod zoom;

use std::sync::Arc;

use crate::near::did_you_mean;
use crate::reward::command::CommandOptions;
use crate::train::config::EnvConfig;
use crate::train::task::Prompt;
use gradus::error::{Error, Result};

#[cfg(feature = "hf")]
pub use check::{Checked, check};
pub(crate) use episode::Limits;
pub use episode::Played;
pub(crate) use frame::Frame;
pub(crate) use judge::Judged;
pub(crate) use rounds::{LastAnswer, Rounds};
pub(crate) use shown::Shown;

/// The beginning of an episode.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// What the policy reads first, with the data row behind it.
    pub prompt: &'a Prompt,
    /// A draw of the episode's own: the same when a step is done again, another in every other episode.
    pub seed: u64,
}

/// What a policy has said in an episode.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Its number among the episodes that began together.
    pub episode: usize,
    /// Where the episode began.
    pub start: Start<'a>,
    /// The texts of all answers so far; the last is the one to reply to. Never empty.
    pub answers: &'a [String],
    /// Whether that one ended by itself. One that was cut off is the last of its episode, whatever the
    /// reply.
    pub finished: bool,
}

impl Turn<'_> {
    /// The answer to reply to.
    pub fn answer(&self) -> &str {
        self.answers.last().map_or("", String::as_str)
    }
}

/// What the environment makes of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// What is said to the policy; nothing if the episode is over.
    pub says: Option<String>,
    /// What the turn is worth; finite.
    pub reward: f32,
}

impl Reply {
    /// The episode goes on.
    pub fn says(text: impl Into<String>) -> Reply {
        Reply { says: Some(text.into()), reward: 0.0 }
    }

    /// The episode is over.
    pub fn done(reward: f32) -> Reply {
        Reply { says: None, reward }
    }
}

/// Says something to what policies say, for many episodes at once. What it says in one episode has to
/// depend on that episode alone: its row, its seed and its answers. Then neither the number of episodes
/// nor a run that is interrupted and goes on changes a bit.
pub trait Environment: Send + Sync {
    /// Whether the rewards of its replies score an episode. If not, a run needs `reward.functions`.
    fn scores(&self) -> bool {
        true
    }

    /// Episodes begin. `Err` fails its episode, with the reason.
    fn begin(&self, starts: &[Start<'_>]) -> Vec<std::result::Result<(), String>> {
        vec![Ok(()); starts.len()]
    }

    /// A reply to each turn, in order. `Err` fails its episode, with the reason.
    fn step(&self, turns: &[Turn<'_>]) -> Vec<std::result::Result<Reply, String>>;

    /// Whether a data row has what the environment needs. It is asked once for every row when the data is
    /// read.
    ///
    /// # Errors
    /// What is wrong, with the field's name.
    fn check_row(
        &self,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> std::result::Result<(), String> {
        let _ = fields;
        Ok(())
    }
}

/// An environment with the way in which its words reach the policy.
#[derive(Clone)]
pub(crate) struct World {
    /// Nothing for `own`, until somebody gives one.
    pub environment: Option<Arc<dyn Environment>>,
    pub frame: Arc<Frame>,
}

/// What `env.kind` may name.
const KINDS: [&str; 7] = ["tool", "grid", "ask", "zoom", "rounds", "own", "cmd:COMMAND"];

/// What `env.kind` calls a policy that goes on with its own answers.
pub(crate) const ROUNDS: &str = "rounds";

/// What `env.kind` names a program by.
pub(crate) const COMMAND: &str = "cmd:";

/// The environment that `config` names, if it is one that comes with this crate.
pub(crate) fn built_in(config: &EnvConfig) -> Option<Arc<dyn Environment>> {
    match config.kind.as_str() {
        "tool" => Some(Arc::new(calculator::Calculator)),
        "grid" => Some(Arc::new(grid::Grid)),
        "zoom" => Some(Arc::new(zoom::Zoom)),
        "ask" => {
            let (cost, value) = (config.question_cost as f32, config.question_value as f32);
            Some(Arc::new(ask::Ask { cost, value }))
        }
        // Others have no name of their own: `made` knows them.
        _ => None,
    }
}

/// Whether the environment that `config` names scores episodes, so that no reward has to.
pub(crate) fn scores(config: &EnvConfig) -> bool {
    match config.kind.as_str() {
        "" | ROUNDS => false,
        _ => built_in(config).is_none_or(|environment| environment.scores()),
    }
}

/// The environment that `config` names, with `options` for a program; nothing for `own` and `rounds`.
///
/// # Errors
/// `Config` for a name that is none, and a program that is not there.
pub(crate) fn made(
    config: &EnvConfig,
    options: CommandOptions,
) -> Result<Option<Arc<dyn Environment>>> {
    if let Some(environment) = built_in(config) {
        return Ok(Some(environment));
    }
    let kind = config.kind.as_str();
    if let Some(line) = kind.strip_prefix(COMMAND) {
        let wrong =
            |e: shell_words::ParseError| Error::config("env.kind", format!("`{kind}`: {e}"));
        let argv = shell_words::split(line).map_err(wrong)?;
        return Ok(Some(Arc::new(command::CommandEnvironment::new(argv, options)?)));
    }
    match kind {
        "own" | ROUNDS => Ok(None),
        other => {
            let known = KINDS.join(", ");
            let meant = did_you_mean(other, KINDS);
            Err(Error::config("env.kind", format!("`{other}` is not one of {known}{meant}")))
        }
    }
}

/// The whole number in a row's field `name`.
fn number(
    fields: &serde_json::Map<String, serde_json::Value>,
    name: &str,
    range: std::ops::Range<i64>,
) -> std::result::Result<i64, String> {
    let value = fields.get(name).unwrap_or(&serde_json::Value::Null);
    value.as_i64().filter(|n| range.contains(n)).ok_or_else(|| {
        let (first, last) = (range.start, range.end - 1);
        format!("row field `{name}` is {value}, expected a whole number from {first} to {last}")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::toy::{ToyOptions, toy};

    /// What is said in the demonstrations of toys is what their environments say to the answers there.
    #[test]
    fn toys_show_what_environments_say() {
        for (name, kind) in [("calc", "tool"), ("grid", "grid"), ("ask", "ask"), ("zoom", "zoom")] {
            let config = EnvConfig { kind: kind.into(), ..EnvConfig::default() };
            let environment = built_in(&config).unwrap();
            let (mut said, mut ended) = (0, 0);
            for row in toy(name).unwrap().rows(ToyOptions::default()).unwrap().take(100) {
                environment.check_row(&row).unwrap();
                let messages = row["completion"].as_array().unwrap().clone();
                let prompt = Prompt { fields: Arc::new(row), ..Prompt::plain("") };
                let mut answers = Vec::new();
                for pair in messages.chunks(2) {
                    assert_eq!(pair[0]["role"], "assistant");
                    answers.push(pair[0]["content"].as_str().unwrap().to_string());
                    let start = Start { prompt: &prompt, seed: 0 };
                    let turn = Turn { episode: 0, start, answers: &answers, finished: true };
                    let reply = environment.step(&[turn]).remove(0).unwrap();
                    let Some(next) = pair.get(1) else {
                        // A demonstration may stop before its world does.
                        ended += reply.says.is_none() as u32;
                        continue;
                    };
                    assert_eq!(next["role"], "user");
                    assert_eq!(
                        reply.says.map(Value::from),
                        Some(next["content"].clone()),
                        "{name}"
                    );
                    said += 1;
                }
            }
            assert!(said > 20 && ended > 0, "{name}: {said}, {ended}");
        }
    }
}
