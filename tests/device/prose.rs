//! Documentation and comments are in US spelling.

use std::path::{Path, PathBuf};

use crate::common::root;

/// Beginnings of words that end in `-ise` and its forms in UK spelling, and in `-ize` here.
const ISE: &str = "quant dequant normal initial uninitial serial optim general special organ \
    recogn summar vector stabil synchron regular minim maxim material factor penal random token \
    real util parallel memor character categor";

/// Other UK spellings, by their beginnings.
const WORDS: &str = "behaviour neighbour colour favour honour centre centring learnt spoilt artefact \
    labelled cancelled modelling signalled judgement licence";

const ENDINGS: [&str; 9] =
    ["ise", "ised", "ises", "iser", "isers", "ising", "isation", "isations", "isable"];

/// Text files whose words are ours: not golden data, not what is generated, not the log of the past.
fn texts(folder: &Path, out: &mut Vec<PathBuf>) {
    let others = ["target", "golden", "generated", "results", "corpus", "runs", "artifacts"];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let ends = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() {
            let skipped = others.contains(&name.as_str()) || name.starts_with('.');
            if !skipped && !name.ends_with("venv") {
                texts(&path, out);
            }
        } else if ["rs", "cu", "cuh", "h", "c", "py", "pyi", "md", "toml"].contains(&&*ends)
            && !["LOG.md", "prose.rs"].contains(&name.as_str())
        {
            out.push(path);
        }
    }
}

/// What a text with UK spelling has somewhere; few others do.
fn suspects() -> Vec<String> {
    let ise = ISE.split_whitespace().map(|start| format!("{start}is"));
    ise.chain(WORDS.split_whitespace().map(String::from)).collect()
}

/// Whether a word, in lower case, is UK spelling.
fn is_uk(word: &str) -> bool {
    let ends = |start: &str| word.strip_prefix(start).is_some_and(|end| ENDINGS.contains(&end));
    WORDS.split_whitespace().any(|start| word.starts_with(start))
        || ISE.split_whitespace().any(ends)
}

#[test]
fn words_are_in_us_spelling() {
    assert!(is_uk("dequantises") && is_uk("neighbouring") && is_uk("uninitialised"));
    assert!(!is_uk("otherwise") && !is_uk("parallelism") && !is_uk("precise") && !is_uk("realism"));
    let (root, suspects) = (root(), suspects());
    let mut files = Vec::new();
    texts(&root, &mut files);
    assert!(files.len() > 300, "{} files", files.len());
    let mut found = Vec::new();
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap().to_lowercase();
        if !suspects.iter().any(|suspect| text.contains(suspect)) {
            continue;
        }
        let at = path.strip_prefix(&root).unwrap().display();
        for (i, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphabetic());
            found.extend(words.filter(|w| is_uk(w)).map(|w| format!("{at}:{}: {w}", i + 1)));
        }
    }
    assert!(found.is_empty(), "UK spelling:\n{}", found.join("\n"));
}
