//! The memory of a run, known before its first step.
//!
//! Nothing is estimated: the run's own code goes once through every phase on a device that hands out
//! addresses and executes nothing. What it asks for is what the run will ask for.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::io::system_memory::Room;
use crate::model::{Gradients, Parameter};
use crate::reward::{RewardInput, RewardOutcome};
use crate::train::buffer::record_bytes;
use crate::train::config::{PhasePlan, RunConfig};
use crate::train::phase::Phase;
use crate::train::trainer::{CPU_SLOTS, Fit, Trainer};
use crate::train::update::ordered::window;
use crate::train::update::record::Record;
use crate::train::update::reference::Reference;
use crate::train::update::step::Objective;
use gradus::device::{Device, DriverInfo, DryDriver};
use gradus::dtype::Float;
use gradus::error::Result;
use gradus::ops::Advantage;
use gradus::ops::presets::Estimator;
use gradus::view::View;

/// Bytes of a run by what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, adapters, their f32 values and the optimizer's moments, at their most.
    pub state: u64,
    /// Keys and values, first logits and decode steps of the sampler.
    pub sampler: u64,
    /// Activations and gradients: what the model's arena has to reserve.
    pub activations: u64,
    /// Partial results of launches; on the CPU what allocators keep.
    pub scratch: u64,
    /// On the CPU hidden states that the critic learns from, records in buffers, and the copies that a
    /// checkpoint is written from.
    pub copies: u64,
    /// All of it when it is at its most.
    pub total: u64,
    /// Memory of the device, or what the host has for this process.
    pub device: u64,
    /// What sets the limit on the host; empty for a GPU.
    pub limit: String,
    /// What it chose where the settings leave it to the plan.
    pub fit: Fit,
}

/// What a dry run finds.
struct Dry {
    plan: MemoryPlan,
    /// The updates of each phase.
    updates: Vec<UpdateNeeds>,
    /// Most of the arena beside updates.
    rollouts: u64,
    /// Bytes of the largest checkpoint.
    saved: u64,
    /// Bytes of the hidden states that the critic learns from, and of records in buffers.
    states: u64,
}

/// What one update of a phase takes.
struct UpdateNeeds {
    /// Activations and one set of gradients.
    arena: u64,
    /// The gradients among them.
    gradients: u64,
    micro_batches: usize,
}

/// Room in which the dry run's arena never fills.
const ENDLESS: usize = 1 << 44;

impl MemoryPlan {
    /// The plan of `config` on a device like `info`.
    ///
    /// # Errors
    /// `Config` for what the trainer refuses.
    pub fn new<T: Float>(config: &RunConfig, info: &DriverInfo) -> Result<MemoryPlan> {
        MemoryPlan::new_as::<T>(config, info, Fit::default())
    }

    /// The plan of `config` with these choices.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub(super) fn new_as<T: Float>(
        config: &RunConfig,
        info: &DriverInfo,
        fit: Fit,
    ) -> Result<MemoryPlan> {
        Ok(Dry::run::<T>(config, info, fit)?.plan)
    }

    /// The plan of `config` on the CPU with `threads` threads: what a device would need, with the
    /// sampler's slots and a micro-batch's activations once per thread, gradients for those that wait
    /// for their turn, what the critic learns from, and the copies of a checkpoint.
    ///
    /// # Errors
    /// `Config` for what the trainer refuses.
    pub fn on_cpu<T: Float>(config: &RunConfig, threads: usize, room: &Room) -> Result<MemoryPlan> {
        MemoryPlan::on_cpu_as::<T>(config, threads, room, Fit::default())
    }

    /// The plan of `config` on the CPU with these choices.
    pub(super) fn on_cpu_as<T: Float>(
        config: &RunConfig,
        threads: usize,
        room: &Room,
        fit: Fit,
    ) -> Result<MemoryPlan> {
        let mut config = config.clone();
        if config.rl.slots == 0 {
            config.rl.slots = CPU_SLOTS;
        }
        config.rl.slots *= threads;
        let name = "host".to_string();
        let info = DriverInfo {
            name,
            ordinal: 0,
            capability: (9, 0),
            cuda: (13, 0),
            multiprocessors: 1,
            memory: room.bytes,
            shared_per_block: 232_448,
        };
        let Dry { mut plan, updates, rollouts, saved, states } =
            Dry::run::<T>(&config, &info, fit)?;
        plan.limit = room.limit.clone();
        plan.total -= plan.activations + plan.scratch;
        let updates = updates.iter().map(|needs| needs.on_threads(threads)).max();
        plan.activations = updates.unwrap_or(0).max(rollouts);
        // The tensors of a checkpoint, and the bytes of its file.
        plan.copies = states + 2 * saved;
        plan.total += plan.activations + plan.copies;
        // What the allocator keeps between threads: 1,634 MiB were held where 1,481 were asked for.
        plan.scratch = plan.total / 8;
        plan.total += plan.scratch;
        Ok(plan)
    }

    pub(crate) fn fits(&self) -> bool {
        self.total <= self.device
    }
}

impl Dry {
    /// Goes through the phases of `config` on a device like `info` that executes nothing.
    fn run<T: Float>(config: &RunConfig, info: &DriverInfo, fit: Fit) -> Result<Dry> {
        let mut probe = Probe::<T>::new(config, info, fit)?;
        probe.trainer.evaluate()?;
        probe.trainer.evaluate_suites()?;
        probe.count_rollouts();
        let mut saved = 0;
        let mut states = 0;
        let plans = config.plan()?;
        for plan in &plans {
            // What a phase asks for the first two times, it asks for every time.
            let before = plans[..plan.number].iter().filter(|earlier| earlier.name == plan.name);
            if before.count() > 1 {
                continue;
            }
            probe.enter(plan)?;
            plan.kind.probe(&mut probe)?;
            saved = checkpoint_bytes(&probe.trainer).max(saved);
            states = critic_states(&probe.trainer, plan.kind)?.max(states);
        }
        let kept = kept_records(&probe.trainer, &plans);
        let (states, saved) = (states + kept, saved + kept);
        let Probe { driver, mut plan, updates, rollouts, .. } = probe;
        let updated = updates.iter().map(|needs: &UpdateNeeds| needs.arena).max();
        plan.activations = updated.unwrap_or(0).max(rollouts);
        plan.total = driver.usage().peak - ENDLESS as u64 + plan.activations;
        Ok(Dry { plan, updates, rollouts, saved, states })
    }
}

/// A trainer on a device that executes nothing, and what it has asked for.
pub(crate) struct Probe<T: Float> {
    pub trainer: Trainer<T>,
    driver: Arc<DryDriver>,
    plan: MemoryPlan,
    /// Bytes in use when the plan was last added to.
    counted: u64,
    updates: Vec<UpdateNeeds>,
    /// Most of the arena beside updates.
    rollouts: u64,
}

impl<T: Float> Probe<T> {
    fn new(config: &RunConfig, info: &DriverInfo, fit: Fit) -> Result<Probe<T>> {
        let driver = Arc::new(DryDriver::new(info.clone()));
        let device = Device::gpu(driver.clone())?;
        let mut trainer = Trainer::<T>::outline(config.clone(), device)?;
        trainer.fit = fit;
        unasked(&mut trainer);
        let arena = trainer.model.allocator.arena();
        arena.iter().try_for_each(|arena| arena.reserve(ENDLESS))?;
        let counted = driver.usage().live - ENDLESS as u64;
        let plan = MemoryPlan { state: counted, device: info.memory, fit, ..Default::default() };
        Ok(Probe { trainer, driver, plan, counted, updates: Vec::new(), rollouts: 0 })
    }

    /// Takes over the settings of a phase; evaluations of its own may take more than those before.
    fn enter(&mut self, plan: &PhasePlan) -> Result<()> {
        let known = self.trainer.config == plan.config;
        self.trainer.enter(plan);
        unasked(&mut self.trainer);
        if !known {
            self.trainer.evaluate()?;
            self.count_rollouts();
        }
        Ok(())
    }

    /// What is in use and was not when this was last asked.
    fn grown(&mut self) -> u64 {
        let live = self.driver.usage().live - ENDLESS as u64;
        live.saturating_sub(std::mem::replace(&mut self.counted, live))
    }

    /// Counts what was asked for since the last count as state: weights, adapters, moments.
    pub fn count_state(&mut self) {
        self.plan.state += self.grown();
    }

    fn count_rollouts(&mut self) {
        let peak = self.trainer.model.allocator.arena().map_or(0, |arena| arena.peak() as u64);
        self.rollouts = self.rollouts.max(peak);
        self.plan.sampler += self.grown();
    }

    /// Rollouts of an RL step.
    ///
    /// # Errors
    /// What the trainer refuses.
    pub fn rollouts(&mut self) -> Result<Vec<Record>> {
        let (_, records, _) = self.trainer.collect(0)?;
        self.count_rollouts();
        Ok(records)
    }

    /// An update on the longest records there may be: one micro-batch of them.
    ///
    /// # Errors
    /// What the trainer refuses.
    pub fn update(&mut self, records: Vec<Record>, objective: Objective<'_>) -> Result<()> {
        self.update_by(records, objective, |trainer, records, objective| {
            let ones = vec![1.0; records.len()];
            let advantage = Advantage::PerSequence(View::from(&ones));
            Ok(trainer.forward_backward(records, advantage, &ones, objective)?.gradients)
        })
    }

    /// An update of which `backward` computes the gradients, likewise.
    ///
    /// # Errors
    /// What the trainer refuses.
    pub fn update_by(
        &mut self,
        records: Vec<Record>,
        objective: Objective<'_>,
        backward: impl FnOnce(&Trainer<T>, &[Record], Objective<'_>) -> Result<Gradients>,
    ) -> Result<()> {
        let trainer = &mut self.trainer;
        let arena = trainer.model.allocator.arena();
        arena.iter().for_each(|arena| arena.restart());
        let micro_batches = objective.micro_batches(&records).len();
        let (records, objective) = longest(trainer, records, objective);
        let gradients = backward(trainer, &records, objective)?;
        let bytes = gradients.iter().map(|(_, g)| 4 * g.len() as u64).sum();
        let (device, update) = (trainer.model.device.clone(), trainer.rl_update(0));
        trainer.optimizer.step(&device, &mut trainer.model.params, &gradients, update)?;
        drop(gradients);
        let arena = arena.map_or(0, |arena| arena.peak() as u64);
        self.updates.push(UpdateNeeds { arena, gradients: bytes, micro_batches });
        self.plan.scratch += self.grown();
        Ok(())
    }
}

impl UpdateNeeds {
    /// Bytes of the update on a CPU of `threads` threads. Micro-batches go through on all threads, each
    /// with gradients of its own, beside those that wait for their turn and the sum.
    fn on_threads(&self, threads: usize) -> u64 {
        let running = threads.min(self.micro_batches) as u64;
        let waiting = window(threads).min(self.micro_batches) as u64;
        running * self.arena.saturating_sub(self.gradients) + (1 + waiting) * self.gradients
    }
}

/// The micro-batch of `records` that takes the most, and the objective under which it is in one piece.
fn longest<'a, T: Float>(
    trainer: &Trainer<T>,
    mut records: Vec<Record>,
    objective: Objective<'a>,
) -> (Vec<Record>, Objective<'a>) {
    if objective.computes_once() && objective.shared_tokens < usize::MAX {
        let mut longest = trainer.longest_rollouts(records.len());
        if records.iter().any(|record| !record.ref_logp.is_empty()) {
            longest.iter_mut().for_each(Record::with_columns);
        }
        return (longest, Objective { shared_tokens: usize::MAX, ..objective });
    }
    records.sort_by_key(|record| std::cmp::Reverse(record.ids.len()));
    // Where tokens are counted, others may fill what these leave.
    let mut tokens = 0;
    let mut fits = |record: &Record| {
        let fits = tokens < objective.micro_batch_tokens;
        tokens += record.ids.len();
        fits
    };
    let count = records.iter().take(objective.micro_batch).take_while(|r| fits(r)).count();
    records.truncate(count);
    // Each with its own prompt: others of its group may be left out.
    let (micro_batch_tokens, shared) = (usize::MAX, false);
    (records, Objective { micro_batch_tokens, shared, ..objective })
}

/// Nobody is asked about completions that were not written.
fn unasked<T: Float>(trainer: &mut Trainer<T>) {
    trainer.reward = Arc::new(|_: &RewardInput<'_>| Ok(RewardOutcome::Score(0.0)));
    trainer.verifier = trainer.reward.clone();
    trainer.longest = true;
}

/// Bytes of the hidden states that the critic learns from in a phase of `kind`: those of a batch, and of
/// all batches that `collect` gathers. Vectors that grow hold up to twice what is in them.
fn critic_states<T: Float>(trainer: &Trainer<T>, kind: Phase) -> Result<u64> {
    let config = &trainer.config;
    let batches = match kind {
        Phase::Collect => 1 + config.value.collect_steps as u64,
        Phase::Distill => 0,
        Phase::Sft | Phase::Quantize | Phase::ValueFit | Phase::Rl => {
            (trainer.recipe()?.estimator == Estimator::Gae) as u64
        }
    };
    let tokens = config.rl.prompts * config.rl.group * trainer.most_sampled();
    Ok(2 * batches * 4 * (tokens * trainer.model.config.hidden) as u64)
}

/// Bytes of the records that outlive their batch, when all buffers are full.
fn kept_records<T: Float>(trainer: &Trainer<T>, plans: &[PhasePlan]) -> u64 {
    let (prompt, answer) = trainer.task.lengths();
    let (mut names, mut window, mut longest) = (BTreeSet::new(), 0, answer);
    for config in plans.iter().map(|plan| &plan.config) {
        let rl = &config.rl;
        names.extend([&rl.store, &rl.divert].into_iter().filter(|name| !name.is_empty()));
        let batch = rl.prompts * rl.group * (1 + rl.dynamic_sampling);
        window = window.max(rl.replay_window * batch);
        let answer = rl.max_new_tokens.max(answer);
        let episode = config.env.limits(answer).tokens;
        longest = longest.max(if config.env.kind.is_empty() { answer } else { episode });
    }
    let records = names.len() * trainer.config.buffer.capacity + window;
    records as u64 * record_bytes(prompt + longest)
}

/// Bytes of a checkpoint: what moves with its moments, what it is held to, and the base unless it is
/// a folder's.
fn checkpoint_bytes<T: Float>(trainer: &Trainer<T>) -> u64 {
    let held = if matches!(trainer.reference, Reference::Held(_)) { 16 } else { 12 };
    let each = |p: &Parameter<T>| match (p.trainable, trainer.frozen_base) {
        (true, _) => held * p.len(),
        (false, true) => 0,
        (false, false) => 4 * p.len(),
    };
    let dense: usize = trainer.model.params.iter().map(each).sum();
    let packed = if trainer.frozen_base { 0 } else { trainer.model.weight_parts().packed };
    dense as u64 + packed
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, device, limit) = (mib(self.total), mib(self.device), &self.limit);
        write!(f, "{total} of {device}")?;
        if !limit.is_empty() {
            write!(f, " ({limit})")?;
        }
        let parts = [
            ("weights and optimizer", self.state),
            ("sampler", self.sampler),
            ("activations", self.activations),
            ("copies", self.copies),
            ("scratch", self.scratch),
        ];
        let shown = parts.iter().filter(|(name, bytes)| *name != "copies" || *bytes > 0);
        for (i, (name, bytes)) in shown.enumerate() {
            write!(f, "{} {name} {}", if i == 0 { ":" } else { "," }, mib(*bytes))?;
            if *name == "sampler" && self.fit.cache_percent < 100 {
                write!(f, " (with {} % of the cache)", self.fit.cache_percent)?;
            }
            if *name == "activations" && self.fit.recompute {
                write!(f, " (gradient checkpointing)")?;
            }
        }
        Ok(())
    }
}
