//! `gradus config --explain`: every key with its value, its meaning, and who set it.

use std::collections::{BTreeMap, BTreeSet};

use crate::recipes;
use crate::train::config::section::{Key, meaning};
use crate::train::config::{RunConfig, flattened, keys};
use gradus::error::Result;

/// One line per key of `config`. Behind its meaning stands where the value is from: `[user]` for the keys
/// that `user` names, `[recipe NAME]`, or the source of a default.
///
/// # Errors
/// `Config` for a recipe that does not exist.
pub fn explain(config: &RunConfig, user: &BTreeSet<String>) -> Result<String> {
    let values = flattened(&config.without_secrets().to_table());
    let recipe = match config.recipe.as_str() {
        "" => BTreeMap::new(),
        name => flattened(&recipes::find(name)?.settings()?),
    };
    let line = |name: &str, about: &str, source: &str| {
        let value = values.get(name).map_or("?", String::as_str);
        let from = match (user.contains(name), recipe.contains_key(name)) {
            (true, _) => "user".into(),
            (false, true) => format!("recipe {}", config.recipe),
            (false, false) => source.to_string(),
        };
        format!("{:<46} # {about} [{from}]\n", format!("{name} = {value}"))
    };
    let all = keys();
    let mut text: String =
        all.iter().map(|key| line(&key.name, &in_words(key), key.source)).collect();
    for name in values.keys().filter(|name| name.starts_with("phase.")) {
        let about = match config.stands_for(name) {
            Some(key) => format!("{key} of this phase"),
            None => "what the phase does".into(),
        };
        text += &line(name, &about, "ours");
    }
    Ok(text)
}

/// What a key means, and what it may be.
fn in_words(key: &Key) -> String {
    let mut text = key.meaning.clone();
    let choice = |&(name, about): &(&str, &str)| format!("{name} ({})", meaning(&[about]));
    if !key.choices.is_empty() {
        text += &format!(": {}", key.choices.iter().map(choice).collect::<Vec<_>>().join(", "));
    }
    if let Some(range) = &key.range {
        text += &format!("; {range}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(all: &'a str, key: &str) -> &'a str {
        all.lines().find(|line| line.starts_with(key)).unwrap()
    }

    #[test]
    fn a_key_says_its_value_meaning_choices_range_and_source() {
        let all = explain(&RunConfig::default(), &BTreeSet::new()).unwrap();
        let line = |key: &str| line(&all, key);
        let seed = "seed = 0                                       # names every random draw of the run; 0..=9223372036854775807 [ours]";
        assert_eq!(line("seed "), seed);
        assert!(line("rl.group ").ends_with("# samples per prompt; 1..=4096 [TRL: 8]"));
        assert!(
            line("rl.kl ").contains("where that KL is put: auto (where the preset has it), loss")
        );
        assert!(
            line("env.carry ").starts_with(r#"env.carry = "{{ prompt }}\n{{ completion }}\n" #"#)
        );
        assert!(line("rl.beta1 ").contains("decay of AdamW's first moment"));
        assert!(line("value.lambda ").contains("# GAE's lambda;"));
        assert!(line("quantize.type ").contains("\"nf4\""));
        assert!(
            line("phases ").contains("5*(collect,tune): sft (cross-entropy on demonstrations)")
        );
        assert_eq!(all.lines().count(), 171, "{all}");
    }

    #[test]
    fn a_key_says_who_set_it() {
        let mut config = RunConfig::layered(RunConfig::default(), Some("grpo"), None).unwrap();
        let sets =
            ["phases=quantize,more", "phase.more.kind=rl", "phase.more.steps=3", "rl.group=4"];
        let key = |set: &&str| set.split('=').next().unwrap().to_string();
        sets.iter().for_each(|set| config.apply_set(set).unwrap());
        let all = explain(&config, &sets.iter().map(key).collect()).unwrap();
        let ends = |key: &str, end: &str| {
            let line = line(&all, key);
            assert!(line.ends_with(end), "{line}");
        };
        ends("rl.group = 4 ", "[user]");
        ends("rl.prompts = 16 ", "[recipe grpo]");
        ends("rl.top_p = 1.0 ", "[TRL: 1.0]");
        ends("recipe = \"grpo\" ", "[ours: none]");
        ends("phase.more.steps = 3 ", "# rl.steps of this phase [user]");
        ends("phase.more.kind = \"rl\" ", "# what the phase does [user]");
    }
}
