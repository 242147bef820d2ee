//! Data sets: rows from files, and prompts from rows.
//!
//! ```no_run
//! use std::path::Path;
//! use gradus_rft::data::{Dataset, PromptFormat, Split};
//!
//! # fn main() -> gradus::Result<()> {
//! let rows = Dataset::load(Path::new("gsm8k/main"))?;
//! let examples = rows.examples(&PromptFormat::default(), None)?;
//! let split = Split::by_hash(examples, 20)?;
//! println!("{} to train on, {} held out", split.train.len(), split.heldout.len());
//! # Ok(())
//! # }
//! ```

mod answers;
mod columns;
mod format;
pub mod jsonl;
mod pages;
pub mod parquet;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use answers::{answers, contexts};
pub use columns::at;
pub(crate) use columns::parsed;
pub(crate) use format::UserTemplate;
pub use format::{Example, PromptFormat, PromptSource, gsm8k_gold};

use crate::text::ChatTemplate;
use gradus::error::{Error, Result};

/// A row: values by column name, in the file's order. An integer of more than 64 bits is an object
/// whose one key begins with a NUL character; in an [`Example`]'s fields it is the text of its digits.
pub type Row = Map<String, Value>;

/// The rows of one or several files.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// Where they come from, for messages.
    pub path: PathBuf,
    /// The rows, files in the order of their names.
    pub rows: Vec<Row>,
}

/// Endings of files that are read.
const ENDINGS: [&str; 4] = ["jsonl", "ndjson", "json", "parquet"];
/// File names of a folder that are not data.
const NOT_DATA: [&str; 2] = ["dataset_info.json", "dataset_infos.json"];

impl Dataset {
    /// The rows of a file (`.jsonl`, `.ndjson`, `.json`, `.parquet`) or of a folder's files; where
    /// a folder has none, those of its subfolder `data`. If some files of the folder are called
    /// `train…`, only they are read, so that a folder with both splits gives the training split.
    pub fn load(path: &Path) -> Result<Dataset> {
        Dataset::from_files(path, &files(path)?)
    }

    /// The rows of a folder's files whose names begin with `split`, for example `test`.
    pub fn load_split(path: &Path, split: &str) -> Result<Dataset> {
        let mut files = data_files(path)?;
        files.retain(|file| belongs(file, split));
        if files.is_empty() {
            let reason = format!("has no data file whose name begins with `{split}`");
            return Err(Error::format(path, reason));
        }
        Dataset::from_files(path, &files)
    }

    fn from_files(path: &Path, files: &[PathBuf]) -> Result<Dataset> {
        let mut rows = Vec::new();
        for file in files {
            rows.append(&mut match ending(file) {
                "parquet" => parquet::read(file)?,
                "jsonl" | "ndjson" | "json" => jsonl::read(file)?,
                other => {
                    let reason = format!("files `.{other}` are not read, only {ENDINGS:?}");
                    return Err(Error::format(file, reason));
                }
            });
        }
        if rows.is_empty() {
            return Err(Error::format(path, "has no rows"));
        }
        Ok(Dataset { path: path.to_owned(), rows })
    }

    /// Names of the columns of the first row.
    pub fn columns(&self) -> Vec<&str> {
        self.rows.first().map(|row| row.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    /// The prompts of all rows, rendered with `template` where one is given.
    ///
    /// # Errors
    /// Names the first row that `format` does not fit, and the columns that it has.
    pub fn examples(
        &self,
        format: &PromptFormat,
        template: Option<&ChatTemplate>,
    ) -> Result<Vec<Example>> {
        format::examples(self, format, template)
    }
}

/// The files that [`Dataset::load`] reads.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files = data_files(path)?;
    let train: Vec<PathBuf> = files.iter().filter(|f| belongs(f, "train")).cloned().collect();
    Ok(if train.is_empty() { files } else { train })
}

fn ending(file: &Path) -> &str {
    file.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether a file's name is `split` or begins with it and something that ends the word.
fn belongs(file: &Path, split: &str) -> bool {
    let rest = name(file).strip_prefix(split);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}

/// The data files of a folder in the order of their names.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    for folder in [folder.to_owned(), folder.join("data")] {
        if !folder.is_dir() {
            continue;
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let file = entry.map_err(Error::io(&folder))?.path();
            let known = ENDINGS.contains(&ending(&file)) && !NOT_DATA.contains(&name(&file));
            if known && file.is_file() {
                files.push(file);
            }
        }
        if !files.is_empty() {
            files.sort();
            return Ok(files);
        }
    }
    Err(Error::format(folder, format!("has no data files, which end in {ENDINGS:?}")))
}

/// Examples to train on and examples to measure with. No prompt is in both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Split {
    /// To train on.
    pub train: Vec<Example>,
    /// To measure with.
    pub heldout: Vec<Example>,
}

impl Split {
    /// Holds out one prompt in `one_in`, chosen by a hash of the prompt's text: it depends on no
    /// order, and a prompt that occurs twice is on one side.
    pub fn by_hash(examples: Vec<Example>, one_in: u32) -> Result<Split> {
        if one_in < 2 {
            return Err(Error::invalid("split", "one_in", one_in, "at least 2"));
        }
        let held = |example: &Example| hash(&example.prompt).is_multiple_of(one_in as u64);
        let (heldout, train): (Vec<Example>, Vec<Example>) = examples.into_iter().partition(held);
        if train.is_empty() || heldout.is_empty() {
            let got = format!("{} train, {} held out", train.len(), heldout.len());
            let expected = "examples on both sides: more examples or another share";
            return Err(Error::invalid("split", "examples", got, expected));
        }
        Ok(Split { train, heldout })
    }

    /// Takes a held-out set as it is, and out of `train` the prompts that are also in it.
    pub fn explicit(mut train: Vec<Example>, heldout: Vec<Example>) -> Result<Split> {
        let before = train.len();
        let known: HashSet<&str> = heldout.iter().map(|example| example.prompt.as_str()).collect();
        train.retain(|example| !known.contains(example.prompt.as_str()));
        if train.is_empty() || heldout.is_empty() {
            let got = format!("{} of {before} train, {} held out", train.len(), heldout.len());
            let expected = "training examples that are not held out, and held-out ones";
            return Err(Error::invalid("split", "examples", got, expected));
        }
        Ok(Split { train, heldout })
    }
}

/// FNV-1a with its bits mixed once more, so that remainders are even.
fn hash(text: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325u64;
    let hash = text.bytes().fold(start, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
