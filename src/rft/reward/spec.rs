//! Rewards by name, as settings and the command line give them.
//!
//! A reward is a list of parts, and its score is their sum. A part is `[weight*]name[:argument]`:
//!
//! ```toml
//! reward = ["numeric", "0.2*format:^<think>.+</think>", "-0.1*cmd:python3 toxic.py --fast"]
//! ```
//!
//! Parts are separate texts, because an argument may hold any character: after the first colon
//! everything belongs to it. A weight is a number before a `*` at the very start; no name begins
//! like a number. Spaces around the three are dropped. A sample on which a part abstains or fails is one on which the sum does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::command::{CommandOptions, CommandReward};
use super::http::{HttpOptions, HttpReward};
use super::url::redacted;
use super::verify::{Code, Countdown, Exact, Format, Iou, Json, Numeric, ToolCall};
use super::{Outcome, Reward, RewardInput, RewardOutcome};
use gradus::error::{Error, Result};

/// Settings of rewards that are outside the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecOptions {
    /// Of `cmd:` parts.
    pub command: CommandOptions,
    /// Of `http://` and `https://` parts.
    pub http: HttpOptions,
    /// Wall time of a sample of `code` parts, all its tests together; `None` is [`Code`]'s own.
    pub code_time: Option<Duration>,
}

type ParsedReward = Result<Arc<dyn Reward>>;

/// A name, what may follow it, and what it does.
struct RewardKind {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    /// The row's field it compares with, if there is one that it cannot do without.
    gold: Option<&'static str>,
    /// Makes the reward of the argument, the whole part and the options.
    make: fn(Option<&str>, &str, &SpecOptions) -> ParsedReward,
}

const KINDS: &[RewardKind] = &[
    RewardKind {
        name: "numeric",
        usage: "numeric[:TOLERANCE]",
        help: "the answer is the row's `answer`: numbers, fractions, roots, constants, units, percent, \
               sets, tuples, intervals, compared exactly; tolerance 0.01 (absolute) or 1% (relative)",
        gold: Some("answer"),
        make: |argument, part, _| {
            Ok(Arc::new(numeric(argument).ok_or_else(|| wrong(part, "a number or a percentage"))?))
        },
    },
    RewardKind {
        name: "exact",
        usage: "exact",
        help: "the answer is the row's `answer`, case and spacing aside",
        gold: Some("answer"),
        make: |argument, part, _| plain(argument, part, Exact::default()),
    },
    RewardKind {
        name: "format",
        usage: "format[:REGEX]",
        help: "the shape <think>…</think><answer>…</answer>, without <think> where the prompt ends \
               in it; or the shape of a regular expression",
        gold: None,
        make: |argument, _, _| {
            Ok(Arc::new(argument.map_or_else(|| Ok(Format::think_answer()), Format::new)?))
        },
    },
    RewardKind {
        name: "json",
        usage: "json[:KEY,KEY…]",
        help: "JSON with these keys that satisfies the row's `schema`, if there is one",
        gold: None,
        make: |argument, _, _| Ok(Arc::new(json(argument))),
    },
    RewardKind {
        name: "tool-call",
        usage: "tool-call",
        help: "share of the row's `tool_calls` that are made, and no others; null arguments are \
               absent ones",
        gold: Some("tool_calls"),
        make: |argument, part, _| plain(argument, part, ToolCall::default()),
    },
    RewardKind {
        name: "iou",
        usage: "iou[:THRESHOLD]",
        help: "overlap with the row's `boxes` of [x1,y1,x2,y2], [x1,y1,x2,y2,score] or \
               (x1,y1),(x2,y2), or the share of boxes with so much overlap",
        gold: Some("boxes"),
        make: |argument, part, _| {
            Ok(Arc::new(iou(argument).ok_or_else(|| wrong(part, "a threshold above 0, up to 1"))?))
        },
    },
    RewardKind {
        name: "countdown",
        usage: "countdown[:all][,PARTIAL]",
        help: "an expression over the row's `numbers` makes its `target`; `all`: uses all of them; \
               partial: score of a wrong value",
        gold: Some("target"),
        make: |argument, part, _| {
            Ok(Arc::new(
                countdown(argument)
                    .ok_or_else(|| wrong(part, "`all`, a number, or `all,` and a number"))?,
            ))
        },
    },
    RewardKind {
        name: "code",
        usage: "code[:INTERPRETER]",
        help: "share of the row's `tests` that the last code block passes; python3 by default; \
               limits on time and memory, NOT a security sandbox",
        gold: Some("tests"),
        make: |argument, part, options| code(argument, part, options),
    },
    RewardKind {
        name: "cmd",
        usage: "cmd:PROGRAM ARGUMENTS",
        help: "a command that reads a JSON line per sample and writes one; no shell, but its quotes",
        gold: None,
        make: |argument, part, options| command(argument, part, options),
    },
    RewardKind {
        name: "http",
        usage: "http://HOST/PATH",
        help: "a service that samples are posted to; secrets as variables: http://$USER:$PASS@HOST/",
        gold: None,
        make: |_, part, options| Ok(Arc::new(HttpReward::new(part, options.http.clone())?)),
    },
    RewardKind {
        name: "https",
        usage: "https://HOST/PATH",
        help: "the same; needs the cargo feature `tls`",
        gold: None,
        make: |_, part, options| Ok(Arc::new(HttpReward::new(part, options.http.clone())?)),
    },
];

/// The reward that one part names.
///
/// # Errors
/// `Config` with what is wrong and what is allowed.
pub fn parse(spec: &str) -> ParsedReward {
    parse_all(&[spec], &SpecOptions::default())
}

/// The sum of the rewards that `specs` name.
///
/// # Errors
/// `Config` if there is none, or for the first that is wrong.
pub fn parse_all<S: AsRef<str>>(specs: &[S], options: &SpecOptions) -> ParsedReward {
    let mut terms = Vec::new();
    for spec in specs {
        terms.push(term(spec.as_ref(), options)?);
    }
    match terms.pop() {
        None => Err(Error::config("reward", "no part, expected at least one")),
        Some(only) if terms.is_empty() && only.weight == 1.0 => Ok(only.reward),
        Some(last) => {
            terms.push(last);
            Ok(Arc::new(Sum { terms }))
        }
    }
}

/// `spec` as it may be written down: an address without its secrets. A command stands as it is.
pub fn without_secrets(spec: &str) -> String {
    let part = spec.split_once('*').map_or(spec, |(weight, part)| match weight.contains(':') {
        true => spec,
        false => part,
    });
    match part.trim().split_once(':') {
        Some(("cmd" | "code" | "format", _)) => spec.into(),
        _ => redacted(spec),
    }
}

/// The row's field that the part `spec` compares with; `None` for parts that name their own.
pub fn gold_field(spec: &str) -> Option<&'static str> {
    let part = weighted(spec.trim()).ok()?.1;
    let name = part.split_once(':').map_or(part, |(name, _)| name.trim());
    KINDS.iter().find(|kind| kind.name == name)?.gold
}

/// What there is, one line each, for help texts.
pub fn help() -> String {
    let width = KINDS.iter().map(|kind| kind.usage.chars().count()).max().unwrap_or(0);
    let line = |kind: &RewardKind| format!("{:width$}  {}\n", kind.usage, kind.help);
    KINDS.iter().map(line).collect()
}

/// The files that the command lines of `specs` name: programs by their path, scripts, arguments.
pub(crate) fn files<S: AsRef<str>>(specs: &[S]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for spec in specs {
        let part = weighted(spec.as_ref().trim()).map_or("", |(_, part)| part);
        let Some(("cmd" | "code", command)) = part.split_once(':') else { continue };
        let words = shell_words::split(command).unwrap_or_default();
        files.extend(words.into_iter().map(PathBuf::from).filter(|path| path.is_file()));
    }
    files
}

fn term(spec: &str, options: &SpecOptions) -> Result<Term> {
    let (weight, part) = weighted(spec.trim())?;
    let (name, argument) = match part.split_once(':') {
        Some((name, argument)) => (name.trim(), Some(argument.trim())),
        None => (part, None),
    };
    let kind = KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.usage).collect();
        let known = known.join(", ");
        Error::config("reward", format!("`{}` is not one of {known}", redacted(part)))
    })?;
    let reward = (kind.make)(argument.filter(|a| !a.is_empty()), part, options)?;
    Ok(Term { name: kind.name, weight, reward })
}

/// A part without its weight, which is 1 where there is none.
fn weighted(spec: &str) -> Result<(f32, &str)> {
    let digit = |c: char| c.is_ascii_digit() || "+-.".contains(c);
    if !spec.starts_with(digit) {
        return Ok((1.0, spec));
    }
    let wrong = || {
        let spec = redacted(spec);
        Error::config("reward", format!("`{spec}`, expected a weight as in `0.2*exact`"))
    };
    let (weight, part) = spec.split_once('*').ok_or_else(wrong)?;
    let weight: f32 = weight.trim().parse().map_err(|_| wrong())?;
    if weight.is_finite() { Ok((weight, part.trim())) } else { Err(wrong()) }
}

fn wrong(part: &str, expected: &str) -> Error {
    let part = redacted(part);
    Error::config("reward", format!("`{part}`, expected {expected} after the colon"))
}

fn plain(argument: Option<&str>, part: &str, reward: impl Reward + 'static) -> ParsedReward {
    match argument {
        None => Ok(Arc::new(reward)),
        Some(_) => Err(wrong(part, "nothing")),
    }
}

/// A number that is finite and not negative.
fn size(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0)
}

fn numeric(argument: Option<&str>) -> Option<Numeric> {
    let numeric = Numeric::default();
    Some(match argument {
        None => numeric,
        Some(text) => match text.strip_suffix('%') {
            Some(percent) => Numeric { relative: size(percent)? / 100.0, ..numeric },
            None => Numeric { absolute: size(text)?, ..numeric },
        },
    })
}

fn json(argument: Option<&str>) -> Json {
    let keys = argument.into_iter().flat_map(|keys| keys.split(','));
    let keys = keys.map(|key| key.trim().to_string()).filter(|key| !key.is_empty());
    Json { keys: keys.collect(), ..Json::default() }
}

fn iou(argument: Option<&str>) -> Option<Iou> {
    let threshold = match argument {
        None => None,
        Some(text) => Some(size(text).filter(|&t| t > 0.0 && t <= 1.0)?),
    };
    Some(Iou { threshold, ..Iou::default() })
}

fn countdown(argument: Option<&str>) -> Option<Countdown> {
    let mut countdown = Countdown::default();
    for word in argument.into_iter().flat_map(|words| words.split(',')) {
        match word.trim() {
            "all" => countdown.all = true,
            number => countdown.partial = size(number)? as f32,
        }
    }
    Some(countdown)
}

fn words(argument: &str, part: &str) -> Result<Vec<String>> {
    shell_words::split(argument)
        .map_err(|error| Error::config("reward", format!("`{}`: {error}", redacted(part))))
}

fn code(argument: Option<&str>, part: &str, options: &SpecOptions) -> ParsedReward {
    let mut code = Code::default();
    if let Some(interpreter) = argument {
        code.interpreter = words(interpreter, part)?;
    }
    code.time = options.code_time.unwrap_or(code.time);
    let program = &code.interpreter[0];
    if super::process::find_program(program).is_none() {
        let part = redacted(part);
        let reason = format!("`{part}` needs `{program}`, and there is no such program");
        return Err(Error::config("reward", reason));
    }
    Ok(Arc::new(code))
}

fn command(argument: Option<&str>, part: &str, options: &SpecOptions) -> ParsedReward {
    let argv = words(argument.unwrap_or(""), part)?;
    Ok(Arc::new(CommandReward::new(argv, options.command.clone())?))
}

struct Term {
    name: &'static str,
    weight: f32,
    reward: Arc<dyn Reward>,
}

/// A weighted sum.
struct Sum {
    terms: Vec<Term>,
}

impl Reward for Sum {
    fn score(&self, inputs: &[RewardInput<'_>]) -> Vec<Outcome> {
        let mut sums: Vec<std::result::Result<Option<f64>, String>> =
            vec![Ok(Some(0.0)); inputs.len()];
        for term in &self.terms {
            let outcomes = term.reward.score(inputs);
            if outcomes.len() != inputs.len() {
                let reason = format!("{} outcomes for {} inputs", outcomes.len(), inputs.len());
                return inputs.iter().map(|_| Err(format!("{}: {reason}", term.name))).collect();
            }
            for (sum, outcome) in sums.iter_mut().zip(outcomes) {
                term.add(sum, outcome);
            }
        }
        let outcome = |sum: Option<f64>| {
            sum.map_or(RewardOutcome::Abstain, |sum| RewardOutcome::Score(sum as f32))
        };
        sums.into_iter().map(|sum| sum.map(outcome)).collect()
    }

    fn check_row(&self, fields: &Map<String, Value>) -> std::result::Result<(), String> {
        let named = |term: &Term| {
            term.reward.check_row(fields).map_err(|reason| format!("{}: {reason}", term.name))
        };
        self.terms.iter().try_for_each(named)
    }
}

impl Term {
    /// Failing goes before abstaining, so that no failure is hidden.
    fn add(&self, sum: &mut std::result::Result<Option<f64>, String>, outcome: Outcome) {
        match (&mut *sum, outcome) {
            (Err(_), _) => {}
            (_, Err(reason)) => *sum = Err(format!("{}: {reason}", self.name)),
            (Ok(sum), Ok(RewardOutcome::Abstain)) => *sum = None,
            (Ok(sum), Ok(RewardOutcome::Score(score))) => {
                *sum = sum.map(|sum| sum + self.weight as f64 * score as f64);
            }
        }
    }
}
