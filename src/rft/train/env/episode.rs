//! The driver of episodes: all that go on answer, the environment replies to all of them, and what it says
//! is appended, until nobody is left.
//!
//! A turn is a rollout whose contexts are the ids so far. In the first turn a prompt is prefilled once for all
//! of its episodes. Draws go on where the last turn of the episode ended, so that an episode of one turn has
//! the tokens of a completion.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Environment, Reply, Start, Turn, World};
use crate::io::interrupt;
use crate::text::Codec;
use crate::train::rollout::{Rollout, RolloutKey, WorkItem};
use crate::train::task::Prompt;
use gradus::error::{Error, Result};

/// Where episodes end that the environment does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most turns.
    pub turns: usize,
    /// Most tokens behind the prompt, sampled ones and others.
    pub tokens: usize,
    /// Most tokens of an answer.
    pub answer: usize,
}

/// What is known of an episode beside its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Played {
    /// Answers of the policy.
    pub turns: usize,
    /// The sum of its turns' rewards.
    pub reward: f32,
    /// For each turn whose reward is known how many tokens there were behind the prompt when its answer
    /// ended, and the reward.
    pub rewards: Vec<(usize, f32)>,
    /// Why the environment failed, if it did.
    pub failure: Option<String>,
    /// Answers and what was said to them, a line each, for people.
    pub transcript: String,
}

/// Samples items behind contexts.
pub(crate) type SampleItems<'a> = &'a dyn Fn(&[Vec<i32>], &[WorkItem]) -> Result<Vec<Rollout>>;

/// Who takes part in episodes.
pub(crate) struct Players<'a> {
    pub world: &'a World,
    pub codec: &'a dyn Codec,
    pub limits: Limits,
    pub key: RolloutKey,
    /// The text of an answer.
    pub decode: &'a dyn Fn(&[i32]) -> Result<String>,
    /// Completions of items behind contexts.
    pub sample: SampleItems<'a>,
}

/// An episode on its way.
pub(crate) struct Episode {
    prompt: usize,
    sample: usize,
    seed: u64,
    /// The text of each answer.
    pub answers: Vec<String>,
    pub rollout: Rollout,
    pub played: Played,
    over: bool,
}

/// `samples` episodes of each prompt, in order.
///
/// # Errors
/// `Config` for an environment that nobody gave; what sampling says. What an environment meets fails
/// episodes and is no error.
pub(crate) fn play(
    players: &Players<'_>,
    prompts: &[Prompt],
    prompt_ids: &[Vec<i32>],
    samples: usize,
) -> Result<Vec<Episode>> {
    let Some(environment) = &players.world.environment else {
        let reason = "own, and Trainer::with_environment has given none";
        return Err(Error::config("env.kind", reason));
    };
    let environment = environment.as_ref();
    let mut episodes = begin(players, environment, prompts, samples);
    for turn in 1..=players.limits.turns {
        if episodes.iter().all(|episode| episode.over) {
            break;
        }
        interrupt::check()?;
        let answered = players.answer(prompt_ids, &mut episodes)?;
        let replies = players.replies(environment, prompts, &episodes, &answered);
        for (&i, reply) in answered.iter().zip(replies) {
            episodes[i].hear(players, reply, turn);
        }
    }
    Ok(episodes)
}

/// Episodes before their first turn.
fn begin(
    players: &Players<'_>,
    environment: &dyn Environment,
    prompts: &[Prompt],
    samples: usize,
) -> Vec<Episode> {
    let each = (0..prompts.len()).flat_map(|prompt| (0..samples).map(move |s| (prompt, s)));
    let seed = |prompt: usize, sample: usize| {
        let mut rng = players.key.stream(prompt as u32, sample as u32);
        (rng.next_u32() as u64) << 32 | rng.next_u32() as u64
    };
    let mut episodes: Vec<Episode> = each
        .map(|(prompt, sample)| Episode {
            prompt,
            sample,
            seed: seed(prompt, sample),
            answers: Vec::new(),
            rollout: Rollout::default(),
            played: Played::default(),
            over: false,
        })
        .collect();
    let starts: Vec<Start<'_>> = episodes.iter().map(|e| e.start(prompts)).collect();
    let begun = guarded(starts.len(), || environment.begin(&starts));
    for (episode, begun) in episodes.iter_mut().zip(begun) {
        episode.played.failure = begun.err();
    }
    episodes
}

/// What an environment returns, one for each of `count` episodes: all of them fail if it panics or returns
/// another number.
pub(super) fn guarded<R>(
    count: usize,
    ask: impl FnOnce() -> Vec<std::result::Result<R, String>>,
) -> Vec<std::result::Result<R, String>> {
    let fails = |reason: &str| (0..count).map(|_| Err(reason.to_string())).collect();
    match catch_unwind(AssertUnwindSafe(ask)) {
        Ok(all) if all.len() == count => all,
        Ok(all) => {
            fails(&format!("the environment gave {} replies to {count} episodes", all.len()))
        }
        Err(_) => fails("the environment panicked"),
    }
}

impl Players<'_> {
    /// One more answer of each episode that is not over; returns which these are.
    fn answer(&self, prompt_ids: &[Vec<i32>], episodes: &mut [Episode]) -> Result<Vec<usize>> {
        let live: Vec<usize> = (0..episodes.len()).filter(|&i| !episodes[i].over).collect();
        let (mut contexts, mut items) = (Vec::<Vec<i32>>::new(), Vec::new());
        for &i in &live {
            let episode = &episodes[i];
            let context = [&prompt_ids[episode.prompt][..], &episode.rollout.tokens].concat();
            let tokens = episode.rollout.tokens.len();
            // Later turns have a slot of the sampler each, so that its memory is known before.
            if tokens > 0 || contexts.last() != Some(&context) {
                contexts.push(context);
            }
            items.push(WorkItem {
                context: contexts.len() - 1,
                stream: (episode.prompt as u32, episode.sample as u32),
                drawn: episode.rollout.sampled(),
                allowed: self.limits.answer.min(self.limits.tokens - tokens),
            });
        }
        for (&i, answer) in live.iter().zip((self.sample)(&contexts, &items)?) {
            let text = (self.decode)(&answer.tokens)?;
            episodes[i].answer(text, answer);
        }
        Ok(live)
    }

    /// What the environment makes of the last answers of the episodes `answered`.
    fn replies(
        &self,
        environment: &dyn Environment,
        prompts: &[Prompt],
        episodes: &[Episode],
        answered: &[usize],
    ) -> Vec<std::result::Result<Reply, String>> {
        let begun = |i: &&usize| episodes[**i].played.failure.is_none();
        let turn = |&i: &usize| Turn {
            episode: i,
            start: episodes[i].start(prompts),
            answers: &episodes[i].answers,
            finished: episodes[i].rollout.finished,
        };
        let turns: Vec<Turn<'_>> = answered.iter().filter(begun).map(turn).collect();
        let mut replies = guarded(turns.len(), || environment.step(&turns)).into_iter();
        let reply = |&i: &usize| match &episodes[i].played.failure {
            Some(reason) => Err(reason.clone()),
            // `guarded` gave one for each turn.
            None => replies.next().unwrap_or_else(|| Err("no reply".into())),
        };
        answered.iter().map(reply).collect()
    }
}

impl Episode {
    fn start<'a>(&self, prompts: &'a [Prompt]) -> Start<'a> {
        Start { prompt: &prompts[self.prompt], seed: self.seed }
    }

    /// Appends an answer of the policy.
    fn answer(&mut self, text: String, answer: Rollout) {
        let Rollout { tokens, logp, entropy, finished, .. } = answer;
        self.rollout.tokens.extend(tokens);
        self.rollout.logp.extend(logp);
        self.rollout.entropy.extend(entropy);
        self.rollout.finished = finished;
        self.played.turns += 1;
        self.played.transcript += &text;
        self.answers.push(text);
    }

    /// Takes in the reply to answer number `turn`, counted from 1.
    fn hear(
        &mut self,
        players: &Players<'_>,
        reply: std::result::Result<Reply, String>,
        turn: usize,
    ) {
        let Reply { says, reward } = match reply {
            Ok(reply) if reply.reward.is_finite() => reply,
            Ok(reply) => {
                return self.fail(format!("the environment gave the reward {}", reply.reward));
            }
            Err(reason) => return self.fail(reason),
        };
        self.played.reward += reward;
        self.played.rewards.push((self.rollout.tokens.len(), reward));
        let Some(said) = says else {
            self.over = true;
            return;
        };
        self.played.transcript += &format!("\n{said}\n");
        if !self.rollout.finished || turn == players.limits.turns {
            return self.cut();
        }
        let last = self.rollout.tokens.last().copied();
        match players.world.frame.ids(players.codec, &said, last) {
            Err(error) => self.fail(format!("what the environment said: {error}")),
            Ok(ids) if self.rollout.tokens.len() + ids.len() >= players.limits.tokens => self.cut(),
            Ok(ids) => self.append(&ids),
        }
    }

    /// Appends what was said.
    fn append(&mut self, ids: &[i32]) {
        let Rollout { tokens, logp, entropy, said, .. } = &mut self.rollout;
        let first = tokens.len();
        tokens.extend_from_slice(ids);
        logp.resize(tokens.len(), 0.0);
        entropy.resize(tokens.len(), 0.0);
        said.extend((!ids.is_empty()).then_some(first..tokens.len()));
    }

    /// A limit ends it.
    fn cut(&mut self) {
        (self.rollout.finished, self.over) = (false, true);
    }

    fn fail(&mut self, reason: String) {
        (self.played.failure, self.over) = (Some(reason), true);
    }
}

/// Turns that are as long as the limits allow, on a device that executes nothing.
///
/// # Errors
/// What sampling says.
pub(crate) fn play_longest(
    players: &Players<'_>,
    prompt_ids: &[Vec<i32>],
    samples: usize,
) -> Result<Vec<Rollout>> {
    let Limits { tokens, answer, .. } = players.limits;
    let item = |context: usize, i: usize, allowed: usize| {
        let stream = ((i / samples) as u32, (i % samples) as u32);
        WorkItem { context, stream, drawn: 0, allowed }
    };
    let count = prompt_ids.len() * samples;
    let first: Vec<WorkItem> =
        (0..count).map(|i| item(i / samples, i, answer.min(tokens))).collect();
    (players.sample)(prompt_ids, &first)?;
    let before = |i: usize| [&prompt_ids[i / samples][..], &vec![0; tokens - 1]].concat();
    let contexts: Vec<Vec<i32>> = (0..count).map(before).collect();
    let last: Vec<WorkItem> = (0..count).map(|i| item(i, i, 1)).collect();
    let mut done = (players.sample)(&contexts, &last)?;
    for rollout in &mut done {
        let whole = vec![0; tokens - rollout.tokens.len()];
        rollout.tokens.splice(0..0, whole);
        rollout.logp.resize(tokens, 0.0);
        rollout.entropy.resize(tokens, 0.0);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use super::*;
    use crate::text::{Bytes, END};
    use crate::train::config::EnvConfig;
    use crate::train::env::{Frame, built_in};
    use gradus::rng::Purpose;

    const KEY: RolloutKey = RolloutKey { seed: 1, purpose: Purpose::Sample, step: 3 };

    /// The contexts and items of a turn.
    type Asked = (Vec<String>, Vec<WorkItem>);

    /// Plays the calculator with a policy that says the texts of `script`, turn by turn, each for all live
    /// episodes. Returns the episodes, and the contexts and items of each turn.
    fn played(limits: Limits, script: &[&str], samples: usize) -> (Vec<Episode>, Vec<Asked>) {
        let codec = Bytes::new(&[END]);
        let config = EnvConfig { kind: "tool".into(), ..EnvConfig::default() };
        let world = World { environment: built_in(&config), frame: Arc::new(Frame::plain()) };
        let asked = RefCell::new(Vec::new());
        let sample = |contexts: &[Vec<i32>], items: &[WorkItem]| {
            let text = script[asked.borrow().len()];
            let contexts = contexts.iter().map(|ids| codec.decode(ids).unwrap()).collect();
            asked.borrow_mut().push((contexts, items.to_vec()));
            let answer = |item: &WorkItem| {
                // An end of its own only where there is room for it.
                let mut tokens = codec.encode(text).unwrap();
                tokens.push(END);
                tokens.truncate(item.allowed);
                let finished = tokens.last() == Some(&END);
                let logp = (0..tokens.len()).map(|i| -1.0 - (item.drawn + i) as f32).collect();
                let entropy = vec![0.5; tokens.len()];
                Rollout { tokens, logp, entropy, finished, ..Rollout::default() }
            };
            Ok(items.iter().map(answer).collect())
        };
        let decode = |ids: &[i32]| codec.decode(ids);
        let players = Players {
            world: &world,
            codec: &codec,
            limits,
            key: KEY,
            decode: &decode,
            sample: &sample,
        };
        let prompts = ["ab", "c"].map(Prompt::plain);
        let ids = prompts.each_ref().map(|prompt| codec.encode(&prompt.text).unwrap());
        let episodes = play(&players, &prompts, &ids, samples).unwrap();
        (episodes, asked.into_inner())
    }

    const WIDE: Limits = Limits { turns: 4, tokens: 100, answer: 20 };

    #[test]
    fn ids_only_grow_and_draws_go_on() {
        let (episodes, asked) = played(WIDE, &["<<2*3>>", "x<<1>>", "6"], 2);
        assert_eq!(asked.len(), 3);
        // Samples of a prompt share their first context.
        let items = &asked[0].1;
        assert_eq!(items.iter().map(|item| item.context).collect::<Vec<_>>(), [0, 0, 1, 1]);
        let streams: Vec<_> = items.iter().map(|item| item.stream).collect();
        assert_eq!(streams, [(0, 0), (0, 1), (1, 0), (1, 1)]);
        let drawn = |turn: usize| asked[turn].1[0].drawn;
        assert_eq!([drawn(0), drawn(1), drawn(2)], [0, 8, 15]);
        for Episode { rollout, played, answers, .. } in &episodes {
            let text: Vec<u8> = rollout.tokens.iter().map(|&id| id as u8).collect();
            assert_eq!(text, b"<<2*3>>\xff\n6\nx<<1>>\xff\n1\n6\xff");
            assert_eq!(rollout.said, [8..11, 18..21]);
            assert_eq!(rollout.sampled(), 17);
            // Draw t of the episode is the t-th token that was sampled.
            let of = |t: usize| rollout.logp[t];
            assert_eq!(
                [of(0), of(7), of(8), of(11), of(21), of(22)],
                [-1.0, -8.0, 0.0, -9.0, -16.0, -17.0]
            );
            assert!(rollout.finished && played.failure.is_none());
            assert_eq!((played.turns, answers.last().unwrap().as_str()), (3, "6"));
            assert_eq!(played.transcript, "<<2*3>>\n6\nx<<1>>\n1\n6");
        }
        assert_ne!(episodes[0].seed, episodes[1].seed);
    }

    #[test]
    fn limits_cut_episodes() {
        let length = |limits: Limits| {
            let (episodes, _) = played(limits, &["<<2*3>>"; 9], 1);
            let Episode { rollout, played, .. } = &episodes[0];
            assert!(!rollout.finished);
            assert!(rollout.tokens.len() <= limits.tokens, "{limits:?}");
            // What is said behind the last answer is not there.
            assert!(rollout.said.last().is_none_or(|said| said.end < rollout.tokens.len()));
            (played.turns, rollout.tokens.len())
        };
        // Eight tokens an answer with its end, three of what is said.
        assert_eq!(length(Limits { turns: 1, ..WIDE }), (1, 8));
        assert_eq!(length(Limits { turns: 3, ..WIDE }), (3, 30));
        assert_eq!(length(Limits { tokens: 30, ..WIDE }), (3, 30));
        assert_eq!(length(Limits { tokens: 12, ..WIDE }), (2, 12));
        assert_eq!(length(Limits { tokens: 11, ..WIDE }), (1, 8));
        assert_eq!(length(Limits { tokens: 5, ..WIDE }), (1, 5));
        assert_eq!(length(Limits { answer: 7, ..WIDE }), (1, 7));
    }

    /// An environment that does not keep to its trait fails what it was asked about.
    #[test]
    fn wrong_numbers_and_panics_fail_episodes() {
        let fails = |all: Vec<std::result::Result<Reply, String>>| guarded(2, || all);
        assert!(fails(vec![Ok(Reply::done(0.0)); 2]).iter().all(|reply| reply.is_ok()));
        for wrong in [fails(vec![Ok(Reply::done(0.0))]), guarded(2, || panic!("no"))] {
            assert_eq!(wrong.len(), 2);
            assert!(wrong.iter().all(|reply| reply.is_err()), "{wrong:?}");
        }
    }
}
