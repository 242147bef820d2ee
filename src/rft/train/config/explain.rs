//! `gradus config --explain`: every key with its value, its meaning and where the default is from.

use crate::train::config::section::{Key, meaning};
use crate::train::config::{RunConfig, keys};

/// One line per key of `config`.
pub fn explain(config: &RunConfig) -> String {
    let table = toml::Table::try_from(config.without_secrets()).unwrap_or_default();
    let value = |key: &str| {
        let mut at = toml::Value::Table(table.clone());
        for part in key.split('.') {
            at = at.get(part).cloned().unwrap_or(toml::Value::String("?".into()));
        }
        at.to_string()
    };
    let line = |key: Key| {
        let (name, source) = (&key.name, key.source);
        format!("{:<46} # {} [{source}]\n", format!("{name} = {}", value(name)), in_words(&key))
    };
    keys().into_iter().map(line).collect()
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

    #[test]
    fn a_key_says_its_value_meaning_choices_range_and_source() {
        let all = explain(&RunConfig::default());
        let line = |key: &str| all.lines().find(|line| line.starts_with(key)).unwrap();
        let seed = "seed = 0                                       # names every random draw of the run [ours]";
        assert_eq!(line("seed "), seed);
        assert!(line("rl.group ").ends_with("# samples per prompt; 1..=4096 [TRL: 8]"));
        assert!(
            line("rl.kl ").contains("where that KL is put: auto (where the preset has it), loss")
        );
        assert!(line("rl.beta1 ").contains("decay of AdamW's first moment"));
        assert!(line("value.lambda ").contains("# GAE's lambda;"));
        assert!(line("quantize.type ").contains("\"nf4\""));
        assert_eq!(all.lines().count(), 95, "{all}");
    }
}
