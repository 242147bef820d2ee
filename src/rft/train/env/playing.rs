//! A trainer that plays: its limits, and episodes or rounds in the place of completions.

use std::sync::PoisonError;

use super::episode::{Limits, Played, Players, play, play_longest};
use super::rounds::{self, Rounds, play_rounds};
use super::{World, episode::SampleItems};
use crate::train::rollout::{Hooks, Rollout, RolloutKey, Sampling, WorkItem, rollout_items};
use crate::train::task::Prompt;
use crate::train::trainer::{Sampled, Trainer, ends_with};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::rng::Purpose;

impl Sampled {
    /// The turns of each episode as those of its record: how many ids there were when an answer ended, and
    /// what the turn was worth.
    pub(crate) fn turns(&self) -> Vec<Vec<(usize, f32)>> {
        let prompts = self.prompt_ids.iter().zip(&self.rollouts);
        let lengths = prompts.flat_map(|(ids, all)| std::iter::repeat_n(ids.len(), all.len()));
        let of = |(before, played): (usize, &Played)| {
            played.rewards.iter().map(|&(end, reward)| (before + end, reward)).collect()
        };
        lengths.zip(&self.played).map(of).collect()
    }
}

impl<T: Float> Trainer<T> {
    fn limits(&self) -> Limits {
        self.config.env.limits(self.max_new_tokens())
    }

    /// Most tokens of a sequence behind its prompt, whoever they are from.
    pub(crate) fn most_behind(&self) -> usize {
        match &self.world {
            // Of rounds the first is kept.
            None => self.max_new_tokens(),
            Some(_) => self.limits().tokens,
        }
    }

    /// Most tokens that stand between the longest prompt and what is sampled next.
    pub(crate) fn most_between(&self) -> usize {
        let Limits { tokens, answer, .. } = self.limits();
        match (&self.world, &self.rounds) {
            (Some(_), _) => tokens,
            (None, Some(_)) => tokens - answer,
            (None, None) if self.config.rl.prefix_samples > 0 => answer.saturating_sub(1),
            (None, None) => 0,
        }
    }

    /// Most tokens that are sampled for a sequence.
    pub(crate) fn most_sampled(&self) -> usize {
        let Limits { turns, tokens, answer } = self.limits();
        match &self.world {
            None => answer,
            Some(_) => turns.saturating_mul(answer).min(tokens),
        }
    }

    /// Prompts with their ids, of which nothing is sampled yet.
    pub(crate) fn asked(&self, prompts: Vec<Prompt>) -> Result<Sampled> {
        let prompt_ids = prompts.iter().map(|p| self.task.encode(p)).collect::<Result<Vec<_>>>()?;
        Ok(Sampled { prompts, prompt_ids, ..Sampled::default() })
    }

    /// Calls `run` with what samples items behind contexts.
    pub(crate) fn with_sampler<R>(
        &self,
        sampling: &Sampling,
        key: RolloutKey,
        run: impl FnOnce(SampleItems<'_>) -> Result<R>,
    ) -> Result<R> {
        let (codec, stop) = (self.task.codec(), self.config.rl.stop.as_slice());
        let ends = |tokens: &[i32]| ends_with(codec, stop, tokens);
        let hooks = Hooks { on_token: None, ends: (!stop.is_empty()).then_some(&ends) };
        run(&|contexts: &[Vec<i32>], items: &[WorkItem]| {
            let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
            rollout_items(&mut sampler, &self.model, contexts, items, sampling, key, hooks)
        })
    }

    /// `samples` episodes of each prompt.
    pub(crate) fn play(
        &self,
        world: &World,
        prompts: Vec<Prompt>,
        samples: usize,
        sampling: &Sampling,
        key: RolloutKey,
    ) -> Result<Sampled> {
        let mut sampled = self.asked(prompts)?;
        let (codec, limits) = (self.task.codec(), self.limits());
        let decode = |tokens: &[i32]| self.spell(tokens);
        let mut rollouts = Vec::new();
        self.with_sampler(sampling, key, |sample| {
            let players = Players { world, codec, limits, key, decode: &decode, sample };
            if self.longest {
                rollouts = play_longest(&players, &sampled.prompt_ids, samples)?;
                sampled.texts = vec![String::new(); rollouts.len()];
                return Ok(());
            }
            for mut episode in play(&players, &sampled.prompts, &sampled.prompt_ids, samples)? {
                sampled.texts.push(episode.answers.pop().unwrap_or_default());
                sampled.played.push(episode.played);
                rollouts.push(episode.rollout);
            }
            Ok(())
        })?;
        sampled.rollouts = rollouts.chunks(samples.max(1)).map(<[Rollout]>::to_vec).collect();
        Ok(sampled)
    }

    /// `samples` of each prompt, each with its continuations; in an evaluation with one.
    pub(crate) fn play_rounds(
        &self,
        rounds: &Rounds,
        prompts: Vec<Prompt>,
        samples: usize,
        sampling: &Sampling,
        key: RolloutKey,
    ) -> Result<Sampled> {
        let mut sampled = self.asked(prompts)?;
        let decode = |tokens: &[i32]| self.spell(tokens);
        let continuations = match key.purpose {
            Purpose::Eval => 1,
            _ => rounds.continuations,
        };
        let mut rollouts = Vec::new();
        self.with_sampler(sampling, key, |sample| {
            let (task, limits) = (self.task.as_ref(), self.limits());
            let play =
                rounds::Play { rounds, task, limits, continuations, decode: &decode, sample };
            if self.longest {
                rollouts = rounds::play_longest(&play, &sampled.prompt_ids, samples)?;
                sampled.texts = vec![String::new(); rollouts.len()];
                return Ok(());
            }
            let all = play_rounds(&play, &sampled.prompts, &sampled.prompt_ids, samples)?;
            for continued in all {
                let text = continued.last.first().map(|last| last.text.clone());
                sampled.texts.push(text.unwrap_or_default());
                sampled.last.push(continued.last);
                sampled.played.push(continued.played);
                rollouts.push(continued.first);
            }
            Ok(())
        })?;
        sampled.rollouts = rollouts.chunks(samples.max(1)).map(<[Rollout]>::to_vec).collect();
        Ok(sampled)
    }
}
