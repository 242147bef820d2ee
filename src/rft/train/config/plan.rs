//! The phases of a run: the list with its repetitions, and the settings of each phase.
//!
//! A phase is named by its kind, or by a table `[phase.NAME]` with a `kind`. The table holds keys of the
//! kind's own section, and sections with what else the phase has of its own.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::near::did_you_mean;
use crate::recipes;
use crate::train::config::section::{Choice, Key, Setting};
use crate::train::config::set::unknown_key;
use crate::train::config::{RunConfig, check, keys};
use crate::train::phase::Phase;
use gradus::error::{Error, Result};

/// Most phases that a list with its repetitions may come to.
const MOST_PHASES: usize = 10_000;

/// An entry of `phases`: a name, or a repetition such as `5*(collect,tune)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PhaseEntry(pub String);

impl Setting for PhaseEntry {
    const CHOICES: &'static [Choice] = Phase::CHOICES;
    const OPEN: bool = true;
}

/// A list of phases without settings of their own.
pub(crate) fn entries(kinds: &[Phase]) -> Vec<PhaseEntry> {
    kinds.iter().map(|kind| PhaseEntry(kind.name().into())).collect()
}

/// A phase of a run with all that it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct PhasePlan {
    /// Its name in `phases`, which metrics have.
    pub name: String,
    /// What it does.
    pub kind: Phase,
    /// Its place in the run, from 0.
    pub number: usize,
    /// The run's settings with those of the phase laid over them.
    pub config: RunConfig,
    /// What earlier phases of its kind draw: it goes on behind them.
    pub before: Drawn,
}

/// How far the streams of random draws have been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Steps, each with samples of its own.
    pub steps: u64,
    /// Prompts.
    pub prompts: u64,
    /// Passes over the demonstrations.
    pub epochs: u64,
}

impl RunConfig {
    /// The phases that the run goes through, in order, each with its settings.
    ///
    /// # Errors
    /// `Config` for a list that cannot be read, for a name that is neither a kind nor a table, and for a
    /// table with a key that the phase does not read.
    pub fn plan(&self) -> Result<Vec<PhasePlan>> {
        let names = self.phase_names()?;
        let of_recipe = match self.recipe.as_str() {
            "" => toml::Table::new(),
            name => recipes::find(name)?.settings()?,
        };
        // Who takes a phase out of a recipe's list need not take its table away.
        let of_recipe = |name: &str| of_recipe.get("phase").is_some_and(|t| t.get(name).is_some());
        let mut plans: Vec<PhasePlan> = Vec::with_capacity(names.len());
        let mut drawn = vec![Drawn::default(); Phase::ALL.len()];
        for (number, name) in names.into_iter().enumerate() {
            let (kind, config) = match plans.iter().find(|plan| plan.name == name) {
                Some(known) => (known.kind, known.config.clone()),
                None => self.phase_named(&name)?,
            };
            let sum = &mut drawn[kind as usize];
            let before = *sum;
            let more = kind.draws(&config);
            *sum = Drawn {
                steps: before.steps + more.steps,
                prompts: before.prompts + more.prompts,
                epochs: before.epochs + more.epochs,
            };
            plans.push(PhasePlan { name, kind, number, config, before });
        }
        let mut called: Vec<String> = plans.iter().map(|plan| plan.name.clone()).collect();
        for plan in plans.iter().filter(|plan| plan.kind == Phase::Rl) {
            called.extend(plan.config.rl.then()?.map(|then| then.phase));
        }
        let unused = |name: &&String| !called.contains(name) && !of_recipe(name);
        if let Some(name) = self.phase.keys().find(unused) {
            let reason = "is not in `phases` or `rl.then`, so that it would have no effect";
            return Err(Error::config(format!("phase.{name}"), reason));
        }
        Ok(plans)
    }

    /// Kind and settings of the phase `name`: the run's, with those of its table in their place.
    ///
    /// # Errors
    /// `Config` for a name that is neither a kind nor a table, and for a table with a key that the phase
    /// does not read.
    pub fn phase_named(&self, name: &str) -> Result<(Phase, RunConfig)> {
        let kind = self.kind_of(name)?;
        let Some(table) = self.phase.get(name) else { return Ok((kind, self.clone())) };
        let mut config = self.clone();
        for (path, value) in flat(table) {
            let own = format!("phase.{name}.{}", path.join("."));
            let key = known_key(kind, &path).map_err(|reason| Error::config(&own, reason))?;
            let Some(key) = key else { continue };
            config = config.with(&key, value, &own)?;
        }
        Ok((kind, config))
    }

    /// What the phase `name` does.
    fn kind_of(&self, name: &str) -> Result<Phase> {
        let of_name = name.parse::<Phase>().ok();
        let key = format!("phase.{name}.kind");
        let Some(table) = self.phase.get(name) else {
            return of_name.ok_or_else(|| {
                let tables = self.phase.keys().map(String::as_str);
                let known: Vec<&str> = Phase::ALL.iter().map(|k| k.name()).chain(tables).collect();
                let reason = format!(
                    "`{name}` is neither a kind nor a table [phase.{name}]; known are {}{}",
                    known.join(", "),
                    did_you_mean(name, known.iter().copied())
                );
                Error::config("phases", reason)
            });
        };
        let given = match table.get("kind") {
            None => None,
            Some(toml::Value::String(text)) => {
                Some(text.parse::<Phase>().map_err(|reason| Error::config(&key, reason))?)
            }
            Some(other) => return Err(Error::config(&key, format!("{other} is not a text"))),
        };
        match (of_name, given) {
            (Some(own), Some(other)) if own != other => {
                let reason = format!(
                    "`{}`, but `{name}` is a kind itself; give the table another name",
                    other.name()
                );
                Err(Error::config(&key, reason))
            }
            (Some(kind), _) | (None, Some(kind)) => Ok(kind),
            (None, None) => {
                let kinds: Vec<&str> = Phase::ALL.iter().map(|kind| kind.name()).collect();
                let reason = format!("missing: say what the phase does, {}", kinds.join(", "));
                Err(Error::config(&key, reason))
            }
        }
    }

    /// The configuration with another value of `key`, which errors call `name`.
    fn with(&self, key: &str, value: &toml::Value, name: &str) -> Result<RunConfig> {
        let mut table = self.to_table();
        let (section, field) = key.split_once('.').unwrap_or(("", key));
        if let Some(section) = table.get_mut(section).and_then(toml::Value::as_table_mut) {
            section.insert(field.into(), value.clone());
        }
        check::choices(&table).map_err(|error| match error {
            Error::Config { key: wrong, reason } if wrong == key => Error::config(name, reason),
            other => other,
        })?;
        table.try_into().map_err(|e: toml::de::Error| Error::config(name, e.message()))
    }

    /// The names of all phases, with repetitions written out.
    fn phase_names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for PhaseEntry(entry) in &self.phases {
            let wrong = |reason: String| Error::config("phases", format!("`{entry}`: {reason}"));
            let mut reader = Entry { text: entry.trim() };
            let found = reader.item().map_err(wrong)?;
            if !reader.text.is_empty() {
                return Err(wrong(format!("`{}` is left over", reader.text)));
            }
            names.extend(found);
            if names.len() > MOST_PHASES {
                return Err(wrong(format!("more than {MOST_PHASES} phases")));
            }
        }
        Ok(names)
    }

    /// An error about the settings of the phase `name`, under the key that its table has for it.
    pub(crate) fn in_phase(&self, name: &str, error: Error) -> Error {
        let Error::Config { key, reason } = error else { return error };
        let kind = self.kind_of(name).ok();
        let paths = self.phase.get(name).map(flat).unwrap_or_default();
        let own = paths.into_iter().find(|(path, _)| {
            kind.and_then(|kind| known_key(kind, path).ok()?).is_some_and(|own| own == key)
        });
        match own {
            Some((path, _)) => Error::config(format!("phase.{name}.{}", path.join(".")), reason),
            None => Error::config(&key, format!("{reason} (in the phase `{name}`)")),
        }
    }

    /// The key of the run that `key` of a phase's table stands for: `rl.group` for `phase.mix.group` if
    /// `mix` is of kind `rl`; none for what is no such key.
    pub(super) fn stands_for(&self, key: &str) -> Option<String> {
        let mut parts = key.strip_prefix("phase.")?.split('.');
        let name = parts.next()?;
        let path: Vec<&str> = parts.collect();
        known_key(self.kind_of(name).ok()?, &path).ok()?
    }

    /// The keys with which phases have a value of their own for `key`.
    pub(crate) fn in_phases(&self, key: &str) -> Vec<String> {
        let of_tables = self.phase.iter().flat_map(|(name, table)| {
            let paths = flat(table).into_iter().map(|(path, _)| path.join("."));
            paths.map(move |path| format!("phase.{name}.{path}"))
        });
        of_tables.filter(|own| self.stands_for(own).is_some_and(|stands| stands == key)).collect()
    }

    /// The key that `--set phase.NAME.…` names, and what it stands for; nothing for the `kind`.
    pub(super) fn key_in_phase(&self, name: &str, path: &[&str]) -> Result<Option<String>> {
        if path == ["kind"] {
            return Ok(None);
        }
        let own = format!("phase.{name}.{}", path.join("."));
        let kind = self.kind_of(name).map_err(|error| match error {
            Error::Config { key, .. } if key == "phases" => {
                Error::config(&own, format!("set phase.{name}.kind first"))
            }
            other => other,
        })?;
        known_key(kind, path).map_err(|reason| Error::config(&own, reason))
    }
}

/// The values of a phase's table, those of its sections behind their names.
fn flat(table: &toml::Table) -> Vec<(Vec<&str>, &toml::Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) => {
                found.extend(section.iter().map(|(inner, v)| (vec![key.as_str(), inner], v)));
            }
            value => found.push((vec![key.as_str()], value)),
        }
    }
    found
}

/// The key of the run that `path` in the table of a phase of `kind` stands for; nothing for `kind`
/// itself. Otherwise why it may not stand there.
fn known_key(kind: Phase, path: &[&str]) -> std::result::Result<Option<String>, String> {
    let (section, steps) = (kind.section(), kind.steps_key());
    let key = match *path {
        ["kind"] => return Ok(None),
        ["steps"] if !steps.is_empty() => steps.into(),
        [key] => format!("{section}.{key}"),
        _ => path.join("."),
    };
    let all = keys();
    match all.iter().find(|known| known.name == key) {
        None => Err(unknown_in_table(kind, path, &all)),
        Some(known) if known.may_be_of(kind) => Ok(Some(key)),
        Some(_) => Err(format!("a phase of kind `{}` has no `{key}` of its own", kind.name())),
    }
}

/// That `path` is no key of the table of a phase, and which of `all` keys are.
fn unknown_in_table(kind: Phase, path: &[&str], all: &[Key]) -> String {
    let read = || all.iter().filter(|key| key.may_be_of(kind)).map(|key| key.name.as_str());
    let of_section = |section: &str| -> Vec<String> {
        let short = |key: &str| key.strip_prefix(&format!("{section}.")).map(String::from);
        read().filter_map(short).collect()
    };
    if let [section, key] = *path {
        let known = of_section(section);
        if !known.is_empty() {
            return unknown_key(key, &known);
        }
    }
    let mut known = of_section(kind.section());
    if !kind.steps_key().is_empty() && !known.iter().any(|key| key == "steps") {
        known.push("steps".into());
    }
    let sections: BTreeSet<&str> = read().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    known.extend(sections.into_iter().map(String::from));
    known.push("kind".into());
    unknown_key(&path.join("."), &known)
}

/// What is left to read of an entry of `phases`.
struct Entry<'a> {
    text: &'a str,
}

impl<'a> Entry<'a> {
    /// A name, a list in parentheses, or either of them behind `N*`.
    fn item(&mut self) -> std::result::Result<Vec<String>, String> {
        let word = self.word();
        if word.is_empty() {
            return self.list();
        }
        if !self.skip('*') {
            let first = word.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            return match first {
                true => Ok(vec![word.into()]),
                false => Err(format!("`{word}` is not the name of a phase")),
            };
        }
        let times: usize = word
            .parse()
            .ok()
            .filter(|n| (1..=MOST_PHASES).contains(n))
            .ok_or_else(|| format!("`{word}` is not a number from 1 to {MOST_PHASES}"))?;
        let once = self.item()?;
        if once.len().saturating_mul(times) > MOST_PHASES {
            return Err(format!("more than {MOST_PHASES} phases"));
        }
        Ok(std::iter::repeat_n(once, times).flatten().collect())
    }

    fn list(&mut self) -> std::result::Result<Vec<String>, String> {
        if !self.skip('(') {
            let expected = "a name, N*NAME or N*(NAME,NAME) is expected";
            return Err(match self.text.chars().next() {
                None => expected.into(),
                Some(c) => format!("{expected}, got `{c}`"),
            });
        }
        let mut names = self.item()?;
        while self.skip(',') {
            names.extend(self.item()?);
        }
        match self.skip(')') {
            true => Ok(names),
            false => Err("a `)` is missing".into()),
        }
    }

    /// Letters, digits, `_` and `-` from here on.
    fn word(&mut self) -> &'a str {
        let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        let end = self.text.find(|c| !part(c)).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest.trim_start();
        word
    }

    fn skip(&mut self, c: char) -> bool {
        let rest = self.text.strip_prefix(c).map(str::trim_start);
        rest.map(|rest| self.text = rest).is_some()
    }
}
