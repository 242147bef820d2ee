//! The most that a micro-batch of rollouts computes. Micro-batches are cut by it, and the memory plan counts it: what
//! was planned is never exceeded, whatever is left out of a batch.

use crate::train::config::SourceKey;
use crate::train::trainer::Trainer;
use crate::train::update::record::{Record, TokenClass};
use gradus::dtype::Float;

impl<T: Float> Trainer<T> {
    /// Tokens that a micro-batch of rollouts computes if all are of the full length and none is left out: each
    /// prompt that it touches once, and all completions. One that other prompts are mixed into, because samples
    /// between them are left out, gets fewer sequences. There is no limit for answers from a file, which are
    /// planned whole.
    pub(crate) fn shared_tokens(&self) -> usize {
        if self.config.rl.source == SourceKey::Data {
            return usize::MAX;
        }
        let (prompt, completion) = self.longest();
        let (_, prompts) = self.fullest();
        // Nobody reads the last token of a completion.
        prompts * prompt + self.config.rl.sequences() * completion.saturating_sub(1)
    }

    /// The micro-batch of which [`Trainer::shared_tokens`] says the size, for a batch of `count` records.
    pub(crate) fn longest_rollouts(&self, count: usize) -> Vec<Record> {
        let (rl, (prompt, completion)) = (&self.config.rl, self.longest());
        let (first, _) = self.fullest();
        let record = |i: usize| {
            // Neighbors within a group differ from their first token on, and so do prompts.
            let (group, id) = ((first + i) / rl.group, |n: usize| (n % 2) as i32);
            let mut record = Record { group: group as u32, finished: true, ..Record::default() };
            record.push(&vec![id(group); prompt], TokenClass::Prompt, &[]);
            record.push(&vec![id(i); completion], TokenClass::Gen, &vec![0.0; completion]);
            record
        };
        (0..rl.sequences().min(count)).map(record).collect()
    }

    /// Tokens of the longest prompt and of the longest completion, or episode, behind it.
    fn longest(&self) -> (usize, usize) {
        (self.task.lengths().0.max(1), self.most_behind().max(1))
    }

    /// The first sequence of the micro-batch, of a batch of whole groups, that touches most of them, and how many
    /// these are.
    fn fullest(&self) -> (usize, usize) {
        let (size, group) = (self.config.rl.sequences(), self.config.rl.group);
        let touched = |k: usize| ((k + 1) * size - 1) / group - k * size / group + 1;
        let most = (0..group).max_by_key(|&k| (touched(k), std::cmp::Reverse(k))).unwrap_or(0);
        (most * size, touched(most))
    }
}
