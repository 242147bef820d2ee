//! `rounds`: a policy that goes on with what it said itself (MOTIF, arXiv:2507.02851).
//!
//! An answer of the first round is what a run learns from. It is continued several times: the next round
//! reads a fresh prompt, which `env.carry` writes from the question and the answer before, and so on to the
//! last round. What rewards say of the last answers, on average, is the reward of the first. Later rounds
//! carry no loss, so that nothing of them is kept.
//!
//! Continuation `c` of sample `s` draws from the stream of sample `samples + s·continuations + c`, one round
//! behind the other. With one round this is sampling of completions, bit for bit.

use super::Limits;
use super::episode::{Played, SampleItems};
use crate::train::rollout::{Rollout, WorkItem};
use crate::train::task::{Prompt, Task};
use gradus::error::Result;

#[cfg(feature = "hf")]
use {crate::data::UserTemplate, serde_json::json};

/// How a run goes through rounds.
pub(crate) struct Rounds {
    /// Continuations of a sample while training; evaluations have one.
    pub continuations: usize,
    #[cfg(feature = "hf")]
    carry: UserTemplate,
    /// A system message before every prompt.
    #[cfg(feature = "hf")]
    system: String,
}

/// The answer that a continuation comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LastAnswer {
    pub text: String,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// A sample with what its continuations came to.
pub(crate) struct Continued {
    pub first: Rollout,
    pub last: Vec<LastAnswer>,
    pub played: Played,
}

/// What goes through rounds.
pub(crate) struct Play<'a> {
    pub rounds: &'a Rounds,
    pub task: &'a dyn Task,
    pub limits: Limits,
    /// Continuations of a sample.
    pub continuations: usize,
    /// The text of an answer.
    pub decode: &'a dyn Fn(&[i32]) -> Result<String>,
    /// Completions of items behind contexts.
    pub sample: SampleItems<'a>,
}

/// A continuation on its way.
struct Line {
    /// Number of its sample.
    of: usize,
    stream: (u32, u32),
    drawn: usize,
    answer: LastAnswer,
}

impl Rounds {
    /// # Errors
    /// `Format` for a `carry` that is no template.
    #[cfg(feature = "hf")]
    pub fn new(carry: &str, continuations: usize, system: &str) -> Result<Rounds> {
        let carry = UserTemplate::new(carry, "template env.carry")?;
        Ok(Rounds { continuations, carry, system: system.into() })
    }

    /// # Errors
    /// `Config`: there are no templates.
    #[cfg(not(feature = "hf"))]
    pub fn new(_: &str, _: usize, _: &str) -> Result<Rounds> {
        let reason = "`rounds` needs templates, which come with the cargo feature `hf`";
        Err(gradus::error::Error::config("env.kind", reason))
    }

    /// What the next round reads: `env.carry` over the row's fields, with the question as `prompt` and the
    /// last answer as `completion`, written as a user's message.
    ///
    /// # Errors
    /// `Format` for a field that the template names and the row lacks.
    #[cfg(feature = "hf")]
    pub fn prompt(&self, task: &dyn Task, first: &Prompt, answer: &str) -> Result<Prompt> {
        let mut row = (*first.fields).clone();
        let asked = first.question.as_ref().unwrap_or(&first.text);
        row.insert("prompt".into(), asked.as_str().into());
        row.insert("completion".into(), answer.into());
        let asks = json!({ "role": "user", "content": self.carry.render(&row)? });
        let system = json!({ "role": "system", "content": self.system });
        let messages: Vec<_> =
            [system, asks].into_iter().skip(self.system.is_empty() as usize).collect();
        task.converse(&messages)
    }

    /// There are none.
    #[cfg(not(feature = "hf"))]
    pub fn prompt(&self, _: &dyn Task, first: &Prompt, _: &str) -> Result<Prompt> {
        Ok(first.clone())
    }
}

/// `samples` of each prompt with their continuations, in order.
///
/// # Errors
/// What sampling and the template of `env.carry` say. A later round whose prompt is too long fails its
/// sample and is no error.
pub(crate) fn play_rounds(
    play: &Play<'_>,
    prompts: &[Prompt],
    prompt_ids: &[Vec<i32>],
    samples: usize,
) -> Result<Vec<Continued>> {
    let mut all = play.first(prompt_ids, samples)?;
    let mut lines = play.lines(&all, samples)?;
    for round in 2..=play.limits.turns {
        play.next(round, prompts, samples, &mut all, &mut lines)?;
    }
    for line in lines {
        all[line.of].last.push(line.answer);
    }
    Ok(all)
}

impl Play<'_> {
    fn first(&self, prompt_ids: &[Vec<i32>], samples: usize) -> Result<Vec<Continued>> {
        let item = |i: usize| {
            let (context, sample) = (i / samples, i % samples);
            let stream = (context as u32, sample as u32);
            WorkItem { context, stream, drawn: 0, allowed: self.limits.answer }
        };
        let items: Vec<WorkItem> = (0..prompt_ids.len() * samples).map(item).collect();
        let first = (self.sample)(prompt_ids, &items)?;
        let continued = |first: Rollout| {
            let transcript = (self.decode)(&first.tokens)?;
            let played = Played { turns: 1, transcript, ..Played::default() };
            Ok(Continued { first, last: Vec::new(), played })
        };
        first.into_iter().map(continued).collect()
    }

    /// The continuations, before they go on.
    fn lines(&self, all: &[Continued], samples: usize) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for (of, Continued { first, .. }) in all.iter().enumerate() {
            let text = (self.decode)(&first.tokens)?;
            let answer = LastAnswer { text, finished: first.finished };
            let (prompt, sample) = ((of / samples) as u32, of % samples);
            lines.extend((0..self.continuations).map(|c| Line {
                of,
                stream: (prompt, (samples + sample * self.continuations + c) as u32),
                drawn: 0,
                answer: answer.clone(),
            }));
        }
        Ok(lines)
    }

    /// One more round of all continuations that still go on.
    fn next(
        &self,
        round: usize,
        prompts: &[Prompt],
        samples: usize,
        all: &mut [Continued],
        lines: &mut [Line],
    ) -> Result<()> {
        let room = self.task.lengths().0 + self.limits.tokens - self.limits.answer;
        let (mut contexts, mut items, mut asked) = (Vec::<Vec<i32>>::new(), Vec::new(), Vec::new());
        let mut said: Option<(usize, &str)> = None;
        for (i, line) in lines.iter().enumerate() {
            let played = &mut all[line.of].played;
            // Continuations of one sample that said the same have one context.
            if said != Some((line.of, line.answer.text.as_str())) {
                let first = &prompts[line.of / samples];
                let prompt = self.rounds.prompt(self.task, first, &line.answer.text)?;
                let ids = self.task.encode(&prompt)?;
                if ids.is_empty() || ids.len() > room {
                    let length = ids.len();
                    played.failure.get_or_insert_with(|| {
                        format!(
                            "round {round} has a prompt of {length} tokens, expected 1 to {room}"
                        )
                    });
                }
                if played.failure.is_none() {
                    contexts.push(ids);
                    said = Some((line.of, &line.answer.text));
                }
            }
            if played.failure.is_none() {
                let (context, allowed) = (contexts.len() - 1, self.limits.answer);
                items.push(WorkItem { context, stream: line.stream, drawn: line.drawn, allowed });
                asked.push(i);
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        for (i, rollout) in asked.into_iter().zip((self.sample)(&contexts, &items)?) {
            let (c, line) = (i % self.continuations, &mut lines[i]);
            line.drawn += rollout.tokens.len();
            let text = (self.decode)(&rollout.tokens)?;
            if c == 0 {
                let played = &mut all[line.of].played;
                played.turns = round;
                played.transcript += &format!("\n{text}");
            }
            line.answer = LastAnswer { text, finished: rollout.finished };
        }
        Ok(())
    }
}

/// Rounds that are as long as the limits allow, on a device that executes nothing.
///
/// # Errors
/// What sampling says.
pub(crate) fn play_longest(
    play: &Play<'_>,
    prompt_ids: &[Vec<i32>],
    samples: usize,
) -> Result<Vec<Rollout>> {
    let first = play.first(prompt_ids, samples)?;
    let Limits { turns, tokens, answer } = play.limits;
    let later = prompt_ids.iter().map(|ids| [&ids[..], &vec![0; tokens - answer]].concat());
    let later: Vec<Vec<i32>> = later.collect();
    // In the second round the continuations of a sample share a context; later ones have their own.
    let shares = [play.continuations, 1];
    for &share in shares.iter().take(turns - 1) {
        let count = prompt_ids.len() * samples * play.continuations;
        let item = |i: usize| {
            let stream = ((i / (samples * play.continuations)) as u32, i as u32);
            WorkItem { context: i / share, stream, drawn: 0, allowed: answer }
        };
        let items: Vec<WorkItem> = (0..count).map(item).collect();
        let contexts: Vec<Vec<i32>> = (0..count / share)
            .map(|i| later[i * share / (samples * play.continuations)].clone())
            .collect();
        (play.sample)(&contexts, &items)?;
    }
    Ok(first.into_iter().map(|continued| continued.first).collect())
}
