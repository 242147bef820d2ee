//! `generation_config.json`: how a model's makers want it sampled.

use std::path::Path;

use crate::io::json;
use crate::pretrained::config::Fields;
use gradus::error::Result;

/// The sampling settings of a model folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Divides the logits; 0 = the most likely token (`do_sample` false or missing).
    pub temperature: f64,
    /// Keeps the k most likely tokens; 0 = all.
    pub top_k: i64,
    /// Keeps the smallest set with at least this mass; 1 = all.
    pub top_p: f64,
    /// Keeps tokens at least this likely relative to the top one; 0 = all.
    pub min_p: f64,
    /// Settings of the file that change what is sampled and are not applied here, as `name = value`.
    pub ignored: Vec<String>,
}

/// What transformers takes for a missing `top_k`.
const TOP_K: i64 = 50;

/// Settings that change which token is drawn, with the values that leave it alone.
const OTHERS: &[(&str, &[f64])] = &[
    ("repetition_penalty", &[1.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("no_repeat_ngram_size", &[0.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("guidance_scale", &[1.0]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
];

impl Generation {
    /// Reads `folder/generation_config.json`; `None` if the folder has none.
    ///
    /// # Errors
    /// `Io`; `Format` for a file that is no JSON object and for settings out of range.
    pub fn load(folder: &Path) -> Result<Option<Generation>> {
        let path = folder.join("generation_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let file = Fields { raw: json::read_object(&path)?, path };
        let samples = file.or("do_sample", false)?;
        let range = |name: &str, default: f64, most: f64| {
            let value: f64 = file.or(name, default)?;
            match value >= 0.0 && value <= most {
                true => Ok(value),
                false => file.refuse(format!("`{name}` = {value} is not in 0..={most}")),
            }
        };
        let ignored = OTHERS.iter().filter_map(|&(name, neutral)| {
            let value = file.raw.get(name).filter(|v| !v.is_null())?;
            let is_neutral = value.as_f64().is_some_and(|v| neutral.contains(&v));
            (!is_neutral).then(|| format!("{name} = {value}"))
        });
        let ignored = ignored.collect();
        if !samples {
            let greedy = Generation { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ignored };
            return Ok(Some(greedy));
        }
        let top_k: i64 = file.or("top_k", TOP_K)?;
        if top_k < 0 {
            return file.refuse(format!("`top_k` = {top_k} is below 0"));
        }
        let top_p = range("top_p", 1.0, 1.0)?;
        if top_p == 0.0 {
            return file.refuse("`top_p` = 0 keeps no token");
        }
        Ok(Some(Generation {
            temperature: range("temperature", 1.0, f64::MAX)?,
            top_k,
            top_p,
            min_p: range("min_p", 0.0, 1.0)?,
            ignored,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value) -> Result<Option<Generation>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("generation_config.json");
        std::fs::write(path, value.to_string()).unwrap();
        Generation::load(folder.path())
    }

    #[test]
    fn settings_are_those_that_transformers_would_use() {
        assert_eq!(Generation::load(Path::new("nowhere")).unwrap(), None);
        let greedy = read(&json!({"temperature": 0.6})).unwrap().unwrap();
        assert_eq!((greedy.temperature, greedy.top_k, greedy.top_p), (0.0, 0, 1.0));
        let given = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
            "repetition_penalty": 1.1, "num_beams": 1, "typical_p": null});
        let read_back = read(&given).unwrap().unwrap();
        assert_eq!((read_back.temperature, read_back.top_k, read_back.top_p), (0.7, 20, 0.8));
        assert_eq!(read_back.ignored, ["repetition_penalty = 1.1"]);
        assert_eq!(read(&json!({"do_sample": true})).unwrap().unwrap().top_k, 50);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (name, value) in
            [("temperature", -1.0), ("top_p", 1.5), ("top_p", 0.0), ("min_p", 2.0), ("top_k", -5.0)]
        {
            let mut given = json!({"do_sample": true});
            given[name] = if name == "top_k" { json!(value as i64) } else { json!(value) };
            let error = read(&given).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("generation_config.json"), "{error}");
        }
    }
}
