//! What is held out from training: a share of the prompts, a file of its own, and named sets.

use std::collections::HashSet;

use crate::train::config::DataConfig;
use crate::train::task::Prompt;
use crate::train::task::dataset::{DataPrompt, DataTask};
use gradus::error::Result;

impl DataTask {
    /// Takes what `data` holds out from `examples`, or reads it from a file of its own.
    pub(super) fn hold_out(
        &mut self,
        data: &DataConfig,
        examples: &mut Vec<DataPrompt>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        if !data.heldout.is_empty() {
            let held = self.read(data, &data.heldout, notes)?.0;
            self.heldout = distinct(held, &data.heldout, notes);
            return Ok(());
        }
        let share = data.heldout_share;
        let all = std::mem::take(examples).into_iter();
        let (held, train): (Vec<_>, Vec<_>) = all.partition(|e| is_held(&e.prompt.text, share));
        *examples = train;
        self.heldout = match share {
            // All of the file is for an evaluation, which scores every row.
            1.0 => held.into_iter().map(|e| e.prompt).collect(),
            _ => distinct(held, "held out", notes),
        };
        Ok(())
    }

    /// Reads the sets of `data.suites`.
    pub(super) fn read_suites(&mut self, data: &DataConfig, notes: &mut Vec<String>) -> Result<()> {
        for (name, path) in data.suites()? {
            let path = path.to_string_lossy();
            let prompts = distinct(self.read(data, &path, notes)?.0, &path, notes);
            notes.push(format!("   suite {name}: {} prompts", prompts.len()));
            self.suites.push((name.into(), prompts));
        }
        Ok(())
    }
}

/// A hash of the text decides the split, so that it depends on nothing but the prompt. FNV-1a hardly moves
/// its high bits for the last characters; the finalizer of MurmurHash3 mixes all of them.
fn is_held(text: &str, share: f64) -> bool {
    let fnv = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3));
    let mix = |h: u64, by: u64| (h ^ (h >> 33)).wrapping_mul(by);
    let hash = mix(mix(fnv, 0xff51_afd7_ed55_8ccd), 0xc4ce_b9fe_1a85_ec53);
    ((hash >> 32) as f64) < share * (1u64 << 32) as f64
}

/// Each prompt once; a note says of what rows are left out.
fn distinct(examples: Vec<DataPrompt>, of: &str, notes: &mut Vec<String>) -> Vec<Prompt> {
    let (mut seen, rows) = (HashSet::new(), examples.len());
    let prompts = examples.into_iter().map(|e| e.prompt);
    let prompts: Vec<Prompt> = prompts.filter(|p| seen.insert(p.text.clone())).collect();
    if prompts.len() < rows {
        let repeated = rows - prompts.len();
        notes.push(format!(
            "    data {of}: {repeated} of {rows} rows repeat a prompt and are left out"
        ));
    }
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts that differ in their last characters only are held out as often as any others.
    #[test]
    fn the_share_that_is_held_out_is_the_one_that_was_asked_for() {
        let series: [fn(usize) -> String; 5] = [
            |n| format!("Double {n}"),
            |n| format!("What is {n}?"),
            |n| format!("PROMPT{n:04}"),
            |n| format!("a\0b{n}"),
            |n| format!("{n}: say it"),
        ];
        for (kind, prompt) in series.iter().enumerate() {
            for share in [0.1, 0.5] {
                let held = (0..2000).filter(|&n| is_held(&prompt(n), share)).count() as f64;
                let off = (held - 2000.0 * share).abs() / (2000.0 * share * (1.0 - share)).sqrt();
                assert!(off < 4.0, "{}: {held} of 2000 for {share}", prompt(kind));
            }
        }
    }
}
