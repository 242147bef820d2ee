//! Who reads a key. Every key names its readers where it is declared, every kind of phase says which of them
//! it has, and this file says when they are there. A key that a user sets and that nobody reads is refused.

use std::collections::BTreeSet;

use crate::reward::spec;
use crate::train::config::section::Key;
use crate::train::config::{
    DistillSource, KeepKey, PhasePlan, RunConfig, SourceKey, flattened, keys,
};
use crate::train::env;
use crate::train::phase::Phase;
use crate::train::update::recipe::Recipe;
use gradus::error::{Error, Result};
use gradus::ops::presets::Estimator;

/// Declares the readers: each with what people are told about it.
macro_rules! readers {
    ($(#[doc = $doc:literal] $name:ident = $told:literal,)*) => {
        /// A part of a run that reads keys.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Reader { $(#[doc = $doc] $name,)* }

        impl Reader {
            /// Where it is, in words.
            fn told(self) -> &'static str {
                match self { $(Reader::$name => $told,)* }
            }
        }
    };
}

readers! {
    /// Every run.
    Run = "every run",
    /// Opens data.
    Data = "whatever has prompts",
    /// The built-in task.
    BuiltIn = "the built-in task, where data.path is empty",
    /// Prompts from a file.
    File = "prompts of data.path, which is empty",
    /// Scores completions.
    Score = "whatever scores completions",
    /// Several rewards become one score.
    Rewards = "the rewards of reward.functions, which is empty",
    /// Right answers from a file.
    FileRewards = "rewards of reward.functions on rows of data.path",
    /// Rewards outside the process.
    Outside = "rewards that run a program or ask a service (cmd:, code, http://)",
    /// An environment outside the process.
    Program = "environments that run a program (env.kind = cmd:)",
    /// A model that is made, not read.
    Fresh = "fresh models, where model.path is empty",
    /// Episodes are played.
    Episodes = "whatever samples, with env.kind",
    /// Something is said between the answers of an episode.
    Said = "whatever samples, with env.kind other than rounds",
    /// Questions have a price.
    Asks = "whatever samples, with env.kind = ask",
    /// The policy goes on with its own answers.
    Rounds = "whatever samples, with env.kind = rounds",
    /// Turns have rewards of their own.
    Turns = "phases of kind rl with rl.advantage = gae, and collect before value_fit, with env.kind other than rounds",
    /// Evaluations.
    Evaluate = "evaluations",
    /// The phase `sft`.
    Sft = "phases of kind sft",
    /// Demonstrations, or a buffer, are learned.
    Demos = "phases of kind sft, and distill with distill.source = demos",
    /// The phase `quantize`.
    Quantize = "the phase quantize",
    /// Adapters are made there.
    FreshAdapter = "the phase quantize, where model.adapter is empty",
    /// Adapters learn.
    Adapters = "phases that learn with adapters: rl, sft and distill",
    /// The phase `collect`.
    Collect = "phases of kind collect",
    /// The phase `value_fit`.
    ValueFit = "phases of kind value_fit",
    /// The phase `rl`.
    Rl = "phases of kind rl",
    /// The phase `rl` on what the policy samples.
    Online = "phases of kind rl with rl.source = rollout",
    /// The phase `distill`.
    Distill = "phases of kind distill",
    /// Prompts are chosen.
    Prompts = "phases of kind rl and collect, and distill with distill.source = rollout",
    /// Completions are sampled.
    Sample = "phases that sample: rl with rl.source = rollout, collect, distill with distill.source = rollout",
    /// Sampled completions get rewards.
    Judge = "phases of kind collect, and rl with rl.source = rollout",
    /// Completions are chosen and stored.
    Keep = "phases of kind rl and collect",
    /// Prompts go to a buffer with their demonstrations.
    Divert = "phases of kind rl and collect with rl.divert",
    /// Records go to a buffer.
    Store = "phases of kind rl and collect with rl.store or rl.divert",
    /// Advantages are computed.
    Advantage = "phases of kind rl, and collect with rl.keep = positive",
    /// The policy moves with the optimizer's settings of `[rl]`.
    Update = "phases of kind rl, and distill with distill.source = rollout",
    /// Sequences go through the model in micro-batches.
    MicroBatch = "phases that learn: rl, distill, sft without sft.packing, collect before value_fit",
    /// Gradients are computed.
    Backward = "phases that learn: rl, sft and distill",
    /// Returns are computed for a critic.
    Returns = "phases of kind collect before value_fit",
    /// A critic's advantages are learned from.
    Critic = "phases of kind rl with rl.advantage = gae",
}

/// The readers of whatever has prompts and scores what is said to them.
pub(crate) const OF_TASK: &[Reader] = &[
    Reader::Data,
    Reader::BuiltIn,
    Reader::File,
    Reader::Score,
    Reader::Rewards,
    Reader::FileRewards,
    Reader::Outside,
    Reader::Program,
];

/// The readers of whatever plays episodes or rounds.
pub(crate) const OF_EPISODES: &[Reader] =
    &[Reader::Episodes, Reader::Said, Reader::Asks, Reader::Rounds];

/// The readers of a run that are there whatever its phases.
const OF_RUN: &[&[Reader]] =
    &[&[Reader::Run, Reader::Fresh, Reader::Evaluate], OF_TASK, OF_EPISODES];

impl Reader {
    /// Whether it is there in a phase of `kind`, or in the run itself, with the settings `config`; `next` is
    /// the kind of the phase behind it.
    fn is_there(self, kind: Option<Phase>, config: &RunConfig, next: Option<Phase>) -> bool {
        let (rl, functions) = (&config.rl, &config.reward.functions);
        let on_file = !config.data.path.is_empty();
        let is = |phase| kind == Some(phase);
        let of_file = is(Phase::Rl) && rl.source == SourceKey::Data;
        let of_demos = is(Phase::Distill) && config.distill.source == DistillSource::Demos;
        let of_rollouts = is(Phase::Distill) && config.distill.source == DistillSource::Rollout;
        let plays = !config.env.kind.is_empty() && !of_file && !of_demos;
        let rounds = config.env.kind == env::ROUNDS;
        match self {
            Reader::Run | Reader::Data | Reader::Score | Reader::Evaluate => true,
            Reader::Sft | Reader::Quantize | Reader::Collect | Reader::ValueFit => true,
            Reader::Rl | Reader::Distill | Reader::Keep | Reader::Adapters => true,
            Reader::Backward => true,
            Reader::BuiltIn => !on_file,
            Reader::File => on_file,
            Reader::Rewards => !functions.is_empty(),
            Reader::FileRewards => on_file && !functions.is_empty(),
            Reader::Outside => spec::is_outside(functions),
            Reader::Program => config.env.kind.starts_with(env::COMMAND),
            Reader::Fresh => config.model.path.is_empty(),
            Reader::FreshAdapter => config.model.adapter.is_empty(),
            Reader::Demos => !of_rollouts,
            Reader::Sample | Reader::Judge | Reader::Online => !of_file && !of_demos,
            Reader::Episodes => plays,
            Reader::Said => plays && !rounds,
            Reader::Asks => plays && config.env.kind == "ask",
            Reader::Rounds => plays && rounds,
            Reader::Turns => {
                let critic = is(Phase::Rl) && Reader::Critic.is_there(kind, config, next);
                let returns = is(Phase::Collect) && Reader::Returns.is_there(kind, config, next);
                plays && !rounds && (critic || returns)
            }
            Reader::Prompts | Reader::Update => !of_demos,
            Reader::Divert => !rl.divert.is_empty(),
            Reader::Store => !rl.store.is_empty() || !rl.divert.is_empty(),
            Reader::Advantage => !is(Phase::Collect) || rl.keep == KeepKey::Positive,
            Reader::MicroBatch if is(Phase::Collect) => next == Some(Phase::ValueFit),
            Reader::MicroBatch => !(is(Phase::Sft) || of_demos) || config.sft.packing == 0,
            Reader::Returns => next == Some(Phase::ValueFit),
            // Settings that cannot be are refused by name elsewhere.
            Reader::Critic => {
                Recipe::of(config, 1.0).is_ok_and(|recipe| recipe.estimator == Estimator::Gae)
            }
        }
    }
}

/// A command that asks a model from disk, and reads some keys of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// `gradus sample`.
    Sample,
    /// `gradus eval`.
    Eval,
    /// `gradus serve`.
    Serve,
}

impl Asking {
    fn command(self) -> &'static str {
        match self {
            Asking::Sample => "gradus sample",
            Asking::Eval => "gradus eval",
            Asking::Serve => "gradus serve",
        }
    }

    /// What sets how it samples.
    fn takes(self) -> &'static str {
        match self {
            Asking::Sample => {
                "--temperature, -n, rl.top_p, rl.top_k, rl.min_p and rl.max_new_tokens"
            }
            Asking::Eval => "--temperature, --vote, eval.samples and rl.max_new_tokens",
            Asking::Serve => {
                "a request, and without it --temperature, rl.top_p, rl.top_k and rl.min_p"
            }
        }
    }

    /// Whether it reads `key` with the settings `config`; `set` are the keys that somebody set.
    fn reads(self, key: &Key, config: &RunConfig, set: &BTreeSet<String>) -> bool {
        match key.name.as_str() {
            "device" | "threads" | "quantize.type" => true,
            "model.path" | "model.adapter" | "model.dtype" => true,
            "seed" | "env.kind" | "rl.slots" | "rl.max_new_tokens" | "rl.stop" => {
                self != Asking::Serve
            }
            // Weights are quantized where a type says so, and with an adapter, which goes on such weights.
            name if name.starts_with("quantize.") => {
                set.contains("quantize.type") || !config.model.adapter.is_empty()
            }
            "rl.temperature" | "rl.top_p" | "rl.top_k" | "rl.min_p" => self != Asking::Eval,
            name if name.starts_with("eval.") => self == Asking::Eval && name != "eval.every",
            _ if self == Asking::Serve => false,
            _ => {
                let there = |reader: &&Reader| reader.is_there(None, config, None);
                let mut readers = OF_TASK.iter().chain(OF_EPISODES).filter(there);
                readers.any(|reader| key.readers.contains(reader))
            }
        }
    }
}

/// A phase as a reader: its own settings, and what follows.
struct At<'a> {
    plan: &'a PhasePlan,
    next: Option<Phase>,
}

impl At<'_> {
    fn reads(&self, key: &Key) -> bool {
        let PhasePlan { kind, config, .. } = self.plan;
        let there = |reader: &&Reader| reader.is_there(Some(*kind), config, self.next);
        kind.readers().filter(there).any(|reader| key.readers.contains(reader))
    }
}

impl Key {
    /// Whether a phase of `kind` reads it under some settings, so that its table may have a value for it.
    /// A phase without a section reads the settings of the run.
    pub(super) fn may_be_of(&self, kind: Phase) -> bool {
        let reads = kind.readers().any(|reader| self.readers.contains(reader));
        reads && !kind.section().is_empty()
    }

    fn read_by_run(&self, config: &RunConfig) -> bool {
        let there = |reader: &&Reader| reader.is_there(None, config, None);
        OF_RUN.iter().copied().flatten().filter(there).any(|reader| self.readers.contains(reader))
    }

    /// Who reads it, in words.
    fn told(&self) -> String {
        self.readers.iter().map(|reader| reader.told()).collect::<Vec<_>>().join("; or by ")
    }
}

impl RunConfig {
    /// Refuses the first of the keys `set` that nobody reads: neither the run itself nor one of its phases.
    ///
    /// # Errors
    /// `Config` with the key, the phases, and where it would be read; for a key that every phase has a value
    /// of its own for, with these keys.
    pub fn refuse_unread(&self, set: &BTreeSet<String>) -> Result<()> {
        let plans = self.plan()?;
        let then = self.inner_phases(&plans)?;
        let next = |i: usize| plans.get(i + 1).map(|plan| plan.kind);
        let phases: Vec<At<'_>> = plans
            .iter()
            .enumerate()
            .map(|(i, plan)| At { plan, next: next(i) })
            .chain(then.iter().map(|plan| At { plan, next: None }))
            .collect();
        let all = keys();
        let known = |name: &str| all.iter().find(|key| key.name == name);
        for name in set {
            if let Some(key) = known(name) {
                self.refuse_unread_by_all(key, &phases)?;
            } else if name.starts_with("phase.") {
                let key = self.stands_for(name).and_then(|key| known(&key));
                self.refuse_unread_by_one(name, key, &phases)?;
            }
        }
        Ok(())
    }

    /// Refuses the first of the keys `set` that the command does not read.
    ///
    /// # Errors
    /// `Config` with the key and the command.
    pub fn refuse_unread_by(&self, asking: Asking, set: &BTreeSet<String>) -> Result<()> {
        let all = keys();
        for name in set {
            let key = all.iter().find(|key| key.name == *name);
            if key.is_none_or(|key| !asking.reads(key, self, set)) {
                let (command, takes) = (asking.command(), asking.takes());
                let reason = format!(
                    "has no effect: `{command}` does not read it; how it samples is set by {takes}"
                );
                return Err(Error::config(name, reason));
            }
        }
        Ok(())
    }

    /// The phases that `rl.then` names.
    fn inner_phases(&self, plans: &[PhasePlan]) -> Result<Vec<PhasePlan>> {
        let mut found: Vec<PhasePlan> = Vec::new();
        for plan in plans.iter().filter(|plan| plan.kind == Phase::Rl) {
            let Some(then) = plan.config.rl.then()? else { continue };
            let (kind, config) = self.phase_named(&then.phase)?;
            found.push(PhasePlan { name: then.phase, kind, config, ..plan.clone() });
        }
        Ok(found)
    }

    /// A key of the run itself.
    fn refuse_unread_by_all(&self, key: &Key, phases: &[At<'_>]) -> Result<()> {
        if key.read_by_run(self) {
            return Ok(());
        }
        let own: BTreeSet<String> = self.in_phases(&key.name).into_iter().collect();
        let of = |at: &At<'_>| {
            let begin = format!("phase.{}.", at.plan.name);
            own.iter().find(|own| own.starts_with(&begin))
        };
        let readers: Vec<&At<'_>> = phases.iter().filter(|at| at.reads(key)).collect();
        if readers.iter().any(|at| of(at).is_none()) {
            return Ok(());
        }
        let has: BTreeSet<&String> = readers.iter().filter_map(|at| of(at)).collect();
        let reason = match has.is_empty() {
            true => format!(
                "has no effect: this plan has {}, and it is read by {}",
                names(phases),
                key.told()
            ),
            false => {
                let has: Vec<&str> = has.into_iter().map(String::as_str).collect();
                format!(
                    "has no effect: every phase that reads it has a value of its own; set {}",
                    has.join(", ")
                )
            }
        };
        Err(Error::config(&key.name, reason))
    }

    /// A key of the table of a phase; `key` is what it stands for, which the `kind` does not.
    fn refuse_unread_by_one(&self, name: &str, key: Option<&Key>, phases: &[At<'_>]) -> Result<()> {
        let phase = name.split('.').nth(1).unwrap_or_default();
        let called: Vec<&At<'_>> = phases.iter().filter(|at| at.plan.name == phase).collect();
        if called.is_empty() {
            let reason = format!(
                "has no effect: this plan has {}, and `{phase}` is not among them",
                names(phases)
            );
            return Err(Error::config(name, reason));
        }
        match key.filter(|key| called.iter().all(|at| !at.reads(key))) {
            None => Ok(()),
            Some(key) => {
                let reason = format!(
                    "has no effect: with its other settings `{phase}` does not read {}, which is read \
                     by {}",
                    key.name,
                    key.told()
                );
                Err(Error::config(name, reason))
            }
        }
    }

    /// The keys of `given` whose values are others than those of the recipe on `defaults`. A file that was
    /// printed as a whole sets every key.
    ///
    /// # Errors
    /// `Config` for a recipe that does not exist.
    pub fn changed_by(
        &self,
        given: &BTreeSet<String>,
        defaults: RunConfig,
    ) -> Result<BTreeSet<String>> {
        let recipe = Some(self.recipe.as_str()).filter(|name| !name.is_empty());
        let below = RunConfig::layered(defaults, recipe, None)?;
        let (below, now) = (flattened(&below.to_table()), flattened(&self.to_table()));
        Ok(given.iter().filter(|key| below.get(*key) != now.get(*key)).cloned().collect())
    }

    /// Refuses a fresh model that is frozen before anything has trained it, unless one of the keys `set`
    /// describes that model.
    ///
    /// # Errors
    /// `Config` with what to do instead.
    pub fn refuse_noise(&self, set: &BTreeSet<String>) -> Result<()> {
        let shape = |name: &String| {
            let is = |key: &Key| key.name == *name && key.readers == [Reader::Fresh];
            keys().iter().any(is)
        };
        if !self.model.path.is_empty() || set.iter().any(shape) {
            return Ok(());
        }
        let plans = self.plan()?;
        let before = plans.iter().take_while(|plan| plan.kind != Phase::Quantize);
        let trained = before.clone().any(|plan| plan.kind.trains());
        if trained || before.count() == plans.len() {
            return Ok(());
        }
        let list: Vec<&str> = self.phases.iter().map(|entry| entry.0.as_str()).collect();
        let reason = format!(
            "`quantize` would freeze the random weights of a fresh model before anything has trained \
             them. Begin with a model (--model DIR), or warm up first (--set 'phases=sft,{}'); if random \
             weights are meant, describe them (for example --set model.layers={})",
            list.join(","),
            self.model.layers
        );
        Err(Error::config("phases", reason))
    }
}

/// The phases with their kinds, each once.
fn names(phases: &[At<'_>]) -> String {
    let mut names: Vec<String> = Vec::new();
    for At { plan, .. } in phases {
        let kind = plan.kind.name();
        let name = match plan.name == kind {
            true => kind.to_string(),
            false => format!("{} ({kind})", plan.name),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}
