//! A warp: registers, the fragments it has diverged into, and its clocks.

use std::collections::{BTreeMap, VecDeque};

use super::pending::{BulkGroups, Products};
use super::registers::Registers;

/// Lanes of a warp that stand at the same instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub pc: usize,
    pub mask: u32,
    pub state: State,
}

/// Whether a fragment can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// Waits at the block's barrier with this number.
    Barrier(u32),
    /// Waits at the cluster's barrier.
    Cluster,
    /// Waits for the rest of its warp at an instruction that all named lanes execute together.
    Converge(u32),
}

/// One 4-, 8- or 16-byte copy by `cp.async`, not delivered yet.
#[derive(Clone, Copy, Debug)]
pub struct PendingCopy {
    pub lane: u8,
    pub shared: u32,
    pub global: u64,
    pub bytes: u8,
    /// Bytes that come from global memory; the rest is zero.
    pub source: u8,
}

/// Everything of one warp.
#[derive(Default)]
pub struct Warp {
    pub registers: Registers,
    pub fragments: Vec<Fragment>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Index in its cluster, and of its block in the cluster.
    pub index: u32,
    pub block: usize,
    /// What this warp knows of the warps of its cluster: the race detector's vector clock.
    pub clock: Vec<u32>,
    /// The clock at the last fence of device scope: what an atomic publishes.
    pub fenced: Option<Vec<u32>>,
    /// Addresses of atomics since the last fence, whose clocks the next fence takes in.
    pub unfenced_atomics: Vec<u64>,
    /// Writes up to this clock are visible to the async proxy.
    pub proxy: Vec<u32>,
    /// Copies since the last `cp.async.commit_group`, and committed groups, oldest first.
    pub open_copies: Vec<PendingCopy>,
    pub copy_groups: VecDeque<Vec<PendingCopy>>,
    /// Local memory of the 32 lanes, lane after lane, and which bytes were written.
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    /// Products of the tensor cores, and bulk stores by lane, that are under way.
    pub products: Products,
    pub bulk: BTreeMap<usize, BulkGroups>,
    /// Phases of the cluster's barrier at which this warp has arrived.
    pub cluster_phase: u64,
    /// Instructions executed, for the budget.
    pub executed: u64,
    /// Those of them that only asked again, and where and when the warp last asked in vain.
    pub polled: u64,
    pub asked: (usize, u64),
}

impl Warp {
    /// A release: what this warp did until now is told apart from what it does next.
    pub fn tick(&mut self) {
        self.clock[self.index as usize] += 1;
    }

    /// Asks in vain at `pc`. A few instructions after the last time at the same place, it was all that
    /// the warp did.
    pub fn poll(&mut self, pc: usize) {
        const LOOP: u64 = 16;
        let since = self.executed - self.asked.1;
        if self.asked.0 == pc && since < LOOP {
            self.polled += since;
        }
        self.asked = (pc, self.executed);
    }

    /// Takes over what another clock knows.
    pub fn join(&mut self, clock: &[u32], proxy: &[u32]) {
        join(&mut self.clock, clock);
        join(&mut self.proxy, proxy);
    }

    /// Splits the fragment `at`: lanes of `taken` go to `target`, the others to `next`.
    pub fn branch(&mut self, at: usize, taken: u32, target: usize, next: usize) {
        let rest = self.fragments[at].mask & !taken;
        self.fragments[at].mask = taken;
        self.fragments[at].pc = target;
        if taken == 0 {
            self.fragments[at].mask = rest;
            self.fragments[at].pc = next;
        } else if rest != 0 {
            self.fragments.push(Fragment { pc: next, mask: rest, state: State::Ready });
        }
    }

    /// Joins ready fragments that stand at the same instruction.
    pub fn merge(&mut self) {
        let mut i = 0;
        while i < self.fragments.len() {
            let mut j = i + 1;
            while j < self.fragments.len() {
                let (a, b) = (self.fragments[i], self.fragments[j]);
                if a.pc == b.pc && a.state == State::Ready && b.state == State::Ready {
                    self.fragments[i].mask |= b.mask;
                    self.fragments.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }

    /// The ready fragment with the lowest pc, and the pc at which it must stop to be joined.
    pub fn pick(&self) -> Option<(usize, usize)> {
        let ready = |f: &&Fragment| f.state == State::Ready;
        let best = self.fragments.iter().filter(ready).min_by_key(|f| f.pc)?;
        let at = self.fragments.iter().position(|f| f == best)?;
        let stop = self.fragments.iter().enumerate().filter(|(i, _)| *i != at);
        Some((at, stop.map(|(_, f)| f.pc).filter(|&pc| pc > best.pc).min().unwrap_or(usize::MAX)))
    }
}

/// Elementwise maximum; a shorter clock knows nothing of the rest.
pub fn join(mine: &mut Vec<u32>, other: &[u32]) {
    if mine.len() < other.len() {
        mine.resize(other.len(), 0);
    }
    mine.iter_mut().zip(other).for_each(|(m, o)| *m = (*m).max(*o));
}
