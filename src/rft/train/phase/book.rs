//! A book of solutions: what earlier steps found right for a prompt is learned beside what this one finds
//! (Ni et al. 2022, arXiv:2205.14318).

use std::collections::HashSet;

use crate::train::trainer::Trainer;
use crate::train::update::record::{Record, TokenClass};
use gradus::dtype::Float;
use gradus::error::Result;

impl<T: Float> Trainer<T> {
    /// Groups with the records of the buffer `rl.book` that have their prompt, and under `rl.book_demos`
    /// with the demonstration of the prompt, which is right: each text once. What the step did not sample
    /// is scored under the policy as it is.
    ///
    /// # Errors
    /// `Config` for a prompt without a demonstration; what scoring meets.
    pub(super) fn with_book(&self, records: &[Record]) -> Result<Vec<Record>> {
        let rl = &self.config.rl;
        let book = self.buffers.get(&rl.book);
        let mut all = Vec::new();
        for own in records.chunk_by(|a, b| a.group == b.group) {
            let mut pages: Vec<Record> = Vec::new();
            if rl.book_demos {
                let demo = self.demonstration(&self.task.train_demo(own[0].row)?)?;
                pages.push(Record { reward: f32::INFINITY, ..demo });
            }
            let known = book.into_iter().flat_map(|book| book.newest(usize::MAX));
            pages.extend(known.filter(|record| prompt(record) == prompt(&own[0])).cloned());
            let mut seen: HashSet<Vec<i32>> = own.iter().map(|r| r.ids.clone()).collect();
            pages.retain(|page| seen.insert(page.ids.clone()));
            pages.iter_mut().for_each(|page| page.group = own[0].group);
            self.score_before(&mut pages)?;
            all.extend_from_slice(own);
            all.append(&mut pages);
        }
        Ok(all)
    }
}

/// The tokens before what is learned.
pub(super) fn prompt(record: &Record) -> &[i32] {
    let asked = record.class.iter().take_while(|class| **class == TokenClass::Prompt).count();
    &record.ids[..asked]
}
