//! How often rows of different kinds come in an epoch.

use std::collections::BTreeMap;

use crate::data;
use crate::train::config::DataConfig;
use crate::train::task::dataset::DataPrompt;
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// Epochs deal rows by streams of [`Purpose::Data`] with this first coordinate; their order has 1.
const DEALT: u32 = 2;

/// How often each training row comes in an epoch, which has as many rows as the data has.
#[derive(Debug)]
pub(super) struct Mixture {
    /// Sums of the rows' frequencies up to and with each.
    until: Vec<f64>,
}

impl Mixture {
    /// That of `data.mix` and `data.mix_power`; none where every row comes once.
    ///
    /// # Errors
    /// `Format` for a row without the column.
    pub fn of(
        data: &DataConfig,
        rows: &[DataPrompt],
        notes: &mut Vec<String>,
    ) -> Result<Option<Mixture>> {
        if data.mix.is_empty() || rows.is_empty() {
            return Ok(None);
        }
        let kinds = rows.iter().map(|row| kind(row, data)).collect::<Result<Vec<String>>>()?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        kinds.iter().for_each(|kind| *counts.entry(kind).or_default() += 1);
        let weight = |count: usize| (count as f64).powf(data.mix_power - 1.0);
        let total: f64 = counts.values().map(|&count| count as f64 * weight(count)).sum();
        let often = |kind: &str| weight(counts[kind]) * rows.len() as f64 / total;
        let told = counts.keys().map(|kind| format!("`{}` {:.3}", shown(kind), often(kind)));
        notes.push(format!(
            "    data rows come so often an epoch, by {}: {}{}",
            data.mix,
            told.take(TOLD).collect::<Vec<_>>().join(", "),
            if counts.len() > TOLD { ", ..." } else { "" }
        ));
        Ok(Some(Mixture::with(kinds.iter().map(|kind| often(kind)))))
    }

    fn with(often: impl Iterator<Item = f64>) -> Mixture {
        let mut sum = 0.0;
        let mut until: Vec<f64> = often
            .map(|often| {
                sum += often;
                sum
            })
            .collect();
        // Rounding must not cost an epoch its last row.
        let rows = until.len() as f64;
        until.iter_mut().for_each(|sum| *sum = sum.min(rows));
        until.last_mut().into_iter().for_each(|last| *last = rows);
        Mixture { until }
    }

    /// The rows of an epoch: each as often as its frequency, rounded down or up so that over many epochs
    /// it is met.
    pub fn epoch(&self, seed: u64, [low, high]: [u32; 2]) -> Vec<u32> {
        let start = Rng::new(seed, Purpose::Data, [DEALT, low, high]).uniform();
        let mut rows = Vec::with_capacity(self.until.len());
        for (row, until) in self.until.iter().enumerate() {
            rows.resize((until + start).floor() as usize, row as u32);
        }
        rows
    }
}

/// Kinds that are told of.
const TOLD: usize = 8;

fn shown(kind: &str) -> String {
    kind.chars().take(40).collect::<String>().escape_debug().to_string()
}

/// What kind a row is of: a text, or the JSON of anything else.
fn kind(row: &DataPrompt, data: &DataConfig) -> Result<String> {
    match data::at(&row.prompt.fields, &data.mix).as_deref() {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(value) if !value.is_null() => Ok(value.to_string()),
        Some(_) | None => {
            let reason = format!(
                "the row of the prompt `{}` has no `{}`, which data.mix names",
                shown(&row.prompt.text),
                data.mix
            );
            Err(Error::format(&data.path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_many_epochs_rows_come_as_often_as_they_should() {
        let often = [0.25, 0.25, 3.0, 0.3, 1.2, 0.5, 1.5];
        let mixture = Mixture::with(often.into_iter());
        let mut counts = [0usize; 7];
        const EPOCHS: u32 = 4000;
        for epoch in 0..EPOCHS {
            let rows = mixture.epoch(3, [epoch, 0]);
            assert_eq!(rows, mixture.epoch(3, [epoch, 0]), "a function of seed and epoch");
            assert_eq!(rows.len(), often.len());
            for (row, often) in often.iter().enumerate() {
                let count = rows.iter().filter(|&&r| r as usize == row).count();
                let near = [often.floor() as usize, often.ceil() as usize];
                assert!(near.contains(&count), "row {row} came {count} times, not {often}");
                counts[row] += count;
            }
        }
        for (count, often) in counts.iter().zip(often) {
            let mean = *count as f64 / EPOCHS as f64;
            assert!((mean - often).abs() < 0.03, "{mean}, not {often}");
        }
    }

    #[test]
    fn rows_that_come_once_come_once() {
        let mixture = Mixture::with([1.0; 1000].into_iter());
        for epoch in 0..50 {
            assert!(mixture.epoch(0, [epoch, 0]).into_iter().eq(0..1000));
        }
        // Thirds do not add up to a whole number.
        let rows = Mixture::with([1.0 / 3.0, 1.0 / 3.0, 7.0 / 3.0].into_iter()).epoch(1, [0, 0]);
        assert_eq!(rows.len(), 3);
    }
}
