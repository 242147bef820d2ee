//! Two models of one shape: `gradus lerp` and `gradus diff`.
#![cfg(feature = "hf")]

use std::path::Path;

use gradus_rft::io::safetensors::TensorData;
use gradus_rft::pretrained::WeightFiles;

use super::runs::{gradus, must, text};

/// The values of all weights of a folder in f32, by name.
fn values(folder: &str) -> Vec<(String, Vec<f32>)> {
    let mut files = WeightFiles::open(Path::new(folder)).unwrap();
    let names: Vec<String> = files.names().map(String::from).collect();
    let of = |name: String| {
        let data: TensorData = files.read(&name).unwrap();
        (name, data.to_vec::<f32>().unwrap())
    };
    names.into_iter().map(of).collect()
}

#[test]
fn models_are_mixed_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let models = crate::common::root().join("tests/golden/models");
    let of = |name: &str| models.join(name).to_string_lossy().into_owned();
    let (llama, adapter, qwen) = (of("llama"), of("llama/adapter"), of("qwen3"));
    let (before, after) = (llama.clone(), at("after"));
    must(gradus(&["merge", &llama, &adapter, &after]));
    let shown = must(gradus(&["lerp", &before, &after, &at("mixed"), "--weight", "0.25"]));
    assert!(shown.contains("weights mixed") && shown.contains("the same in both"), "{shown}");
    must(gradus(&["lerp", &before, &after, &at("same"), "--weight", "0"]));
    let (a, b) = (values(&before), values(&after));
    assert_eq!(values(&at("same")), a);
    let (mut changed, mut n) = (0, 0);
    for ((a, b), (name, mixed)) in a.iter().zip(&b).zip(values(&at("mixed"))) {
        assert_eq!((&a.0, &b.0), (&name, &name));
        for ((&a, &b), y) in a.1.iter().zip(&b.1).zip(mixed) {
            assert_eq!(y, (0.75 * a as f64 + 0.25 * b as f64) as f32, "{name}");
            changed += (a != b) as usize;
            n += 1;
        }
    }
    assert!(changed > 0 && changed < n, "{changed} of {n}");
    let table = must(gradus(&["diff", &before, &after]));
    let row = |kind: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.trim_start().starts_with(kind));
        let line = line.unwrap_or_else(|| panic!("{kind}: {table}"));
        line.split_whitespace().skip(1).map(String::from).collect()
    };
    let all = row("all");
    assert_eq!(all[0], n.to_string(), "{table}");
    assert_eq!(all[1], format!("{:.4}", 1.0 - changed as f64 / n as f64), "{table}");
    assert_eq!(row("input_layernorm")[1..3], ["1.0000", "1.0000"], "{table}");
    assert!(table.contains("within 1e-5"), "{table}");
    let none = must(gradus(&["diff", &before, &before, "--tol", "0"]));
    assert!(none.lines().skip(1).all(|line| line.contains(" 1.0000 ")), "{none}");
    for (arguments, code, says) in [
        (vec!["lerp", &before, &after, &at("x"), "--weight", "1.5"], 2, "1.5"),
        (vec!["lerp", &before, &after, &at("x"), "--weight", "nan"], 2, "NaN"),
        (vec!["lerp", &before, &after, &at("mixed")], 2, "not an empty folder"),
        (vec!["lerp", &before, &qwen, &at("x")], 3, "the other model"),
        (vec!["diff", &before, &qwen], 3, "the other model"),
        (vec!["diff", &before, &after, "--tol", "-1"], 2, "tol"),
    ] {
        let output = gradus(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{arguments:?}: {}", text(&output));
        assert!(!folder.path().join("x").exists(), "{arguments:?} left a folder");
    }
}
