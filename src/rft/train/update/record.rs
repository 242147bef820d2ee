//! What the trainer keeps of a sequence: for each token who it was sampled by (the ratio is taken
//! against that log-prob), who the KL is measured to, and what the loss may single out.

use std::ops::Range;

use crate::model::Packed;
use gradus::error::Result;

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
    /// The part of it that each turn of an episode has: the number of ids when the turn's answer ended, and its
    /// reward. Empty where the reward is that of the whole sequence.
    pub turns: Vec<(usize, f32)>,
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
        // What is said later in an episode is the world's.
        let prompt = self.class.iter_mut().take_while(|class| **class == TokenClass::Prompt);
        prompt.for_each(|class| *class = TokenClass::Context);
    }

    /// The ids and classes of what stands behind its prompt, with the last token of that alone before it.
    pub(crate) fn behind_last_of_prompt(&self) -> Record {
        let asked = self.class.iter().take_while(|class| **class == TokenClass::Prompt).count();
        let first = asked.saturating_sub(1);
        let (ids, class) = (self.ids[first..].to_vec(), self.class[first..].to_vec());
        Record { ids, class, ..Record::default() }
    }

    /// Puts zeros into the columns that an update may read and sampling does not fill.
    pub(crate) fn with_columns(&mut self) {
        self.ref_logp = vec![0.0; self.ids.len()];
        self.selected = vec![0; self.ids.len()];
    }

    /// Number of tokens that the policy sampled.
    pub fn sampled(&self) -> usize {
        self.class.iter().filter(|class| **class == TokenClass::Gen).count()
    }

    /// Number of pieces that the policy sampled: the answers of an episode.
    pub fn answers(&self) -> usize {
        let begins = |t: &usize| *t == 0 || self.class[t - 1] != TokenClass::Gen;
        let sampled = (0..self.class.len()).filter(|&t| self.class[t] == TokenClass::Gen);
        sampled.filter(begins).count()
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
    /// Packs `records`, each whole.
    pub fn of(records: &[Record]) -> ScoredTokens {
        let mut all = ScoredTokens::empty();
        for record in records {
            let first = all.packed.tokens();
            all.packed.push(input(record), 0);
            all.push_rows(record, 0..0, first);
        }
        all
    }

    /// [`ScoredTokens::shared`], or [`ScoredTokens::of`].
    ///
    /// # Errors
    /// As they.
    pub(crate) fn pack(records: &[Record], shared: bool) -> Result<ScoredTokens> {
        match shared {
            true => ScoredTokens::shared(records),
            false => Ok(ScoredTokens::of(records)),
        }
    }

    /// Packs `records`; what neighbors begin with in common is there once.
    ///
    /// # Errors
    /// None that ids could cause.
    pub fn shared(records: &[Record]) -> Result<ScoredTokens> {
        let mut all = ScoredTokens::empty();
        for Run { records: run, shared } in runs(records) {
            let parent = all.packed.sequences();
            for (i, record) in records[run].iter().enumerate() {
                let first = all.packed.tokens();
                let from = if i == 0 { first } else { all.packed.span(parent).start };
                let prefix = from..from + if i == 0 { 0 } else { shared };
                match prefix.is_empty() {
                    true => all.packed.push(input(record), 0),
                    false => all.packed.push_behind(parent, shared, &input(record)[shared..])?,
                }
                all.push_rows(record, prefix, first);
            }
        }
        Ok(all)
    }

    fn empty() -> ScoredTokens {
        ScoredTokens { packed: Packed::new(), cu_seqlens: vec![0], ..Default::default() }
    }

    /// Appends the scored tokens of a record whose first tokens are in the rows `prefix` and the others
    /// from the row `first` on.
    fn push_rows(&mut self, record: &Record, prefix: Range<usize>, first: usize) {
        for t in record.scored() {
            let behind = (t - 1).checked_sub(prefix.len());
            self.rows.push(behind.map_or(prefix.start + t - 1, |at| first + at) as i32);
            self.targets.push(record.ids[t]);
        }
        self.cu_seqlens.push(self.rows.len() as i64);
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

/// What the model reads of a record.
fn input(record: &Record) -> &[i32] {
    &record.ids[..record.ids.len().saturating_sub(1)]
}

/// Neighboring records that begin with the same `shared` ids.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    records: Range<usize>,
    shared: usize,
}

/// Records, which come one by one, cut into runs so that the fewest tokens are computed. Groups are not
/// asked for: ids are compared.
#[derive(Default)]
pub(crate) struct Runs<'a> {
    /// What the model reads of each record, and how many ids of it the one before begins with, too.
    read: Vec<(&'a [i32], usize)>,
    /// The best cut of the records up to each one: what it saves, and its last run.
    best: Vec<(usize, Run)>,
    tokens: usize,
}

impl<'a> Runs<'a> {
    /// Takes in one more record.
    pub(crate) fn push(&mut self, record: &'a Record) {
        let ids = input(record);
        let before = self.read.last().map_or(&[][..], |(before, _)| before);
        let common = before.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.read.push((ids, common));
        self.tokens += ids.len();
        let end = self.read.len();
        let saved = |end: usize| if end == 0 { 0 } else { self.best[end - 1].0 };
        let last = Run { records: end - 1..end, shared: 0 };
        let (mut most, mut shared) = ((saved(end - 1), last), usize::MAX);
        // A run begins with what its neighbors, two by two, begin with at least.
        for start in (0..end - 1).rev() {
            shared = shared.min(self.read[start + 1].1);
            if shared == 0 {
                break;
            }
            let saved = saved(start) + (end - 1 - start) * shared;
            if saved > most.0 {
                most = (saved, Run { records: start..end, shared });
            }
        }
        self.best.push(most);
    }

    /// Tokens that are computed.
    pub(crate) fn computed(&self) -> usize {
        self.tokens - self.best.last().map_or(0, |best| best.0)
    }

    /// The runs in order.
    fn cut(&self) -> Vec<Run> {
        let mut cut = Vec::new();
        let mut end = self.best.len();
        while end > 0 {
            let run = self.best[end - 1].1.clone();
            end = run.records.start;
            cut.push(run);
        }
        cut.reverse();
        cut
    }
}

/// The runs of `records`.
fn runs(records: &[Record]) -> Vec<Run> {
    let mut runs = Runs::default();
    records.iter().for_each(|record| runs.push(record));
    runs.cut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(prompt: &[i32], completion: &[i32]) -> Record {
        let mut record = Record::default();
        record.push(prompt, TokenClass::Prompt, &[]);
        record.push(completion, TokenClass::Gen, &[]);
        record
    }

    #[test]
    fn what_neighbors_begin_with_is_there_once() {
        let records = [
            record(&[1, 2, 3], &[4, 5]),
            record(&[1, 2, 3], &[4, 6, 7]),
            record(&[1, 2, 3], &[8]),
            record(&[9], &[1, 1]),
        ];
        let scored = ScoredTokens::shared(&records).unwrap();
        // The whole first one, then what follows 1 2 3; the last token is never read.
        assert_eq!(scored.packed.ids, [1, 2, 3, 4, 4, 6, 9, 1]);
        assert_eq!(scored.packed.positions, [0, 1, 2, 3, 3, 4, 0, 1]);
        assert_eq!(scored.packed.cu_seqlens, [0, 4, 6, 6, 8]);
        assert_eq!(scored.packed.prefixes, [0..0, 0..3, 0..3, 0..0]);
        // The first tokens of all three completions are predicted by one row.
        assert_eq!(scored.rows, [2, 3, 2, 4, 5, 2, 6, 7]);
        let whole = ScoredTokens::of(&records);
        assert_eq!((scored.targets, scored.cu_seqlens), (whole.targets, whole.cu_seqlens));
        assert!(scored.packed.shares() && !whole.packed.shares());
    }

    #[test]
    fn runs_compute_the_fewest_tokens() {
        let shared = |records: &[Record]| -> Vec<(usize, usize)> {
            runs(records).into_iter().map(|run| (run.records.len(), run.shared)).collect()
        };
        // Two prompts of one template: a run for each saves more than one for both.
        let (a, b) = (record(&[1, 2, 3, 4, 5], &[0, 0]), record(&[1, 2, 6, 7, 8], &[0, 0]));
        let two = [a.clone(), a.clone(), a.clone(), b.clone(), b.clone(), b.clone()];
        assert_eq!(shared(&two), [(3, 6), (3, 6)]);
        assert_eq!(shared(&[a.clone(), b.clone()]), [(2, 2)]);
        assert_eq!(shared(&[a.clone(), record(&[7], &[1]), a.clone()]), [(1, 0); 3]);
        assert_eq!(shared(&[]), []);
        assert_eq!(shared(&[Record::default(), Record::default()]), [(1, 0); 2]);
    }

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
