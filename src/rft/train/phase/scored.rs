//! Answers from a file in the place of rollouts: nobody samples, and no reward is asked.

use crate::train::config::{RunConfig, SourceKey};
use crate::train::task::{ScoredAnswer, Task};
use crate::train::trainer::Trainer;
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::sequence::{SequenceKind, SequenceLoss};
use crate::train::update::step::score_tokens;
use gradus::dtype::Float;
use gradus::error::{Error, Result};

impl<T: Float> Trainer<T> {
    /// The answers of the rows of RL step `step` with their scores for rewards, and the policy's own
    /// log-probs of them. A row is a group.
    ///
    /// # Errors
    /// `Config` for a task whose rows have no answers; what scoring meets.
    pub fn scored_answers(&self, step: u64) -> Result<Vec<Record>> {
        let rl = &self.config.rl;
        let crossed = crosses(&self.config)?;
        let codec = self.task.codec();
        let mut records = Vec::new();
        for group in 0..rl.prompts as u64 {
            let row = self.before.prompts + step * rl.prompts as u64 + group;
            let (prompt, answers) = self.task.answers(row)?;
            let prompts = if crossed { self.task.contexts(row)? } else { vec![prompt] };
            for (i, ScoredAnswer { text, score }) in answers.iter().enumerate() {
                let mut ids = codec.encode_rendered(text)?;
                ids.extend(codec.stops().first());
                let mut record =
                    Record { group: group as u32, finished: true, ..Record::default() };
                record.reward = *score;
                record.push(
                    &self.task.encode(&prompts[i % prompts.len()])?,
                    TokenClass::Prompt,
                    &[],
                );
                record.push(&ids, TokenClass::Demo, &[]);
                records.push(record);
            }
        }
        let mut rewards: Vec<f32> = records.iter().map(|r| r.reward).collect();
        self.deal_out(&mut rewards, self.before.steps + step);
        records.iter_mut().zip(rewards).for_each(|(record, reward)| record.reward = reward);
        self.score_before(&mut records)?;
        Ok(records)
    }

    /// Puts log-probs and entropies under the policy as it is into records that it did not sample.
    ///
    /// # Errors
    /// What the model and the device say.
    pub(crate) fn score_before(&self, records: &mut [Record]) -> Result<()> {
        let columns = score_tokens(&self.model, records, true, self.scoring())?;
        for (record, column) in records.iter_mut().zip(columns) {
            (record.proximal_logp, record.entropy) = (column.logp, column.entropy);
        }
        Ok(())
    }

    /// The records of a step of answers, as long as the longest there is, for a memory plan.
    pub(crate) fn longest_answers(&self) -> Result<Vec<Record>> {
        let longest = self.task.answer_bounds()?.longest;
        let mut record = Record::default();
        record.push(&[0], TokenClass::Prompt, &[]);
        record.push(&vec![0; longest.saturating_sub(1)], TokenClass::Demo, &[]);
        Ok(vec![record; self.config.rl.prompts])
    }
}

/// Whether the objective scores every completion under every context of a row.
pub(crate) fn crosses(config: &RunConfig) -> Result<bool> {
    let loss = SequenceLoss::of(&config.rl)?;
    Ok(loss.is_some_and(|loss| loss.kind == SequenceKind::InfoNce))
}

/// Refuses rows that cannot serve the objective of `rl`, before anything runs. Returns the tokens of
/// the longest answer of a file with its prompt.
///
/// # Errors
/// `Config` for a task without answers or contexts, and rows with too few of them.
pub(crate) fn check_answers(config: &RunConfig, task: &dyn Task) -> Result<usize> {
    let rl = &config.rl;
    let contexts = match crosses(config)? {
        true => Some(task.context_count()?),
        false => None,
    };
    if contexts.is_some_and(|count| count < 2) {
        let reason = "`info_nce` compares contexts, and rows have one alone";
        return Err(Error::config("rl.loss", reason));
    }
    if rl.source == SourceKey::Rollout {
        return Ok(0);
    }
    let bounds = task.answer_bounds()?;
    let fewest = SequenceLoss::of(rl)?.map_or(1, |loss| loss.fewest());
    if bounds.fewest < fewest {
        let reason = format!(
            "`{}` compares {fewest} answers of a prompt or more, and a row has {}",
            rl.loss, bounds.fewest
        );
        return Err(Error::config("rl.loss", reason));
    }
    if contexts.is_some_and(|count| (bounds.fewest, bounds.most) != (count, count)) {
        let reason = format!(
            "`info_nce` takes an answer for each context, and rows have {} to {} for {}",
            bounds.fewest,
            bounds.most,
            contexts.unwrap_or_default()
        );
        return Err(Error::config("rl.loss", reason));
    }
    Ok(bounds.longest)
}
