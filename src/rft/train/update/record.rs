//! What the trainer keeps of a sequence: for each token who it was sampled by (the ratio is taken
//! against that log-prob), who the KL is measured to, and what the loss may single out.

use crate::model::Packed;

/// What a token is. All classes but [`TokenClass::Prompt`] carry loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TokenClass {
    /// Given to the model.
    Prompt = 0,
    /// Sampled by the policy.
    Gen = 1,
    /// Copied from a demonstration, or from another answer of a file.
    Demo = 2,
    /// Reasoning of a demonstration, up to its closing mark.
    Reasoning = 3,
    /// Given to the model in a demonstration, and learned too.
    Context = 4,
}

impl TokenClass {
    /// The class of number `n`, if it is one.
    pub fn of(n: u8) -> Option<TokenClass> {
        let all = [
            TokenClass::Prompt,
            TokenClass::Gen,
            TokenClass::Demo,
            TokenClass::Reasoning,
            TokenClass::Context,
        ];
        all.into_iter().find(|class| *class as u8 == n)
    }

    /// Whether tokens of this class are scored and carry loss.
    pub fn is_scored(self) -> bool {
        match self {
            TokenClass::Prompt => false,
            TokenClass::Gen | TokenClass::Demo | TokenClass::Reasoning | TokenClass::Context => {
                true
            }
        }
    }
}

/// One sequence with everything the losses may ask for. Vectors run over all tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Token classes.
    pub class: Vec<TokenClass>,
    /// Log-prob under the policy that sampled the token; 0 where nobody did.
    pub sampler_logp: Vec<f32>,
    /// Log-prob under the policy before the step's updates, which ratios are taken against; empty where
    /// that is the sampler's.
    pub proximal_logp: Vec<f32>,
    /// Entropy, in nats, of the distribution the token was drawn from, or of the policy's before the
    /// step's updates; 0 where neither is known.
    pub entropy: Vec<f32>,
    /// Log-prob under the reference; empty if no KL is asked for.
    pub ref_logp: Vec<f32>,
    /// Weight of the token's surrogate; empty if all are 1.
    pub token_weight: Vec<f32>,
    /// Detached importance weight of the token's surrogate; empty if all are 1.
    pub is_weight: Vec<f32>,
    /// 1 where the penalty of KL-Cov applies; empty if the loss has none.
    pub selected: Vec<u8>,
    /// Sequence reward; NaN if the reward function abstained or failed.
    pub reward: f32,
    /// Index of the prompt's group in the batch.
    pub group: u32,
    /// Whether the sequence ended by itself.
    pub finished: bool,
    /// Number of its prompt in the task's stream.
    pub row: u64,
    /// Updates that the run had made when the sequence was sampled.
    pub version: u64,
    /// What the reward function said of it beside the reward, for example an error message.
    pub feedback: Option<String>,
}

impl Record {
    /// Appends tokens of one class with their log-probs (`&[]` where nobody sampled).
    pub fn push(&mut self, ids: &[i32], class: TokenClass, logp: &[f32]) {
        debug_assert!(logp.is_empty() || logp.len() == ids.len());
        self.ids.extend_from_slice(ids);
        self.class.resize(self.ids.len(), class);
        self.sampler_logp.extend_from_slice(logp);
        self.sampler_logp.resize(self.ids.len(), 0.0);
        self.entropy.resize(self.ids.len(), 0.0);
    }

    /// Log-probs under the policy before the step's updates.
    pub fn old_logp(&self) -> &[f32] {
        match self.proximal_logp.is_empty() {
            true => &self.sampler_logp,
            false => &self.proximal_logp,
        }
    }

    /// Makes the prompt a part of what is learned.
    pub(crate) fn learn_prompt(&mut self) {
        let prompt = self.class.iter_mut().filter(|class| **class == TokenClass::Prompt);
        prompt.for_each(|class| *class = TokenClass::Context);
    }

    /// Number of tokens that the policy sampled.
    pub fn sampled(&self) -> usize {
        self.class.iter().filter(|class| **class == TokenClass::Gen).count()
    }

    /// Positions of the scored tokens. The first token has no context and is never scored.
    pub fn scored(&self) -> impl Iterator<Item = usize> + '_ {
        (1..self.ids.len()).filter(|&t| self.class[t].is_scored())
    }
}

/// The scored tokens of several records, packed: what the losses work on.
#[derive(Clone, Debug, Default)]
pub struct ScoredTokens {
    /// The model's input: every record without its last token.
    pub packed: Packed,
    /// `[N]` row of the hidden states that predicts each scored token.
    pub rows: Vec<i32>,
    /// `[N]` ids of the scored tokens.
    pub targets: Vec<i32>,
    /// `[B + 1]` offsets of the records' scored tokens.
    pub cu_seqlens: Vec<i64>,
}

impl ScoredTokens {
    /// Packs `records`.
    pub fn of(records: &[Record]) -> ScoredTokens {
        let mut all =
            ScoredTokens { packed: Packed::new(), cu_seqlens: vec![0], ..Default::default() };
        for record in records {
            let first = all.packed.tokens();
            all.packed.push(&record.ids[..record.ids.len().saturating_sub(1)], 0);
            for t in record.scored() {
                all.rows.push((first + t - 1) as i32);
                all.targets.push(record.ids[t]);
            }
            all.cu_seqlens.push(all.rows.len() as i64);
        }
        all
    }

    /// A per-token column of the records at the scored tokens.
    pub fn gather<E: Copy>(&self, records: &[Record], column: impl Fn(&Record) -> &[E]) -> Vec<E> {
        records.iter().flat_map(|r| r.scored().map(|t| column(r)[t]).collect::<Vec<_>>()).collect()
    }

    /// A per-token column of the records at the scored tokens; none if a record lacks the column.
    pub fn gather_all<E: Copy>(
        &self,
        records: &[Record],
        column: impl Fn(&Record) -> &[E],
    ) -> Option<Vec<E>> {
        let there = records.iter().all(|r| column(r).len() == r.ids.len());
        there.then(|| self.gather(records, column))
    }

    /// Number of scored tokens.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is scored.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scored_tokens_are_predicted_by_the_row_before() {
        let mut a = Record::default();
        a.push(&[5, 6], TokenClass::Prompt, &[]);
        a.push(&[7, 8], TokenClass::Gen, &[-1.0, -2.0]);
        let mut b = Record::default();
        b.push(&[9], TokenClass::Gen, &[-0.5]);
        b.push(&[1], TokenClass::Prompt, &[]);
        b.push(&[2], TokenClass::Demo, &[]);
        let records = [a, b];
        let scored = ScoredTokens::of(&records);
        assert_eq!(scored.packed.ids, vec![5, 6, 7, 9, 1]);
        assert_eq!(scored.rows, vec![1, 2, 4]);
        assert_eq!(scored.targets, vec![7, 8, 2]);
        assert_eq!(scored.cu_seqlens, vec![0, 2, 3]);
        assert_eq!(scored.gather(&records, |r| &r.sampler_logp), vec![-1.0, -2.0, 0.0]);
        assert_eq!(scored.gather_all(&records, |r| &r.ref_logp), None);
    }
}
