//! What a run may choose by itself so that it fits into memory, and the settings that would make it fit where that is
//! not enough.

use crate::io::system_memory::Room;
use crate::train::config::{CheckpointingKey, OptimizerKey, RunConfig, flattened};
use crate::train::run::memory_plan::{MemoryPlan, mib};
use crate::train::trainer::{CPU_SLOTS, Fit};
use gradus::device::{Device, DriverInfo};
use gradus::dtype::Float;
use gradus::error::{Error, Result};

impl MemoryPlan {
    /// What a run of `config` on `device` will need; one that does not fit is refused before anything
    /// is allocated or written. `None` where the system does not tell what there is.
    ///
    /// # Errors
    /// `Config` for what the trainer refuses; `OutOfMemory` that says what would fit.
    pub fn of_run<T: Float>(config: &RunConfig, device: &Device) -> Result<Option<MemoryPlan>> {
        if let Device::Gpu(gpu) = device {
            return MemoryPlan::fitting::<T>(config, gpu.info()).map(Some);
        }
        // Threads take address space when they start and when they first allocate.
        rayon::broadcast(|_| drop(std::hint::black_box(vec![0u8; 64])));
        let Some(room) = Room::now() else { return Ok(None) };
        MemoryPlan::fitting_on_cpu::<T>(config, rayon::current_num_threads(), &room).map(Some)
    }

    /// The plan on the CPU, if it fits.
    ///
    /// # Errors
    /// `Config` for what the trainer refuses; `OutOfMemory` that says what would fit: gradient
    /// checkpointing, smaller micro-batches, then fewer threads.
    pub fn fitting_on_cpu<T: Float>(
        config: &RunConfig,
        threads: usize,
        room: &Room,
    ) -> Result<MemoryPlan> {
        let plan = |config: &RunConfig, threads: usize| {
            chosen(config, &ON_CPU, |fit| MemoryPlan::on_cpu_as::<T>(config, threads, room, fit))
        };
        let whole = plan(config, threads)?;
        if whole.fits() {
            return Ok(whole);
        }
        let (open, text) = checkpointed(config)?;
        if !text.is_empty() {
            let open = plan(&open, threads)?;
            if open.fits() {
                return Err(whole.refused(Some(format!("{text}needs {}", mib(open.total)))));
            }
        }
        let smaller = halved(&open, CPU_SLOTS)?;
        let mut advice = fitting_settings(&smaller, &text, |config| plan(config, threads))?;
        if advice.is_none() && threads > 1 {
            let text = format!("threads=1 {text}");
            advice = fitting_settings(&smaller, &text, |config| plan(config, 1))?;
        }
        Err(whole.refused(advice))
    }

    /// The plan, if it fits.
    ///
    /// # Errors
    /// `OutOfMemory` that says what would fit: the same run with gradient checkpointing, moments in host
    /// memory, smaller micro-batches and fewer sequences decoded together.
    pub fn fitting<T: Float>(config: &RunConfig, info: &DriverInfo) -> Result<MemoryPlan> {
        let plan = |config: &RunConfig| {
            chosen(config, &ON_GPU, |fit| MemoryPlan::new_as::<T>(config, info, fit))
        };
        let whole = plan(config)?;
        if whole.fits() {
            return Ok(whole);
        }
        let (mut smaller, text) = checkpointed(config)?;
        if !text.is_empty() {
            let open = plan(&smaller)?;
            if open.fits() {
                return Err(whole.refused(Some(format!("{text}needs {}", mib(open.total)))));
            }
        }
        smaller.rl.optim = OptimizerKey::PagedAdamW;
        let text = format!("{text}rl.optim=paged_adamw ");
        let paged = plan(&smaller)?;
        let advice = match paged.fits() {
            true => Some(format!("{text}needs {}", mib(paged.total))),
            false => {
                smaller = halved(&smaller, config.rl.prompts * config.rl.group)?;
                fitting_settings(&smaller, &text, plan)?
            }
        };
        Err(whole.refused(advice))
    }

    /// The error of a run that does not fit.
    fn refused(&self, advice: Option<String>) -> Error {
        let advice = advice.unwrap_or_else(|| {
            "no smaller micro-batch helps: the weights are too large".to_string()
        });
        Error::OutOfMemory { what: format!("the run ({self}); {advice}"), bytes: self.total }
    }
}

/// What a run may do without, from what costs least: pages of the sampler's cache that few batches fill, then
/// activations, then more pages.
const ON_GPU: [Fit; 8] = [
    Fit { recompute: false, cache_percent: 100 },
    Fit { recompute: false, cache_percent: 50 },
    Fit { recompute: false, cache_percent: 25 },
    Fit { recompute: true, cache_percent: 100 },
    Fit { recompute: true, cache_percent: 50 },
    Fit { recompute: true, cache_percent: 25 },
    Fit { recompute: true, cache_percent: 10 },
    Fit { recompute: true, cache_percent: 0 },
];

/// On the CPU a page of the cache takes memory when it is first written, whatever there is room for.
const ON_CPU: [Fit; 2] =
    [Fit { recompute: false, cache_percent: 100 }, Fit { recompute: true, cache_percent: 100 }];

/// The plan of the first of `choices` that fits; if none does, of the first, everything in memory at once.
fn chosen(
    config: &RunConfig,
    choices: &[Fit],
    plan: impl Fn(Fit) -> Result<MemoryPlan>,
) -> Result<MemoryPlan> {
    let whole = plan(choices[0])?;
    if whole.fits() {
        return Ok(whole);
    }
    // Where nothing may be computed again, the same choices are without that.
    let auto = set_to(config, CheckpointingKey::Auto)?;
    let choice = |fit: Fit| Fit { recompute: fit.recompute && auto, ..fit };
    let least = plan(choice(choices[choices.len() - 1]))?;
    if !least.fits() {
        return Ok(whole);
    }
    for fit in &choices[1..choices.len() - 1] {
        let plan = plan(choice(*fit))?;
        if plan.fits() {
            return Ok(plan);
        }
    }
    Ok(least)
}

/// Whether `rl.gradient_checkpointing` of the run or of a phase is this.
fn set_to(config: &RunConfig, value: CheckpointingKey) -> Result<bool> {
    let plans = config.plan()?;
    let all = plans.iter().map(|plan| &plan.config).chain([config]);
    Ok(all.into_iter().any(|config| config.rl.gradient_checkpointing == value))
}

/// `config` with gradient checkpointing where it fits no other way, and the settings for that.
fn checkpointed(config: &RunConfig) -> Result<(RunConfig, String)> {
    let (mut open, mut text) = (config.clone(), String::new());
    if set_to(config, CheckpointingKey::Off)? {
        let key = "rl.gradient_checkpointing";
        for key in [key.to_string()].into_iter().chain(config.in_phases(key)) {
            let setting = format!("{key}=auto ");
            open.apply_set(setting.trim_end())?;
            text += &setting;
        }
    }
    Ok((open, text))
}

/// Micro-batch, slots and packing of the run, and those that phases have of their own. 0 stands for what
/// goes with the rest, but for slots.
fn sizes(config: &RunConfig) -> Result<Vec<(String, usize)>> {
    let values = flattened(&config.to_table());
    let own = |key: &str| [key.into()].into_iter().chain(config.in_phases(key));
    let mut found = Vec::new();
    for key in ["rl.micro_batch", "rl.slots", "sft.packing"].into_iter().flat_map(own) {
        let Some(size) = values.get(&key).and_then(|value| value.parse().ok()) else { continue };
        let size = match size {
            // Without packing there is no number of tokens to halve.
            0 if key.ends_with("packing") => continue,
            0 if key.ends_with("micro_batch") => match key.split('.').collect::<Vec<_>>()[..] {
                ["phase", name, ..] => config.phase_named(name)?.1.rl.sequences(),
                _ => config.rl.sequences(),
            },
            size => size,
        };
        found.push((key, size));
    }
    Ok(found)
}

/// `config` with half the micro-batches and half the slots, of which 0 means `slots`.
fn halved(config: &RunConfig, slots: usize) -> Result<RunConfig> {
    let mut smaller = config.clone();
    for (key, size) in sizes(config)? {
        let size = if size == 0 { slots } else { size };
        smaller.apply_set(&format!("{key}={}", (size / 2).max(1)))?;
    }
    Ok(smaller)
}

/// Settings with which the run fits, behind `text`: ever smaller micro-batches and fewer sequences
/// decoded together, beginning with those of `config`.
fn fitting_settings(
    config: &RunConfig,
    text: &str,
    plan: impl Fn(&RunConfig) -> Result<MemoryPlan>,
) -> Result<Option<String>> {
    let mut smaller = config.clone();
    loop {
        let plan = plan(&smaller)?;
        let sizes = sizes(&smaller)?;
        if plan.fits() {
            let total = mib(plan.total);
            let settings: String = sizes.iter().map(|(key, n)| format!("{key}={n} ")).collect();
            return Ok(Some(format!("{text}{settings}needs {total}")));
        }
        if sizes.iter().all(|(_, size)| *size == 1) {
            return Ok(None);
        }
        smaller = halved(&smaller, 1)?;
    }
}
