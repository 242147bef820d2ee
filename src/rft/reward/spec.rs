//! Rewards by name, as settings and the command line give them.
//!
//! A reward is a list of parts, and its score is their sum, or what else [`SpecOptions::combine`]
//! makes of them. A part is `[weight*]name[:argument]`:
//!
//! ```toml
//! reward = ["numeric", "0.2*format:^<think>.+</think>", "-0.1*cmd:python3 toxic.py --fast"]
//! ```
//!
//! A weight that moves is two numbers, its first and its last: `0.2..1*format` weighs 0.2 in the first
//! step of a phase and 1 in its last one, in a straight line between them. Evaluations take the last.
//!
//! Parts are separate texts, because an argument may hold any character: after the first colon
//! everything belongs to it. A weight is a number before a `*` at the very start; no name begins
//! like a number. Spaces around the three are dropped. A sample on which a part abstains or fails is
//! one on which the whole does. The values of the parts, without their weights, are the parts of the
//! outcome, under the parts' names; the second part of a name is called `NAME-2`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::combine::{Combined, Term};
use super::command::CommandOptions;
use super::http::HttpOptions;
use super::kinds::{KINDS, ParsedReward, RewardKind};
use super::url::redacted;
use super::weight::Weight;
use crate::near::did_you_mean;
use gradus::error::{Error, Result};

pub use super::combine::{Clamp, Combine};

/// Settings of rewards that are outside the process, and how parts become a score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecOptions {
    /// Of `cmd:` parts.
    pub command: CommandOptions,
    /// Of `http://` and `https://` parts.
    pub http: HttpOptions,
    /// Wall time of a sample of `code` parts, all its tests together; `None` is the
    /// verifier's own.
    pub code_time: Option<Duration>,
    /// How the parts make the score.
    pub combine: Combine,
    /// Bounds of each part, before its weight.
    pub clamp_parts: Option<Clamp>,
    /// Bounds of the score.
    pub clamp: Option<Clamp>,
}

/// The reward that one part names.
///
/// # Errors
/// `Config` with what is wrong and what is allowed.
pub fn parse(spec: &str) -> ParsedReward {
    parse_all(&[spec], &SpecOptions::default())
}

/// The rewards that `specs` name as one: their sum, unless the options say otherwise.
///
/// # Errors
/// `Config` if there is none, or for the first that is wrong; for a way to combine them that does not
/// go with their number or their weights.
pub fn parse_all<S: AsRef<str>>(specs: &[S], options: &SpecOptions) -> ParsedReward {
    let mut terms: Vec<Term> = Vec::new();
    for spec in specs {
        let mut term = term(spec.as_ref(), options)?;
        term.name = unused(&terms, term.name);
        terms.push(term);
    }
    if terms.is_empty() {
        return Err(Error::config("reward", "no part, expected at least one"));
    }
    let SpecOptions { combine, clamp_parts, clamp, .. } = *options;
    combinable(&terms, combine)?;
    let bare = clamp.is_none() && clamp_parts.is_none();
    if let [Term { weight, reward, .. }] = terms.as_slice()
        && bare
        && *weight == Weight::fixed(1.0)
    {
        return Ok(reward.clone());
    }
    Ok(Arc::new(Combined { terms, combine, clamp_parts, clamp }))
}

/// `name`, or with a number behind it what no part is called yet.
fn unused(terms: &[Term], name: String) -> String {
    let taken = |name: &String| terms.iter().any(|term| term.name == *name);
    let numbered = (2..).map(|i| format!("{name}-{i}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(name)
}

/// Refuses a way to combine parts that means nothing for these.
fn combinable(terms: &[Term], combine: Combine) -> Result<()> {
    let wrong = |reason: String| Err(Error::config("reward.combine", reason));
    if combine != Combine::Sum && terms.len() < 2 {
        return wrong("one part has nothing to be combined with, expected at least two".into());
    }
    let least = |term: &Term| term.weight.first.min(term.weight.last);
    match terms.iter().find(|term| combine == Combine::Harmonic && least(term) <= 0.0) {
        Some(term) => wrong(format!(
            "`{}` has weight {}, and a harmonic mean has weights above 0",
            term.name,
            least(term)
        )),
        None => Ok(()),
    }
}

/// `spec` as it may be written down: an address without its secrets. A command stands as it is.
pub fn without_secrets(spec: &str) -> String {
    let part = spec.split_once('*').map_or(spec, |(weight, part)| match weight.contains(':') {
        true => spec,
        false => part,
    });
    match part.trim().split_once(':') {
        Some(("cmd" | "code" | "format" | "signed-format", _)) => spec.into(),
        _ => redacted(spec),
    }
}

/// The row's field that the part `spec` compares with; `None` for parts that name their own.
pub fn gold_field(spec: &str) -> Option<&'static str> {
    let part = weighted(spec.trim()).ok()?.1;
    let name = part.split_once(':').map_or(part, |(name, _)| name.trim());
    KINDS.iter().find(|kind| kind.name == name)?.gold
}

/// The first of `specs` that pays for a wrong answer which can be read.
pub(crate) fn partial<S: AsRef<str>>(specs: &[S]) -> Option<&str> {
    let pays = |spec: &&str| {
        let part = weighted(spec.trim()).map_or("", |(_, part)| part);
        let (name, argument) = part.split_once(':').unwrap_or((part, ""));
        let mut words = argument.split(',').map(str::trim);
        let above_0 = |word: &str| word.parse().is_ok_and(|share: f64| share > 0.0);
        match name.trim() {
            "numeric" => words.nth(1).is_some_and(above_0),
            "countdown" => words.any(above_0),
            _ => false,
        }
    };
    specs.iter().map(AsRef::as_ref).find(pays)
}

/// Whether one of `specs` runs a program or asks a service.
pub(crate) fn is_outside<S: AsRef<str>>(specs: &[S]) -> bool {
    let name = |spec: &S| {
        let part = weighted(spec.as_ref().trim()).map_or("", |(_, part)| part);
        part.split(':').next().unwrap_or_default().trim().to_string()
    };
    specs.iter().any(|spec| ["cmd", "code", "http", "https"].contains(&name(spec).as_str()))
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
        let meant = did_you_mean(name, KINDS.iter().map(|kind| kind.name));
        Error::config("reward", format!("`{}` is not one of {known}{meant}", redacted(part)))
    })?;
    let reward = (kind.make)(argument.filter(|a| !a.is_empty()), part, options)?;
    Ok(Term { name: kind.name.into(), weight, reward })
}

/// A part without its weight, which is 1 where there is none.
fn weighted(spec: &str) -> Result<(Weight, &str)> {
    let digit = |c: char| c.is_ascii_digit() || "+-.".contains(c);
    if !spec.starts_with(digit) {
        return Ok((Weight::fixed(1.0), spec));
    }
    let wrong = || {
        let spec = redacted(spec);
        let expected = "a weight as in `0.2*exact`, or two as in `0.2..1*exact`";
        Error::config("reward", format!("`{spec}`, expected {expected}"))
    };
    let (weight, part) = spec.split_once('*').ok_or_else(wrong)?;
    Ok((Weight::of(weight).ok_or_else(wrong)?, part.trim()))
}
