//! A part of JSON Schema that is checked completely, and nothing beyond it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::json::canonical;

/// What a JSON value must look like: the keywords `type`, `enum`, `const`, `required`,
/// `properties`, `additionalProperties` (a truth value) and `items` (one schema for all).
/// `title`, `description`, `default`, `examples`, `$schema` and `$id` are allowed and say nothing.
/// Any other keyword is refused: a schema that is half understood would reward the wrong thing.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    types: Option<Vec<String>>,
    /// Allowed values in their canonical spelling.
    values: Option<HashSet<String>>,
    required: Vec<String>,
    properties: Vec<(String, Schema)>,
    closed: bool,
    items: Option<Box<Schema>>,
}

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// Which keyword is unknown, or has a value that it cannot have.
    pub fn parse(value: &Value) -> Result<Schema, String> {
        let keywords = match value {
            Value::Object(keywords) => keywords,
            Value::Bool(true) => return Ok(Schema::default()),
            other => return Err(format!("a schema is an object or true, not {other}")),
        };
        let mut schema = Schema::default();
        // Columns of Parquet give every object the keys of all; only `const` can mean null itself.
        let absent = |keyword: &str, value: &Value| value.is_null() && keyword != "const";
        for (keyword, value) in keywords.iter().filter(|(key, value)| !absent(key, value)) {
            schema.set(keyword, value)?;
        }
        Ok(schema)
    }

    fn set(&mut self, keyword: &str, value: &Value) -> Result<(), String> {
        let wrong = |expected: &str| format!("`{keyword}` is {value}, expected {expected}");
        match (keyword, value) {
            ("type", _) => self.types = Some(types(value).ok_or_else(|| wrong(&TYPES.join(", ")))?),
            ("enum", Value::Array(all)) => self.values = Some(all.iter().map(canonical).collect()),
            ("enum", _) => return Err(wrong("a list")),
            ("const", _) => self.values = Some(HashSet::from([canonical(value)])),
            ("required", _) => {
                self.required = strings(value).ok_or_else(|| wrong("a list of keys"))?
            }
            ("properties", Value::Object(all)) => self.properties = properties(all)?,
            ("properties", _) => return Err(wrong("an object of schemas")),
            ("additionalProperties", Value::Bool(open)) => self.closed = !open,
            ("additionalProperties", _) => return Err(wrong("true or false")),
            ("items", _) => {
                let items = Schema::parse(value).map_err(|e| format!("`items`: {e}"))?;
                self.items = Some(Box::new(items));
            }
            ("title" | "description" | "default" | "examples" | "$schema" | "$id", _) => {}
            _ => return Err(format!("keyword `{keyword}` is not supported")),
        }
        Ok(())
    }

    /// Whether `value` satisfies the schema.
    pub fn accepts(&self, value: &Value) -> bool {
        let typed = self.types.as_ref().is_none_or(|types| types.iter().any(|t| is_a(value, t)));
        let listed = self.values.as_ref().is_none_or(|values| values.contains(&canonical(value)));
        typed
            && listed
            && match value {
                Value::Object(map) => self.accepts_object(map),
                Value::Array(all) => {
                    self.items.as_ref().is_none_or(|items| all.iter().all(|v| items.accepts(v)))
                }
                _ => true,
            }
    }

    fn accepts_object(&self, map: &Map<String, Value>) -> bool {
        let known = |key: &String| self.properties.iter().any(|(name, _)| name == key);
        self.required.iter().all(|key| map.contains_key(key))
            && self
                .properties
                .iter()
                .all(|(name, schema)| map.get(name).is_none_or(|value| schema.accepts(value)))
            && (!self.closed || map.keys().all(known))
    }
}

fn properties(all: &Map<String, Value>) -> Result<Vec<(String, Schema)>, String> {
    // A null is a property of another schema in the same column of a Parquet file.
    all.iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            let schema = Schema::parse(value).map_err(|e| format!("property `{name}`: {e}"))?;
            Ok((name.clone(), schema))
        })
        .collect()
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(String::from)).collect()
}

fn types(value: &Value) -> Option<Vec<String>> {
    let types = value.as_str().map(|one| vec![one.to_string()]).or_else(|| strings(value))?;
    types.iter().all(|t| TYPES.contains(&t.as_str())).then_some(types)
}

fn is_a(value: &Value, kind: &str) -> bool {
    match value {
        Value::Null => kind == "null",
        Value::Bool(_) => kind == "boolean",
        // 2.0 is an integer, as in JSON Schema.
        Value::Number(n) => {
            kind == "number" || kind == "integer" && n.as_f64().is_some_and(|x| x.fract() == 0.0)
        }
        Value::String(_) => kind == "string",
        Value::Array(_) => kind == "array",
        Value::Object(_) => kind == "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_schemas() {
        let schema = Schema::parse(&json!({
            "title": "person",
            "type": "object",
            "required": ["name", "tags"],
            "properties": {
                "name": {"type": "string"},
                "age": {"type": ["integer", "null"]},
                "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}},
                "kind": {"const": "person"}
            },
            "additionalProperties": false
        }))
        .unwrap();
        for good in [
            json!({"name": "x", "tags": []}),
            json!({"name": "x", "tags": ["a", 1.0], "age": 3.0, "kind": "person"}),
            json!({"name": "x", "tags": [], "age": null}),
        ] {
            assert!(schema.accepts(&good), "{good}");
        }
        for bad in [
            json!([]),
            json!({"name": "x"}),
            json!({"name": 1, "tags": []}),
            json!({"name": "x", "tags": ["c"]}),
            json!({"name": "x", "tags": {}}),
            json!({"name": "x", "tags": [], "age": 3.5}),
            json!({"name": "x", "tags": [], "kind": "thing"}),
            json!({"name": "x", "tags": [], "more": 1}),
        ] {
            assert!(!schema.accepts(&bad), "{bad}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (schema, word) in [
            (json!({"minimum": 3}), "minimum"),
            (json!({"type": "int"}), "int"),
            (json!({"properties": {"a": {"oneOf": []}}}), "property `a`"),
            (json!({"required": "a"}), "required"),
            (json!(false), "false"),
        ] {
            let error = Schema::parse(&schema).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
