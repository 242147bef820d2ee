//! A number that a configuration may leave to what it goes with.

use std::fmt;
use std::num::ParseFloatError;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `"auto"`, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Auto {
    /// What goes with the loss or with what trains.
    #[default]
    Auto,
    /// This.
    Value(f64),
}

impl Auto {
    /// The number, if there is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Auto::Auto => None,
            Auto::Value(x) => Some(x),
        }
    }

    /// The number, or what goes with the rest.
    pub fn or(self, fitting: f64) -> f64 {
        self.value().unwrap_or(fitting)
    }
}

impl From<f64> for Auto {
    fn from(x: f64) -> Auto {
        Auto::Value(x)
    }
}

impl FromStr for Auto {
    type Err = ParseFloatError;

    fn from_str(text: &str) -> Result<Auto, ParseFloatError> {
        match text {
            "auto" => Ok(Auto::Auto),
            number => number.parse().map(Auto::Value),
        }
    }
}

impl Serialize for Auto {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => to.serialize_str("auto"),
            Auto::Value(x) => to.serialize_f64(*x),
        }
    }
}

impl<'de> Deserialize<'de> for Auto {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Auto, D::Error> {
        from.deserialize_any(AutoVisitor)
    }
}

struct AutoVisitor;

impl Visitor<'_> for AutoVisitor {
    type Value = Auto;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or \"auto\"")
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> Result<Auto, E> {
        Ok(Auto::Value(x))
    }

    fn visit_i64<E: de::Error>(self, x: i64) -> Result<Auto, E> {
        Ok(Auto::Value(x as f64))
    }

    fn visit_u64<E: de::Error>(self, x: u64) -> Result<Auto, E> {
        Ok(Auto::Value(x as f64))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Auto, E> {
        // `--set` writes a number over `auto` as the text that it is.
        text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}
