//! What the warps of a multiprocessor share: issue slots, units, and the ways to memory.

use super::cost::{Cost, Port, Unit};
use super::rates::{Gpu, limits};
use super::replay::RESOURCES;
use super::tape::Fact;
use super::timeline::Step;

/// Bytes per clock that a multiprocessor has of what all share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shares {
    pub l2: f64,
    pub memory: f64,
}

/// Units of a scheduler with a queue of their own.
const UNITS: usize = 5;

#[derive(Clone, Default)]
struct Scheduler {
    free: u64,
    units: [u64; UNITS],
    busy: [u64; UNITS + 1],
}

/// One multiprocessor.
#[derive(Clone, Default)]
pub(crate) struct Multiprocessor {
    schedulers: [Scheduler; 4],
    /// When the unit of memory instructions, the L2 and memory have done what was asked of them.
    passes: u64,
    l2: f64,
    memory: f64,
    used: [f64; 3],
}

fn unit(cost: Cost) -> Option<usize> {
    match cost.unit {
        Unit::Integer => Some(0),
        Unit::Float => Some(1),
        Unit::Double => Some(2),
        Unit::Special => Some(3),
        Unit::Tensor => Some(4),
        Unit::None | Unit::Memory | Unit::Control => None,
    }
}

impl Multiprocessor {
    /// When an instruction that could be issued at `time` can be.
    pub fn open(&self, time: u64, scheduler: usize, cost: Cost, gpu: &Gpu) -> u64 {
        let s = &self.schedulers[scheduler];
        let mut time = time.max(s.free);
        if let Some(unit) = unit(cost) {
            time = time.max(s.units[unit]);
        }
        if cost.unit == Unit::Memory {
            time = time.max(self.passes.saturating_sub(u64::from(gpu.slots.ahead)));
        }
        time
    }

    /// Issues it.
    pub fn take(&mut self, time: u64, scheduler: usize, cost: Cost) {
        let s = &mut self.schedulers[scheduler];
        let slots = u64::from(cost.slots);
        s.free = s.free.max(time + slots);
        s.busy[UNITS] += slots;
        if let Some(unit) = unit(cost) {
            let busy = slots * u64::from(cost.busy);
            s.units[unit] = time + busy;
            s.busy[unit] += busy;
        }
        if cost.unit == Unit::Memory && cost.port == Port::None {
            self.pass(time, 1);
        }
    }

    /// Passes of the unit of memory instructions; when they are done.
    fn pass(&mut self, time: u64, passes: u64) -> u64 {
        self.passes = self.passes.max(time) + passes;
        self.used[0] += passes as f64;
        self.passes
    }

    /// Does a memory access; when its data is there.
    pub fn access(
        &mut self,
        time: u64,
        step: &Step,
        fact: &Fact,
        cold: f64,
        (s, gpu): (&Shares, &Gpu),
    ) -> u64 {
        let latency = &gpu.latency;
        let (lines, passes) = (u64::from(fact.lines), u64::from(fact.passes));
        if matches!(step.kind.port, Port::None | Port::Constant) {
            return time;
        }
        if step.kind.port == Port::Shared {
            let done = self.pass(time, passes.max(1));
            return done + u64::from(if step.remote { latency.remote } else { latency.shared });
        }
        // A copy through the L1 is written twice: into its line, and into shared memory.
        let passes = if step.kind.port == Port::Bulk { 1 } else { (lines + passes).max(1) };
        let done = self.pass(time, passes);
        let bytes = 32.0 * f64::from(fact.sectors);
        if fact.sectors == 0 && step.kind.port == Port::Load {
            return done + u64::from(latency.l1);
        }
        self.l2 = self.l2.max(done as f64) + bytes / s.l2;
        self.used[1] += bytes / s.l2;
        let mut landing = self.l2 + f64::from(latency.l2);
        if step.kind.port == Port::Atomic {
            landing = landing.max(done as f64 + f64::from(latency.atomic));
        }
        if cold > 0.0 {
            self.memory = self.memory.max(done as f64) + cold * bytes / s.memory;
            self.used[2] += cold * bytes / s.memory;
            // Who comes second to a line that is on its way waits for it as well.
            let waits = (cold * f64::from(fact.sectors.max(1))).min(1.0);
            let from = self.memory + f64::from(latency.memory);
            landing += waits * (from - landing).max(0.0);
        }
        landing as u64
    }

    /// A warp's share of a product of its warpgroup; when it is done.
    pub fn multiply(&mut self, time: u64, scheduler: usize, clocks: u64) -> u64 {
        // Four passes of A and eight of B over shared memory.
        self.pass(time, 12.min(clocks));
        let s = &mut self.schedulers[scheduler];
        let tensor = 4;
        s.units[tensor] = s.units[tensor].max(time) + clocks;
        s.busy[tensor] += clocks;
        s.units[tensor]
    }

    /// Busy clocks, a mean over the schedulers.
    pub fn busy(&self) -> [f64; RESOURCES] {
        let mean = |i: usize| self.schedulers.iter().map(|s| s.busy[i] as f64).sum::<f64>() / 4.0;
        let [passes, l2, memory] = self.used;
        [mean(UNITS), mean(0), mean(1), mean(2), mean(3), passes, mean(4), l2, memory]
    }
}

/// Blocks that a multiprocessor holds at a time.
pub(crate) fn resident(threads: u32, registers: u32, shared: u32) -> u32 {
    let warps = threads.div_ceil(32);
    // Registers are given out by 256 to a warp.
    let registers = (registers * 32).next_multiple_of(256) * warps;
    let by = |limit: u32, use_: u32| limit.checked_div(use_).unwrap_or(limits::BLOCKS);
    limits::BLOCKS
        .min(by(limits::WARPS, warps))
        .min(by(limits::REGISTERS, registers))
        .min(by(limits::SHARED, shared + limits::SHARED_OF_SYSTEM))
        .max(1)
}
