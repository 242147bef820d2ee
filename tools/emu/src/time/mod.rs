//! Virtual time: how long a launch would take on a GPU.
//!
//! A few clusters of the launch run as always, and what their warps execute is written down. The
//! record is then replayed against a model of a multiprocessor: warps issue in order, an instruction
//! waits for its registers, for a slot of its scheduler and for its unit; accesses queue for passes,
//! for the L2 and for memory; copies, products and barriers have times of arrival. Blocks come and go
//! as the multiprocessor holds them. What does not fit into the replay is extrapolated.
//!
//! An [`Estimate`] is a prediction. How far it is from measurements is in
//! `benches/results/predicted.md`.

mod cost;
mod order;
mod queues;
pub mod rates;
mod replay;
pub(crate) mod tape;
pub(crate) mod timeline;

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::program::Program;
use crate::machine::grid::Shape;
use crate::machine::memory::Memory;
use queues::{Shares, resident};
use rates::Gpu;
use replay::{NAMES, Plan, Replayed};
use tape::{Event, Recording, Traffic};
use timeline::Timeline;

/// How long a launch would take, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds from its first instruction to its last, without the launch itself.
    pub seconds: f64,
    /// Seconds of its start that do not depend on the launch before it.
    pub early: f64,
    /// What was busy most, and the share of the time that it was: low where latency binds.
    pub binds: (&'static str, f64),
    /// Bytes between memory and L2, and between L2 and multiprocessors.
    pub memory_bytes: f64,
    /// Bytes between the L2 and the multiprocessors.
    pub l2_bytes: f64,
    /// Blocks that a multiprocessor holds at a time.
    pub resident: u32,
    /// Rounds of blocks.
    pub waves: f64,
}

/// What a launch did, as far as its time depends on it.
#[derive(Debug)]
pub struct Record {
    timeline: Arc<Timeline>,
    shape: Shape,
    shared: u32,
    registers: [usize; 3],
    recording: Recording,
    traffic: Traffic,
    /// Sizes in bytes of the buffers that were touched, and whether an earlier launch of the op touched
    /// them.
    buffers: HashMap<u32, (u64, bool)>,
    serial_atomics: u64,
}

/// How a record is timed.
#[derive(Clone, Copy, Debug)]
pub struct Timing<'a> {
    /// The GPU.
    pub gpu: &'a Gpu,
    /// Registers of a thread, which PTX does not tell.
    pub registers: u32,
    /// Operands are in memory, not in the L2, unless an earlier launch of the same op touched them.
    pub cold: bool,
}

/// Rounds of clusters that the replay runs before it extrapolates; of long clusters, whose fill and drain count for
/// less.
const ROUNDS: [usize; 2] = [3, 2];

impl Record {
    pub(crate) fn new(
        program: &Program,
        shape: &Shape,
        recording: Recording,
        traffic: Traffic,
        memory: &Memory,
    ) -> Record {
        let touched =
            |buffer: &u32| (*buffer, (memory.size(*buffer), memory.warm.contains(buffer)));
        Record {
            timeline: program.timeline.clone(),
            shape: *shape,
            shared: program.shared_bytes + shape.shared,
            registers: program.registers,
            buffers: traffic.unique.keys().map(touched).collect(),
            recording,
            traffic,
            serial_atomics: 0,
        }
    }

    /// Atomics on one sector of the clusters that were recorded.
    pub(crate) fn with_atomics(self, serial_atomics: u64) -> Record {
        Record { serial_atomics, ..self }
    }

    /// Instructions that were recorded.
    pub fn events(&self) -> u64 {
        self.recording.clusters.iter().flatten().map(|warp| warp.len() as u64).sum()
    }

    fn clusters(&self) -> u64 {
        let blocks: u64 = self.shape.blocks.iter().map(|&n| u64::from(n)).product();
        blocks / u64::from(self.shape.cluster)
    }

    /// How many clusters each recorded one stands for.
    fn scale(&self) -> f64 {
        self.clusters() as f64 / self.recording.clusters.len().max(1) as f64
    }

    /// The time of the launch.
    ///
    /// # Errors
    /// A record that cannot be replayed.
    pub fn estimate(&self, timing: &Timing<'_>) -> Result<Estimate, String> {
        let gpu = timing.gpu;
        let threads: u32 = self.shape.threads.iter().product();
        let (cluster, clusters) = (u64::from(self.shape.cluster), self.clusters());
        let resident = resident(threads, timing.registers, self.shared);
        // Groups of multiprocessors that hold a cluster.
        let groups = match cluster {
            1 => u64::from(gpu.multiprocessors),
            _ => (gpu.cluster_share * f64::from(gpu.multiprocessors) / cluster as f64) as u64,
        };
        let traffic = self.bytes(timing);
        let each = clusters.div_ceil(groups) as usize;
        let together = (resident as usize).min(each.max(1));
        let rounds = ROUNDS[usize::from(self.recording.is_long())];
        let plan = Plan {
            timeline: &self.timeline,
            recording: &self.recording,
            registers: self.registers,
            blocks: cluster as usize,
            warps: threads.div_ceil(32) as usize,
            clusters: each.min(rounds * together),
            together,
            shares: shares(gpu, clusters.min(groups) * cluster),
            gpu,
            cold: traffic.cold,
        };
        let reorder = |w: &Vec<Event>| order::reorder(w, &self.timeline);
        let recorded = self.recording.clusters.iter();
        let samples: Vec<Vec<_>> = recorded.map(|c| c.iter().map(reorder).collect()).collect();
        let replayed = replay::replay(&plan, &samples)?;
        let (clocks, scale) = extrapolate(&replayed, each, together);
        let seconds = clocks / gpu.clock;
        let serial = self.serial_atomics as f64 * self.scale() * gpu.serial_atomic / gpu.clock;
        let moved = traffic.memory / gpu.memory_bytes;
        let busy = |i: usize| scale * replayed.busy[i] / clocks.max(1.0);
        let most = (0..NAMES.len()).max_by(|&a, &b| busy(a).total_cmp(&busy(b))).unwrap_or(0);
        let binds = match seconds {
            s if serial > s.max(moved) => ("atomics", 1.0),
            s if moved > s => ("memory", 1.0),
            _ => (NAMES[most], busy(most)),
        };
        Ok(Estimate {
            seconds: seconds.max(moved).max(serial),
            early: replayed.released.unwrap_or(0) as f64 / gpu.clock,
            binds,
            memory_bytes: traffic.memory,
            l2_bytes: traffic.l2,
            resident,
            waves: clusters as f64 / (groups * u64::from(resident)) as f64,
        })
    }

    /// Bytes between memory and the L2, without the time that they take.
    pub fn memory_bytes(&self, timing: &Timing<'_>) -> f64 {
        self.bytes(timing).memory
    }

    fn bytes(&self, timing: &Timing<'_>) -> Bytes {
        let scale = self.scale();
        let mut out = Bytes { memory: 0.0, l2: 0.0, cold: HashMap::new() };
        for (buffer, unique) in &self.traffic.unique {
            let (size, warm) = self.buffers.get(buffer).copied().unwrap_or((0, true));
            let warm = warm || !timing.cold;
            let asked = self.traffic.asked.get(buffer).copied().unwrap_or(0);
            let asked = 32.0 * asked as f64 * scale;
            let [loads, stores, updates] = [unique.loaded, unique.stored, unique.updated]
                .map(|n| (32.0 * n as f64 * scale).min(size as f64));
            // What fits into the L2 stays there for the next launch of the op. What the op leaves is
            // written back while the next one runs.
            let fits = loads + stores - updates <= timing.gpu.l2_size;
            let read = if fits && warm { 0.0 } else { loads };
            let written = if fits && !timing.cold { 0.0 } else { stores };
            out.cold.insert(*buffer, ((read + written) / asked.max(1.0)).min(1.0));
            out.memory += read + written;
            out.l2 += asked;
        }
        out
    }
}

/// What each of so many busy multiprocessors has of the L2 and of memory.
fn shares(gpu: &Gpu, busy: u64) -> Shares {
    let each = |bytes: f64, port: f64| (bytes / gpu.clock / busy.max(1) as f64).min(port);
    Shares { l2: each(gpu.l2_bytes, gpu.l2_port), memory: each(gpu.memory_bytes, gpu.memory_port) }
}

/// Clocks of `each` clusters on a multiprocessor of which the first were replayed, and by how much
/// that is more work than the replay's.
fn extrapolate(replayed: &Replayed, each: usize, together: usize) -> (f64, f64) {
    let mut ends = replayed.ends.clone();
    ends.sort_unstable();
    let last = ends.last().copied().unwrap_or(0) as f64;
    let ran = ends.len();
    if each <= ran {
        return (last, 1.0);
    }
    // The steady pace: from the end of the first round to the end of the last but the tail.
    let pace = (last - ends[together - 1] as f64) / (ran - together).max(1) as f64;
    (last + pace * (each - ran) as f64, each as f64 / ran as f64)
}

/// Bytes of a whole launch.
struct Bytes {
    memory: f64,
    l2: f64,
    /// The share of what a buffer is asked for that comes from memory.
    cold: HashMap<u32, f64>,
}

#[cfg(test)]
mod tests;
