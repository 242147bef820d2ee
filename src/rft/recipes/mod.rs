//! Recipes: published methods by name. A recipe is data, a file of settings in this folder. It is laid over
//! the defaults and under a user's own settings; no code knows a method.
//!
//! To add one, write a file and add its name to the list below. `CONTRIBUTING.md` says what belongs in it.

use serde::Deserialize;

use crate::near::did_you_mean;
use crate::toy::toy;
use gradus::error::{Error, Result};

/// A published method as settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipeFile {
    /// What `recipe` and `--recipe` call it.
    pub name: &'static str,
    /// The file: the table `[about]`, then keys of a configuration.
    pub text: &'static str,
}

/// What a recipe says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Number of the method in the project's list of published systems, if it is in it.
    pub row: Option<u32>,
    /// Authors, year, title, where it is found.
    pub paper: String,
    /// What the paper says that it does.
    pub claim: String,
    /// What a user has to bring.
    pub needs: String,
    /// What is done otherwise than in the paper, or not at all.
    pub differs: String,
    /// The task on which it can be tried without a download: a built-in one, or a name of `gradus toy`.
    pub toy: String,
    /// Settings with which a fresh model tries it on that toy in less than a minute.
    #[serde(rename = "try")]
    pub settings: Vec<String>,
    /// Settings of a run before that one, which makes its teacher.
    #[serde(default)]
    pub teacher: Vec<String>,
}

macro_rules! recipes {
    ($($name:literal,)*) => {
        /// All recipes, by name.
        pub const ALL: &[RecipeFile] =
            &[$(RecipeFile { name: $name, text: include_str!(concat!($name, ".toml")) },)*];
    };
}

recipes! {
    "ace",
    "alignprop",
    "alol_free",
    "ask",
    "ats",
    "bigcharts",
    "cfg_distil",
    "copg",
    "curr_reft",
    "curve",
    "dpo",
    "fare",
    "finetunebench",
    "forgetting",
    "ftpedel",
    "g1",
    "gkd",
    "groups",
    "grpo",
    "kto",
    "leti",
    "love",
    "mine",
    "motif",
    "msrl",
    "musicrl",
    "prdp",
    "prefix_rft",
    "proactive",
    "qlora",
    "raft",
    "rationale",
    "reft",
    "relift",
    "remix",
    "rewrite",
    "rif_rft",
    "rocket3",
    "sami",
    "self_sampled",
    "sft_mix",
    "skywork",
    "subnet",
    "texforce",
    "toolrl",
    "ui_venus",
    "visual_rft",
    "vla_rl",
    "wsrl",
}

/// The recipe `name`.
///
/// # Errors
/// `Config` for a name that no recipe has.
pub fn find(name: &str) -> Result<RecipeFile> {
    ALL.iter().find(|recipe| recipe.name == name).copied().ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|recipe| recipe.name).collect();
        let meant = did_you_mean(name, known.iter().copied());
        Error::config("recipe", format!("`{name}` is not one of {}{meant}", known.join(", ")))
    })
}

impl RecipeFile {
    /// What it says of itself.
    ///
    /// # Errors
    /// `Format` for a file whose table `[about]` cannot be read.
    pub fn about(&self) -> Result<About> {
        let about = self.table()?.remove("about");
        let about = about.ok_or_else(|| self.wrong("there is no table [about]".into()))?;
        about.try_into().map_err(|e: toml::de::Error| self.wrong(e.message().into()))
    }

    /// Its keys.
    ///
    /// # Errors
    /// `Format` for a file that is no TOML.
    pub fn settings(&self) -> Result<toml::Table> {
        let mut table = self.table()?;
        table.remove("about");
        Ok(table)
    }

    /// The command lines that try it: those of `[about]`, as a shell takes them.
    ///
    /// # Errors
    /// `Format` for a file that cannot be read; `Config` for a toy that does not exist.
    pub fn commands(&self) -> Result<Vec<String>> {
        let About { toy: name, settings, teacher, .. } = self.about()?;
        let (mut commands, mut data) = (Vec::new(), Vec::new());
        if name != BUILT_IN {
            let file = format!("{name}.jsonl");
            commands.push(format!("gradus toy {name} > {file}"));
            data = vec!["--data".to_string(), file];
            let rewards = toy(&name)?.rewards.iter().flat_map(|reward| ["--reward", reward]);
            data.extend(rewards.map(String::from));
        }
        let mut train = |first: &[&str], sets: &[String]| {
            let first = ["gradus", "train"].iter().chain(first).map(|word| word.to_string());
            let sets = sets.iter().flat_map(|set| ["--set".to_string(), set.clone()]);
            let words = first.chain(data.iter().cloned()).chain(sets);
            commands.push(words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" "));
        };
        if !teacher.is_empty() {
            train(&["--out", "teacher"], &teacher);
        }
        train(&["--recipe", self.name], &settings);
        Ok(commands)
    }

    fn table(&self) -> Result<toml::Table> {
        self.text.parse().map_err(|e: toml::de::Error| self.wrong(e.to_string()))
    }

    fn wrong(&self, reason: String) -> Error {
        Error::format(format!("{}.toml", self.name), reason)
    }
}

/// The task that needs no file.
const BUILT_IN: &str = "countdown";

/// `word` as a shell takes it for one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:+%".contains(c);
    match word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// All recipes as a person reads them.
///
/// # Errors
/// `Format` for a file that cannot be read.
pub fn list() -> Result<String> {
    let mut text = String::new();
    for recipe in ALL {
        let About { row, paper, claim, needs, differs, .. } = recipe.about()?;
        let row = row.map_or(String::new(), |row| format!(" (system {row} of 45)"));
        text += &format!("{}{row}\n", recipe.name);
        for (what, says) in [
            ("paper", paper),
            ("claim", claim),
            ("needs", needs),
            ("differs", differs),
            ("try", recipe.commands()?.join("\n             ")),
        ] {
            text += &format!("    {what:<8} {says}\n");
        }
    }
    Ok(text)
}
