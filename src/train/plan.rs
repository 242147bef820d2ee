//! The device memory of a run, known before its first step.
//!
//! Nothing is estimated: the run's own code goes once through every phase on a device that hands out
//! addresses and executes nothing. What it asks for is what the run will ask for.

use std::fmt;
use std::sync::Arc;

use crate::device::{Device, DriverInfo, DryDriver};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::objective::presets;
use crate::reward::{RewardInput, RewardOutcome};
use crate::train::config::RunConfig;
use crate::train::phases::Phase;
use crate::train::record::Record;
use crate::train::trainer::{SLOTS, Trainer};

/// Bytes of a run by what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, adapters, their f32 values and the optimiser's moments, at their most.
    pub state: u64,
    /// Keys and values, first logits and decode steps of the sampler.
    pub sampler: u64,
    /// Activations and gradients: what the model's arena has to reserve.
    pub activations: u64,
    /// Partial results of launches.
    pub scratch: u64,
    /// All of it when it is at its most.
    pub total: u64,
    /// Memory of the device.
    pub device: u64,
}

/// Room in which the dry run's arena never fills.
const ENDLESS: usize = 1 << 44;

impl MemoryPlan {
    /// The plan of `config` on a device like `info`.
    ///
    /// # Errors
    /// `Config` for what the trainer refuses.
    pub fn new<T: Float>(config: &RunConfig, info: &DriverInfo) -> Result<MemoryPlan> {
        let driver = Arc::new(DryDriver::new(info.clone()));
        let device = Device::gpu(driver.clone())?;
        let mut trainer = Trainer::<T>::on(config.clone(), device)?;
        // Nobody is asked about completions that were not written.
        trainer.reward = Arc::new(|_: &RewardInput<'_>| Ok(RewardOutcome::Score(0.0)));
        trainer.verifier = trainer.reward.clone();
        let arena = trainer.model.space.arena();
        arena.iter().try_for_each(|arena| arena.reserve(ENDLESS))?;
        let live = || driver.usage().live - ENDLESS as u64;
        let mut plan = MemoryPlan { state: live(), device: info.memory, ..Default::default() };
        let mut before = live();
        let mut grown = |part: &mut u64| {
            *part += live().saturating_sub(before);
            before = live();
        };
        trainer.evaluate()?;
        grown(&mut plan.sampler);
        for phase in &config.phases {
            match Phase::parse(phase)? {
                Phase::Sft => {
                    let records = trainer.demonstrations(0)?;
                    dry_update(&mut trainer, records)?;
                    grown(&mut plan.scratch);
                }
                Phase::Quantize => {
                    trainer.quantize()?;
                    grown(&mut plan.state);
                }
                Phase::Collect | Phase::ValueFit | Phase::Rl => {
                    let (_, records, _) = trainer.collect(0)?;
                    grown(&mut plan.sampler);
                    dry_update(&mut trainer, records)?;
                    grown(&mut plan.scratch);
                }
            }
        }
        plan.activations = arena.map_or(0, |arena| arena.peak() as u64);
        plan.total = driver.usage().peak - ENDLESS as u64 + plan.activations;
        Ok(plan)
    }

    /// The plan of `config` on the CPU with `threads` threads and `memory` bytes to be had: what a
    /// device would need, with the sampler's slots and a micro-batch's activations once a thread.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn on_cpu<T: Float>(config: &RunConfig, threads: usize, memory: u64) -> Result<MemoryPlan> {
        let mut config = config.clone();
        if config.rl.slots == 0 {
            config.rl.slots = SLOTS.0;
        }
        config.rl.slots *= threads;
        let name = "host".to_string();
        let info = DriverInfo {
            name,
            ordinal: 0,
            capability: (9, 0),
            cuda: (13, 0),
            multiprocessors: 1,
            memory,
            shared_per_block: 232_448,
        };
        let mut plan = MemoryPlan::new::<T>(&config, &info)?;
        let micro_batches = (config.rl.prompts * config.rl.group).div_ceil(config.rl.micro_batch);
        plan.total -= plan.activations + plan.scratch;
        plan.scratch = 0;
        plan.activations *= threads.min(micro_batches) as u64;
        plan.total += plan.activations;
        // What the allocator keeps between threads: 1,634 MiB were held where 1,481 were asked for.
        plan.scratch = plan.total / 8;
        plan.total += plan.scratch;
        Ok(plan)
    }

    /// The plan, if it fits.
    ///
    /// # Errors
    /// `OutOfMemory` that says what would fit: the same run with smaller micro-batches and fewer
    /// sequences decoded together.
    pub fn fitting<T: Float>(config: &RunConfig, info: &DriverInfo) -> Result<MemoryPlan> {
        let plan = MemoryPlan::new::<T>(config, info)?;
        if plan.fits() {
            return Ok(plan);
        }
        let advice = advice::<T>(config, info)?;
        let what = format!("the run ({plan}); {advice}");
        Err(Error::OutOfMemory { what, bytes: plan.total })
    }

    pub(crate) fn fits(&self) -> bool {
        self.total <= self.device
    }
}

/// Settings with which the run fits: moments in host memory, then ever smaller micro-batches and
/// fewer sequences decoded together.
fn advice<T: Float>(config: &RunConfig, info: &DriverInfo) -> Result<String> {
    let mut smaller = config.clone();
    smaller.rl.optim = "paged_adamw".into();
    let plan = MemoryPlan::new::<T>(&smaller, info)?;
    if plan.fits() {
        return Ok(format!("rl.optim=paged_adamw needs {}", mib(plan.total)));
    }
    if smaller.rl.slots == 0 {
        smaller.rl.slots = config.rl.prompts * config.rl.group;
    }
    while smaller.rl.micro_batch > 1 || smaller.rl.slots > 1 {
        smaller.rl.micro_batch = (smaller.rl.micro_batch / 2).max(1);
        smaller.rl.slots = (smaller.rl.slots / 2).max(1);
        let plan = MemoryPlan::new::<T>(&smaller, info)?;
        if plan.fits() {
            let (micro, slots, total) = (smaller.rl.micro_batch, smaller.rl.slots, mib(plan.total));
            return Ok(format!(
                "rl.optim=paged_adamw rl.micro_batch={micro} rl.slots={slots} needs {total}"
            ));
        }
    }
    Ok("no smaller micro-batch helps: the weights are too large".into())
}

/// An update on the longest records there may be: one micro-batch of them.
fn dry_update<T: Float>(trainer: &mut Trainer<T>, mut records: Vec<Record>) -> Result<()> {
    records.sort_by_key(|record| std::cmp::Reverse(record.ids.len()));
    records.truncate(trainer.config.rl.micro_batch);
    let ones = vec![1.0; records.len()];
    let settings = presets::sft().settings;
    let backward = trainer.forward_backward(&records, &ones, &ones, &settings)?;
    trainer.optim_step(&backward, trainer.rl_update(0)).map(|_| ())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}: weights and optimiser {}, sampler {}, activations {}, scratch {}",
            mib(self.total),
            mib(self.device),
            mib(self.state),
            mib(self.sampler),
            mib(self.activations),
            mib(self.scratch)
        )
    }
}
