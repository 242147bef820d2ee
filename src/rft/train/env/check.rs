//! `gradus env check`: an environment is tried on rows before a policy is.
//!
//! Some rows are played, with what their demonstrations say and then with random text. They are played
//! together, and again each alone: what is said has to be the same. A transcript shows what happened, and
//! whatever breaks the rules is named.

use std::fmt::Write;
use std::sync::Arc;

use super::episode::guarded;
use super::{Environment, ROUNDS, Reply, Start, Turn, made};
use serde_json::Map;

use crate::data::{Dataset, Example, PromptFormat};
use crate::text::ChatTemplate;
use crate::train::config::RunConfig;
use crate::train::inputs::command_options;
use crate::train::task::Prompt;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// What a check of an environment found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What was said, for people.
    pub transcript: String,
    /// What the environment does wrong, a line each.
    pub faults: Vec<String>,
}

/// The words of messages, for rows whose tools a chat template would write.
const PLAIN: &str = "{% for m in messages %}{% if not loop.first %}\n{% endif %}{{ m.content }}\
                     {% endfor %}{# tools documents #}";

/// A row to play, with what is said in it.
struct Script {
    row: usize,
    prompt: Prompt,
    seed: u64,
    answers: Vec<String>,
}

type Answered = std::result::Result<Reply, String>;

/// What happened in an episode.
struct Heard {
    begun: std::result::Result<(), String>,
    replies: Vec<Answered>,
}

/// Plays the first `rows` rows of `config.data.path` with the environment that `config.env` names, for at most
/// `config.env.max_turns` turns; `config.seed` draws seeds and texts.
///
/// # Errors
/// `Config` for an environment that is none or cannot be tried, `Io` and `Format` for the data. What the
/// environment does wrong is no error.
pub fn check(config: &RunConfig, rows: usize) -> Result<Checked> {
    let Some(environment) = made(&config.env, command_options(config))? else {
        let kind = &config.env.kind;
        let reason = match kind == ROUNDS {
            true => "`rounds` says nothing that could be checked".to_string(),
            false => format!("`{kind}` is given in Rust and cannot be checked from here"),
        };
        return Err(Error::config("env.kind", reason));
    };
    let environment = environment.as_ref();
    let data = Dataset::load(config.data.path.as_ref())?;
    let mut faults = Vec::new();
    let mut scripts = Vec::new();
    // Tools and documents are for a model's template; here they are only passed on.
    let passes_on = data.columns().iter().any(|column| ["tools", "documents"].contains(column));
    let template =
        passes_on.then(|| ChatTemplate::new("env check", PLAIN, Map::new())).transpose()?;
    let examples = data.examples(&PromptFormat::default(), template.as_ref())?;
    for (row, example) in examples.into_iter().enumerate().take(rows) {
        match environment.check_row(&example.fields) {
            Ok(()) => scripts.push(Script::new(config, row, example)),
            Err(reason) => faults.push(format!("row {row}: {reason}")),
        }
    }
    let together = play(environment, &scripts.iter().collect::<Vec<_>>());
    let mut transcript = String::new();
    for (script, heard) in scripts.iter().zip(&together) {
        script.tell(heard, &mut transcript, &mut faults);
    }
    for (script, heard) in scripts.iter().zip(&together) {
        let alone = play(environment, &[script]);
        if !alone.first().is_some_and(|alone| same(alone, heard)) {
            let row = script.row;
            faults.push(format!(
                "row {row}: played alone it is told something else than beside others, with the same seed and \
                 answers; a step that is done again would not be the same"
            ));
        }
    }
    Ok(Checked { transcript, faults })
}

/// Whether the same was said; rewards that are no numbers are the same, too.
fn same(a: &Heard, b: &Heard) -> bool {
    let equal = |(a, b): (&Answered, &Answered)| match (a, b) {
        (Ok(a), Ok(b)) => a.says == b.says && a.reward.to_bits() == b.reward.to_bits(),
        (Err(a), Err(b)) => a == b,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    };
    a.begun == b.begun
        && a.replies.len() == b.replies.len()
        && a.replies.iter().zip(&b.replies).all(equal)
}

/// Plays `scripts` together, each until the environment ends it, fails, or the script has no more to say.
fn play(environment: &dyn Environment, scripts: &[&Script]) -> Vec<Heard> {
    let starts: Vec<Start<'_>> =
        scripts.iter().map(|script| Start { prompt: &script.prompt, seed: script.seed }).collect();
    let begun = guarded(starts.len(), || environment.begin(&starts));
    let mut all: Vec<Heard> =
        begun.into_iter().map(|begun| Heard { begun, replies: Vec::new() }).collect();
    let longest = scripts.iter().map(|script| script.answers.len()).max().unwrap_or(0);
    for said in 1..=longest {
        let goes_on = |heard: &Heard| match heard.replies.last() {
            None => heard.begun.is_ok(),
            Some(reply) => reply.as_ref().is_ok_and(|reply| reply.says.is_some()),
        };
        let live: Vec<usize> = (0..all.len())
            .filter(|&i| said <= scripts[i].answers.len() && goes_on(&all[i]))
            .collect();
        if live.is_empty() {
            break;
        }
        let turn = |&episode: &usize| Turn {
            episode,
            start: starts[episode],
            answers: &scripts[episode].answers[..said],
            // The last one is cut off.
            finished: said < scripts[episode].answers.len(),
        };
        let turns: Vec<Turn<'_>> = live.iter().map(turn).collect();
        let replies = guarded(turns.len(), || environment.step(&turns));
        live.into_iter().zip(replies).for_each(|(i, reply)| all[i].replies.push(reply));
    }
    all
}

/// Characters of random answers, some of which JSON has to escape.
const CHARACTERS: [char; 16] =
    ['0', '1', '7', 'a', 'e', 'u', ' ', '<', '>', '{', '}', '"', '\\', '\n', 'é', '漢'];

impl Script {
    fn new(config: &RunConfig, row: usize, example: Example) -> Script {
        let Example { prompt: text, demo, then, fields, .. } = example;
        let shown = demo.into_iter().chain(then.into_iter().map(|exchange| exchange.answer));
        let mut rng = Rng::new(config.seed, Purpose::User, [row as u32, 0, 0]);
        let seed = (rng.next_u32() as u64) << 32 | rng.next_u32() as u64;
        let mut answers: Vec<String> = shown.take(config.env.max_turns).collect();
        while answers.len() < config.env.max_turns {
            let length = rng.below(12);
            let character = |_: usize| CHARACTERS[rng.below(CHARACTERS.len())];
            answers.push((0..length).map(character).collect());
        }
        let prompt = Prompt { fields: Arc::new(fields), ..Prompt::plain(text) };
        Script { row, prompt, seed, answers }
    }

    /// Writes down what happened, and what is wrong with it.
    fn tell(&self, heard: &Heard, transcript: &mut String, faults: &mut Vec<String>) {
        let mut line = |text: String| {
            let _ = writeln!(transcript, "{text}");
        };
        line(format!("row {}, seed {}", self.row, self.seed));
        line(format!("  prompt  {:?}", self.prompt.text));
        if let Err(reason) = &heard.begun {
            faults.push(format!("row {}: it could not begin: {reason}", self.row));
        }
        for (turn, (answer, reply)) in self.answers.iter().zip(&heard.replies).enumerate() {
            line(format!("  answer  {answer:?}"));
            let at = format!("row {}, turn {}", self.row, turn + 1);
            match reply {
                Ok(Reply { says, reward }) => {
                    let said = says.as_ref().map_or("(over)".into(), |says| format!("{says:?}"));
                    line(format!("  says    {said}   reward {reward}"));
                    if !reward.is_finite() {
                        faults.push(format!("{at}: the reward is {reward}, expected a number"));
                    }
                }
                Err(reason) => {
                    line(format!("  fails   {reason}"));
                    faults.push(format!("{at}: {reason}"));
                }
            }
        }
    }
}
