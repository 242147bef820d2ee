//! The members of a request's object, each of which is read or refused.

use serde_json::{Map, Value};

use super::problem::{Problem, shown};

/// What is not read yet. A member that is null is one that is not there.
pub(super) struct Fields(Map<String, Value>);

type Read<T> = Result<Option<T>, Problem>;

impl Fields {
    /// The members of `body`.
    ///
    /// # Errors
    /// A body that is no JSON object.
    pub fn parse(body: &[u8]) -> Result<Fields, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(other) => {
                let message = format!("the body is {}, expected a JSON object", shown(&other));
                Err(Problem::new(400, message))
            }
            Err(error) => {
                let message = format!("the body is no JSON: {error}, expected a JSON object");
                Err(Problem::new(400, message))
            }
        }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A member that `read` understands, or else what was expected.
    pub fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Read<T> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(Problem::argument(name, shown(&value), expected)),
        }
    }

    pub fn text(&mut self, name: &str) -> Read<String> {
        self.read(name, "a text", |value| value.as_str().map(String::from))
    }

    pub fn flag(&mut self, name: &str) -> Read<bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A whole number in `range`.
    pub fn whole(&mut self, name: &str, range: std::ops::RangeInclusive<i64>) -> Read<i64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &expected, |value| value.as_i64().filter(|n| range.contains(n)))
    }

    /// A number that `fits`.
    pub fn number(&mut self, name: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Read<f64> {
        self.read(name, expected, |value| value.as_f64().filter(|&x| fits(x)))
    }

    /// A member whose only value is one that changes nothing: what it stands for is not built.
    pub fn neutral(&mut self, name: &str, values: &[Value]) -> Result<(), Problem> {
        let same = |value: &Value, known: &Value| match (value.as_f64(), known.as_f64()) {
            (Some(value), Some(known)) => value == known,
            (None, _) | (_, None) => value == known,
        };
        let known = values.iter().map(shown).collect::<Vec<_>>().join(" or ");
        let expected = format!("nothing or {known}: anything else is not supported here");
        let fits = |value: &Value| values.iter().any(|known| same(value, known)).then_some(());
        self.read(name, &expected, fits).map(|_| ())
    }

    /// Refuses what nobody has read.
    pub fn finish(self) -> Result<(), Problem> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, value)) => {
                let expected = "no such argument: it is not supported here";
                Err(Problem::argument(&name, shown(&value), expected))
            }
        }
    }
}
