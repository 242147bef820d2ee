//! Barriers of blocks and clusters: who has arrived, who may go on, and what their clocks learn.

use super::fault::{Fault, Kind, Step};
use super::grid::{Grid, Running};
use super::warp::{State, join};
use super::{Arrival, Reduction};

/// The barriers of a block.
#[derive(Clone, Default)]
pub(super) struct Barrier {
    /// Threads that have arrived, and clocks of their warps.
    pub(super) threads: u32,
    pub(super) clock: Vec<u32>,
    pub(super) proxy: Vec<u32>,
    /// (warp, destination register) of a reduction.
    pub(super) outputs: Vec<(usize, u32, u32)>,
    pub(super) count: u32,
    pub(super) all: bool,
    pub(super) any: bool,
    pub(super) expected: Option<u32>,
    pub(super) reduction: Option<Reduction>,
}

impl Grid<'_> {
    pub(super) fn arrive(
        &mut self,
        running: &mut Running,
        warp: usize,
        at: usize,
        mask: u32,
        arrival: &Arrival,
    ) -> Step<()> {
        let w = &mut running.warps[warp];
        if arrival.aligned && mask != w.live {
            let message = format!(
                "barrier {} is reached by lanes {mask:#010x} while lanes {:#010x} of the warp are elsewhere",
                arrival.barrier,
                w.live & !mask
            );
            return Err(Fault::new(Kind::Divergence, message));
        }
        self.counters.barriers += 1;
        running.cluster.activity += 1;
        let block = w.block;
        self.note_barrier(running, warp, block * 16 + arrival.barrier as usize, arrival.wait);
        let w = &mut running.warps[warp];
        let barrier = &mut running.barriers[block * 16 + arrival.barrier as usize];
        if barrier.threads == 0 {
            *barrier = Barrier { all: true, expected: arrival.threads, ..Barrier::default() };
        } else if barrier.expected != arrival.threads {
            let message = format!(
                "barrier {} is expected by {:?} and by {:?} threads at once",
                arrival.barrier, barrier.expected, arrival.threads
            );
            return Err(Fault::new(Kind::Misuse, message));
        }
        // A barrier with a count counts whole warps.
        barrier.threads += if arrival.threads.is_some() { 32 } else { mask.count_ones() };
        join(&mut barrier.clock, &w.clock);
        join(&mut barrier.proxy, &w.proxy);
        if let Some((_, holds, destination)) = arrival.reduction {
            barrier.count += holds.count_ones();
            barrier.all &= holds == mask;
            barrier.any |= holds != 0;
            barrier.outputs.push((warp, destination, mask));
        }
        w.tick();
        w.fragments[at].pc += 1;
        if arrival.wait {
            w.fragments[at].state = State::Barrier(arrival.barrier);
        }
        if let Some((reduction, ..)) = arrival.reduction {
            running.barriers[block * 16 + arrival.barrier as usize].reduction = Some(reduction);
        }
        self.complete(running, block, arrival.barrier)
    }

    /// Releases a barrier if all threads it waits for are there.
    pub(super) fn complete(&mut self, running: &mut Running, block: usize, id: u32) -> Step<()> {
        let slot = block * 16 + id as usize;
        let live: u32 =
            running.warps.iter().filter(|w| w.block == block).map(|w| w.live.count_ones()).sum();
        let barrier = &running.barriers[slot];
        let expected = barrier.expected.unwrap_or(live);
        if barrier.threads > expected {
            let message =
                format!("{} threads arrive at barrier {id}, expected {expected}", barrier.threads);
            return Err(Fault::new(Kind::Misuse, message));
        }
        if barrier.threads < expected {
            return Ok(());
        }
        running.phases[slot] += 1;
        let barrier = std::mem::take(&mut running.barriers[slot]);
        for w in running.warps.iter_mut().filter(|w| w.block == block) {
            for at in 0..w.fragments.len() {
                if w.fragments[at].state == State::Barrier(id) {
                    w.fragments[at].state = State::Ready;
                    w.join(&barrier.clock, &barrier.proxy);
                }
            }
        }
        for (warp, destination, mask) in barrier.outputs {
            let registers = &mut running.warps[warp].registers;
            let destination = destination as usize;
            match barrier.reduction {
                Some(Reduction::Popc) => {
                    registers.set_narrow(destination, &[barrier.count; 32], mask, mask)
                }
                Some(Reduction::And) => registers.set_predicate(
                    destination,
                    if barrier.all { mask } else { 0 },
                    mask,
                    mask,
                ),
                _ => registers.set_predicate(
                    destination,
                    if barrier.any { mask } else { 0 },
                    mask,
                    mask,
                ),
            }
        }
        running.cluster.activity += 1;
        Ok(())
    }

    pub(super) fn cluster_barrier(
        &mut self,
        running: &mut Running,
        warp: usize,
        at: usize,
        mask: u32,
        arrive: bool,
        wait: bool,
    ) {
        let slot = running.barriers.len() - 1;
        running.cluster.activity += 1;
        self.note_cluster(running, warp, [arrive, wait]);
        let w = &mut running.warps[warp];
        w.fragments[at].pc += 1;
        if arrive {
            let barrier = &mut running.barriers[slot];
            barrier.threads += mask.count_ones();
            join(&mut barrier.clock, &w.clock);
            join(&mut barrier.proxy, &w.proxy);
            w.cluster_phase += 1;
            w.tick();
        }
        if wait {
            w.fragments[at].state = State::Cluster;
        }
        self.complete_cluster(running);
    }

    /// Ends the cluster barrier's phase when all live threads have arrived, and lets those go on
    /// that wait for a phase that has ended.
    pub(super) fn complete_cluster(&mut self, running: &mut Running) {
        let slot = running.barriers.len() - 1;
        let live: u32 = running.warps.iter().map(|w| w.live.count_ones()).sum();
        if running.barriers[slot].threads >= live && running.barriers[slot].threads > 0 {
            let barrier = std::mem::take(&mut running.barriers[slot]);
            running.cluster.phase += 1;
            running.cluster.phase_clock = (barrier.clock, barrier.proxy);
        }
        let (phase, clock) = (running.cluster.phase, running.cluster.phase_clock.clone());
        for w in &mut running.warps {
            for at in 0..w.fragments.len() {
                if w.fragments[at].state == State::Cluster && w.cluster_phase <= phase {
                    w.fragments[at].state = State::Ready;
                    w.join(&clock.0, &clock.1);
                }
            }
        }
    }
}
