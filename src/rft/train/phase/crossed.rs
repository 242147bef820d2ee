//! Completions under prompts that they were not written for.

use crate::train::config::SourceKey;
use crate::train::phase::sequence::mean_log_ratio;
use crate::train::trainer::Trainer;
use crate::train::update::record::{Record, TokenClass};
use crate::train::update::step::score_records;
use gradus::dtype::Float;
use gradus::error::Result;

impl<T: Float> Trainer<T> {
    /// Every completion of a row under every context of it: n·n records for each n completions, row by
    /// row of the matrix log π(completion j | context i). Those that somebody sampled know their
    /// log-probs, but a policy's are a pure function of the record, so that all are scored alike.
    ///
    /// # Errors
    /// What scoring meets.
    pub(super) fn matrices(&self, records: &[Record]) -> Result<Vec<Record>> {
        let rl = &self.config.rl;
        let samples = if rl.source == SourceKey::Data { 1 } else { rl.group };
        let contexts = (records.len() / (rl.prompts * samples)).max(1);
        let mut crossed = Vec::new();
        for row in records.chunks(contexts * samples) {
            for sample in 0..samples {
                let own: Vec<&Record> = row.iter().skip(sample).step_by(samples).collect();
                let group = (crossed.len() / (contexts * contexts)) as u32;
                for context in &own {
                    let under =
                        |completion: &&Record| Record { group, ..under(context, completion) };
                    crossed.extend(own.iter().map(under));
                }
            }
        }
        self.score_before(&mut crossed)?;
        Ok(crossed)
    }

    /// The estimate of KL(π‖π_ref) that `kto` takes for its zero. From rollouts: the mean log-ratio of
    /// what the policy wrote. From a file, where nobody sampled: that of each answer under the prompt
    /// of the one before it (Ethayarajh et al. 2024, arXiv:2402.01306, §4.1).
    ///
    /// # Errors
    /// What scoring meets.
    pub(super) fn kl_estimate(&mut self, records: &[Record], logp: &[Vec<f32>]) -> Result<f64> {
        if self.config.rl.source == SourceKey::Rollout {
            return Ok(mean_log_ratio(records, logp));
        }
        let next = records.iter().cycle().skip(1);
        let mut crossed: Vec<Record> = records.iter().zip(next).map(|(a, b)| under(a, b)).collect();
        self.score_reference(&mut crossed)?;
        let logp = score_records(&self.model, &crossed, true, self.scoring())?;
        Ok(mean_log_ratio(&crossed, &logp))
    }
}

/// The completion of one record behind the prompt of another.
fn under(prompt: &Record, completion: &Record) -> Record {
    let asked = prompt.class.iter().take_while(|class| **class == TokenClass::Prompt).count();
    let mut record = Record { finished: completion.finished, ..Record::default() };
    record.push(&prompt.ids[..asked], TokenClass::Prompt, &[]);
    for t in completion.scored() {
        record.push(&completion.ids[t..t + 1], completion.class[t], &[]);
    }
    record
}
