//! A pair of bounds, or none.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `[low, high]`, or `[]` for no bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Bounds {
    /// Any value.
    #[default]
    None,
    /// From the first to the second.
    Within(f64, f64),
}

impl Bounds {
    /// The lower and the upper one, if there are bounds.
    pub fn ends(self) -> Option<(f64, f64)> {
        match self {
            Bounds::None => None,
            Bounds::Within(low, high) => Some((low, high)),
        }
    }
}

impl Serialize for Bounds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Bounds::None => to.collect_seq([0.0; 0]),
            Bounds::Within(low, high) => to.collect_seq([low, high]),
        }
    }
}

impl<'de> Deserialize<'de> for Bounds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bounds, D::Error> {
        from.deserialize_seq(BoundsVisitor)
    }
}

/// A number, or, as the items of lists on the command line are, its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bound {
    Number(f64),
    Text(String),
}

impl Bound {
    fn value(&self) -> Option<f64> {
        match self {
            Bound::Number(x) => Some(*x),
            Bound::Text(text) => text.parse().ok(),
        }
    }
}

struct BoundsVisitor;

impl<'de> Visitor<'de> for BoundsVisitor {
    type Value = Bounds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two numbers [low, high], or [] for none")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Bounds, A::Error> {
        let mut bounds = Vec::new();
        while let Some(item) = items.next_element::<Bound>()? {
            let wrong = || de::Error::custom("a bound is no number, expected [low, high]");
            bounds.push(item.value().ok_or_else(wrong)?);
        }
        match *bounds {
            [] => Ok(Bounds::None),
            [low, high] => Ok(Bounds::Within(low, high)),
            _ => Err(de::Error::invalid_length(bounds.len(), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::RunConfig;

    #[test]
    fn bounds_come_from_files_and_from_the_command_line() {
        let of = |text: &str| toml::from_str::<RunConfig>(text).map(|config| config.reward.clamp);
        assert_eq!(of("reward.clamp = [-1, 2.5]").unwrap(), Bounds::Within(-1.0, 2.5));
        assert_eq!(of("reward.clamp = []").unwrap(), Bounds::None);
        for text in ["reward.clamp = [1]", "reward.clamp = [1, 2, 3]", "reward.clamp = 1"] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains("[low, high]"), "{error}");
        }
        let mut config = RunConfig::default();
        config.apply_set("reward.clamp=[-1,2.5]").unwrap();
        assert_eq!(config.reward.clamp, Bounds::Within(-1.0, 2.5));
        let read: RunConfig = toml::from_str(&config.to_toml()).unwrap();
        assert_eq!(read.reward.clamp, config.reward.clamp);
        config.apply_set("reward.clamp=[]").unwrap();
        assert_eq!(config.reward.clamp, Bounds::None);
        let error = config.apply_set("reward.clamp=[a,b]").unwrap_err().to_string();
        assert!(error.contains("reward.clamp") && error.contains("no number"), "{error}");
    }
}
