//! Tasks that need no download: prompts, demonstrations and a verifier, generated from the seed.

#[cfg(feature = "hf")]
pub(crate) mod dataset;
#[cfg(feature = "hf")]
mod mixture;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::reward::{Reward, RewardInput, Right};
use crate::text::{Codec, Exchange};
use gradus::error::{Error, Result};
use gradus::rng::{Purpose, Rng};

/// A character-level vocabulary; the last id ends a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocab {
    chars: Vec<char>,
    stop: [i32; 1],
}

impl Vocab {
    /// One id per character of `chars`, then the end of sequence.
    pub fn new(chars: &str) -> Vocab {
        let chars: Vec<char> = chars.chars().collect();
        Vocab { stop: [chars.len() as i32], chars }
    }
}

impl Codec for Vocab {
    fn len(&self) -> usize {
        self.chars.len() + 1
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let id = |c: char| self.chars.iter().position(|&known| known == c).map(|i| i as i32);
        text.chars()
            .map(|c| {
                let known: String = self.chars.iter().collect();
                id(c).ok_or_else(|| {
                    Error::invalid("encode", "text", format!("`{c}`"), format!("one of `{known}`"))
                })
            })
            .collect()
    }

    fn decode(&self, ids: &[i32]) -> Result<String> {
        Ok(ids.iter().map_while(|&id| self.chars.get(id as usize)).collect())
    }

    fn stops(&self) -> &[i32] {
        &self.stop
    }
}

/// A problem to solve.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What the model reads.
    pub text: String,
    /// A chat template made the text, with every special token it needs.
    pub rendered: bool,
    /// What was asked, without the template around it, for people to read; none where that is the
    /// text itself.
    pub question: Option<String>,
    /// The data row behind it, for rewards.
    pub fields: Arc<Map<String, Value>>,
}

impl Prompt {
    /// Plain text without a data row.
    pub fn plain(text: impl Into<String>) -> Prompt {
        Prompt { text: text.into(), rendered: false, question: None, fields: Arc::default() }
    }
}

/// What was said last.
pub(crate) fn last_content(messages: &[Value]) -> &str {
    messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default()
}

/// A problem with one right answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Demo {
    /// The problem.
    pub prompt: Prompt,
    /// An answer the verifier accepts.
    pub answer: String,
    /// How it goes on, where it is an episode of several turns.
    pub then: Vec<Exchange>,
}

/// An answer that a row already has.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredAnswer {
    /// The text, without an end of sequence.
    pub text: String,
    /// What it is worth; NaN if nobody knows.
    pub score: f32,
}

/// What is true of the answers of every training row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerBounds {
    /// Tokens of the longest answer with its prompt and its end.
    pub longest: usize,
    /// Fewest answers of a row.
    pub fewest: usize,
    /// Most answers of a row.
    pub most: usize,
}

/// Prompts, demonstrations and the verifier of a task. Train and held-out prompts never meet.
pub trait Task: Send + Sync {
    /// Text to ids and back.
    fn codec(&self) -> &dyn Codec;
    /// Ids of a prompt.
    fn encode(&self, prompt: &Prompt) -> Result<Vec<i32>> {
        match prompt.rendered {
            true => self.codec().encode_rendered(&prompt.text),
            false => self.codec().encode(&prompt.text),
        }
    }
    /// Training prompt number `index`; the stream is endless.
    fn train_prompt(&self, index: u64) -> Prompt;
    /// Demonstration number `index` of the training split; the stream is endless.
    ///
    /// # Errors
    /// `Config` for a task without demonstrations.
    fn demo(&self, index: u64) -> Result<Demo>;
    /// Training prompt number `index` with a demonstration.
    ///
    /// # Errors
    /// `Config` for a task without demonstrations.
    fn train_demo(&self, index: u64) -> Result<Demo>;
    /// How many different demonstrations there are; `None` if they never end.
    fn demos(&self) -> Option<usize> {
        None
    }
    /// Tokens of the longest demonstration, prompt and end included.
    ///
    /// # Errors
    /// `Config` for a task with a demonstration that [`Task::demo`] would refuse.
    fn longest_demo(&self) -> Result<usize> {
        let (prompt, answer) = self.lengths();
        self.demo(0).map(|_| prompt + answer)
    }
    /// Training prompt number `index`, with the answers that its row has.
    ///
    /// # Errors
    /// `Config` for a task whose rows have none.
    fn answers(&self, index: u64) -> Result<(Prompt, Vec<ScoredAnswer>)> {
        let _ = index;
        let reason = "`data`, but there are no answers with scores: name their file as data.path";
        Err(Error::config("rl.source", reason))
    }
    /// What is true of the answers of every training row.
    ///
    /// # Errors
    /// `Config` for a task with a row whose answers [`Task::answers`] would refuse.
    fn answer_bounds(&self) -> Result<AnswerBounds> {
        self.answers(0).map(|_| AnswerBounds { longest: 0, fewest: 0, most: 0 })
    }
    /// The prompts that the row of training prompt `index` has for one question, in different contexts.
    ///
    /// # Errors
    /// `Config` for a task whose rows have none.
    fn contexts(&self, index: u64) -> Result<Vec<Prompt>> {
        let _ = index;
        Err(Error::config(
            "rl.loss",
            "`info_nce` needs rows with `contexts`, and the task has none",
        ))
    }
    /// How many contexts every training row has.
    ///
    /// # Errors
    /// `Config` for a task with a row whose contexts [`Task::contexts`] would refuse, and for rows with
    /// more and fewer of them.
    fn context_count(&self) -> Result<usize> {
        self.contexts(0).map(|contexts| contexts.len())
    }
    /// At most `count` different held-out prompts.
    fn heldout(&self, count: usize) -> Vec<Prompt>;
    /// At most `count` prompts of each set of `data.suites`, with their names.
    fn suites(&self, count: usize) -> Vec<(String, Vec<Prompt>)> {
        let _ = count;
        Vec::new()
    }
    /// A prompt of one's own: what a person said last, after what was said before.
    fn converse(&self, messages: &[Value]) -> Result<Prompt>;
    /// Scores completions: 1 for a right one.
    fn verifier(&self) -> Arc<dyn Reward>;
    /// Longest prompt, and longest answer with its end, in tokens.
    fn lengths(&self) -> (usize, usize);
}

/// Countdown-lite: `4729=15:` asks for an expression over some of the digits, each used at most
/// once, that evaluates from left to right to the target: `9+4+2`, `4+9+2`, `7+9+2+...`. Most
/// prompts have many right answers, so a policy can get better than its demonstrations.
#[derive(Clone)]
pub struct Countdown {
    codec: Arc<dyn Codec>,
    verifier: Option<Arc<dyn Reward>>,
    converse: Option<Converse>,
    seed: u64,
    digits: usize,
    operators: Vec<char>,
    targets: std::ops::RangeInclusive<i64>,
}

/// How a conversation becomes a prompt.
pub type Converse = Arc<dyn Fn(&[Value]) -> Result<Prompt> + Send + Sync>;

/// One prompt in this many is held out, chosen by a hash of its text.
const HELDOUT_SHARE: u32 = 8;

impl Countdown {
    /// `digits` digits 1-9, operators out of `+-*`, targets in `targets`.
    pub fn new(
        seed: u64,
        digits: usize,
        operators: &str,
        targets: std::ops::RangeInclusive<i64>,
    ) -> Result<Countdown> {
        if !(2..=9).contains(&digits) {
            return Err(Error::config("task.digits", format!("{digits} is not in 2..=9")));
        }
        if operators.is_empty() || operators.chars().any(|c| !"+-*".contains(c)) {
            let reason = format!("`{operators}` is not a selection of `+-*`");
            return Err(Error::config("task.operators", reason));
        }
        if *targets.start() < 0 || targets.end() > &999 || targets.start() >= targets.end() {
            let reason = format!("{targets:?} is not a range within 0..=999");
            return Err(Error::config("task.max_target", reason));
        }
        let codec = Arc::new(Vocab::new(&format!("0123456789{operators}=:")));
        let operators = operators.chars().collect();
        Ok(Countdown { codec, verifier: None, converse: None, seed, digits, operators, targets })
    }

    /// The task in another vocabulary, with another verifier, or with another way to write prompts. What
    /// is `None` stays its own.
    pub fn with(
        self,
        codec: Option<Arc<dyn Codec>>,
        verifier: Option<Arc<dyn Reward>>,
        converse: Option<Converse>,
    ) -> Countdown {
        let codec = codec.unwrap_or(self.codec);
        Countdown { codec, verifier, converse, ..self }
    }

    /// A random problem and the expression it was made from.
    fn draw(&self, rng: &mut Rng) -> Demo {
        loop {
            let digits: Vec<i64> = (0..self.digits).map(|_| 1 + rng.below(9) as i64).collect();
            let mut order: Vec<usize> = (0..self.digits).collect();
            rng.shuffle(&mut order);
            let used = 2 + rng.below(self.digits - 1);
            let mut value = digits[order[0]];
            let mut answer = value.to_string();
            for &i in &order[1..used] {
                let op = self.operators[rng.below(self.operators.len())];
                // `Countdown::new` lets no other operator in.
                value = apply(value, op, digits[i]).unwrap_or(i64::MIN);
                answer.push(op);
                answer.push_str(&digits[i].to_string());
            }
            if self.targets.contains(&value) {
                let digits: String = digits.iter().map(|d| d.to_string()).collect();
                let prompt = Prompt::plain(format!("{digits}={value}:"));
                return Demo { prompt, answer, then: Vec::new() };
            }
        }
    }

    fn draw_where(&self, rng: &mut Rng, heldout: bool) -> Demo {
        loop {
            let demo = self.draw(rng);
            if is_heldout(&demo.prompt.text) == heldout {
                return demo;
            }
        }
    }

    fn stream(&self, kind: u32, index: u64) -> Rng {
        Rng::new(self.seed, Purpose::Data, [kind, index as u32, (index >> 32) as u32])
    }
}

impl Countdown {
    /// Whether `answer` solves `prompt`.
    pub fn is_correct(&self, prompt: &str, answer: &str) -> bool {
        let Some((digits, target)) = prompt.trim_end_matches(':').split_once('=') else {
            return false;
        };
        let Ok(target) = target.parse::<i64>() else { return false };
        evaluate(answer, digits, &self.operators) == Some(target)
    }
}

impl Task for Countdown {
    fn codec(&self) -> &dyn Codec {
        self.codec.as_ref()
    }

    fn train_prompt(&self, index: u64) -> Prompt {
        self.draw_where(&mut self.stream(0, index), false).prompt
    }

    fn demo(&self, index: u64) -> Result<Demo> {
        Ok(self.draw_where(&mut self.stream(1, index), false))
    }

    fn train_demo(&self, index: u64) -> Result<Demo> {
        Ok(self.draw_where(&mut self.stream(0, index), false))
    }

    fn converse(&self, messages: &[Value]) -> Result<Prompt> {
        match &self.converse {
            Some(converse) => converse(messages),
            None => Ok(Prompt::plain(last_content(messages))),
        }
    }

    fn heldout(&self, count: usize) -> Vec<Prompt> {
        let (mut seen, mut prompts) = (HashSet::new(), Vec::new());
        for index in 0..200 * count as u64 {
            if prompts.len() == count {
                break;
            }
            let prompt = self.draw_where(&mut self.stream(2, index), true).prompt;
            if seen.insert(prompt.text.clone()) {
                prompts.push(prompt);
            }
        }
        prompts
    }

    fn verifier(&self) -> Arc<dyn Reward> {
        if let Some(verifier) = &self.verifier {
            return verifier.clone();
        }
        let task = self.clone();
        Arc::new(Right(move |input: &RewardInput<'_>| {
            input.finished && task.is_correct(input.prompt, input.completion)
        }))
    }

    fn lengths(&self) -> (usize, usize) {
        (self.digits + 2 + self.targets.end().to_string().len(), 2 * self.digits)
    }
}

/// The result, if `op` is an operator.
fn apply(left: i64, op: char, right: i64) -> Option<i64> {
    match op {
        '+' => Some(left + right),
        '-' => Some(left - right),
        '*' => Some(left * right),
        _ => None,
    }
}

/// Value of `answer` from left to right, if it is digit (operator digit)* over `digits`, each used
/// at most as often as it is given.
fn evaluate(answer: &str, digits: &str, operators: &[char]) -> Option<i64> {
    let mut left = [0u8; 10];
    for c in digits.chars() {
        left[c.to_digit(10)? as usize] += 1;
    }
    let mut take = |c: Option<char>| {
        let digit = c?.to_digit(10)? as usize;
        left[digit] = left[digit].checked_sub(1)?;
        Some(digit as i64)
    };
    let mut chars = answer.chars();
    let mut value = take(chars.next())?;
    while let Some(op) = chars.next() {
        if !operators.contains(&op) {
            return None;
        }
        value = apply(value, op, take(chars.next())?)?;
    }
    Some(value)
}

/// FNV-1a of the text decides the split, so that it depends on nothing but the prompt.
fn is_heldout(text: &str) -> bool {
    let hash = text.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)).is_multiple_of(HELDOUT_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifier_accepts_every_valid_answer_and_nothing_else() {
        let task = Countdown::new(0, 4, "+-", 0..=30).unwrap();
        let prompt = "4729=15:";
        for good in ["9+4+2", "4+2+9", "2+9+4", "9-2-4+7+5"].iter().take(3) {
            assert!(task.is_correct(prompt, good), "{good}");
        }
        for bad in ["", "9+6", "9+4+", "+9+4+2", "9+4+2+", "7+8", "9+4+4-2", "15", "9*4", "4729"] {
            assert!(!task.is_correct(prompt, bad), "{bad}");
        }
    }

    #[test]
    fn splits_are_disjoint_and_demos_are_right() {
        let task = Countdown::new(3, 3, "+-*", 0..=99).unwrap();
        let heldout: HashSet<String> = task.heldout(100).into_iter().map(|p| p.text).collect();
        assert_eq!(heldout.len(), 100);
        for i in 0..2000 {
            let demo = task.demo(i).unwrap();
            assert!(task.is_correct(&demo.prompt.text, &demo.answer), "{demo:?}");
            assert!(!heldout.contains(&demo.prompt.text));
            assert!(!heldout.contains(&task.train_prompt(i).text));
            let (prompt, answer) = task.lengths();
            assert!(demo.prompt.text.len() <= prompt && demo.answer.len() < answer + 1);
        }
    }

    #[test]
    fn vocabulary_round_trips() {
        let vocab = Vocab::new("01+=:");
        let ids = vocab.encode("1+0=1:").unwrap();
        assert_eq!(vocab.decode(&ids).unwrap(), "1+0=1:");
        assert_eq!(vocab.decode(&[1, vocab.stops()[0], 1]).unwrap(), "1");
        let error = vocab.encode("1x").unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }
}
