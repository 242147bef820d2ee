//! What a few blocks of a launch did, instruction by instruction, for the replay.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::rates::limits;
use crate::machine::pending::BarrierPlace;

/// An instruction that a warp executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub pc: u32,
    /// One more than its place in [`Recording::facts`]; 0 if there is nothing to tell.
    pub fact: u32,
}

/// What an instruction did to memory and barriers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fact {
    /// Buffer of global memory.
    pub buffer: u32,
    /// Lines of 128 bytes of global memory.
    pub lines: u16,
    /// Sectors that the L2 was asked for.
    pub sectors: u16,
    /// Passes over the banks of shared memory.
    pub passes: u16,
    /// Multiply-adds of a warp's share of a warpgroup's product.
    pub macs: u32,
    pub notes: Vec<Note>,
}

/// A meeting of warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Meeting {
    /// Barrier of a block: 16 · block + number.
    Block(u32),
    Cluster,
    /// An mbarrier: rank of the block, offset.
    Object(u32, u32),
}

/// What a warp has to do with the phase of a meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Arrives.
    Arrives(Meeting, u32),
    /// Its copies until now arrive when they land.
    Lands(Meeting, u32),
    /// Goes on when all have arrived.
    Waits(Meeting, u32),
}

/// The events of sampled clusters.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// By cluster and warp.
    pub clusters: Vec<Vec<Vec<Event>>>,
    pub facts: Vec<Fact>,
    /// Where each warp last asked in vain, and how many events it had then.
    asked: Vec<(usize, usize)>,
}

/// Events of a cluster from which on no further one of its launch is recorded. Tiles of deep products have
/// more, and are alike; where blocks differ most, in attention, they have less.
const LONG: usize = 200_000;

impl Recording {
    pub fn begin(&mut self, warps: usize) {
        self.clusters.push(vec![Vec::new(); warps]);
        self.asked = vec![(usize::MAX, 0); warps];
    }

    /// Whether the last cluster was long enough to stand for all.
    pub fn is_long(&self) -> bool {
        self.clusters.last().is_some_and(|c| c.iter().map(Vec::len).sum::<usize>() > LONG)
    }

    /// Exchanges two clusters, if both were recorded.
    pub fn exchange(&mut self, a: usize, b: usize) {
        if a.max(b) < self.clusters.len() {
            self.clusters.swap(a, b);
        }
    }

    /// Adds an event of a warp of the present cluster.
    pub fn event(&mut self, warp: usize, pc: usize, fact: Fact) {
        let at = if fact == Fact::default() {
            0
        } else {
            self.facts.push(fact);
            self.facts.len() as u32
        };
        if let Some(cluster) = self.clusters.last_mut() {
            cluster[warp].push(Event { pc: pc as u32, fact: at });
        }
    }

    /// A warp asks in vain. What it has done since it last asked there was nothing else: on hardware it
    /// would have gone on when its answer came.
    pub fn poll(&mut self, warp: usize, pc: usize) {
        const LOOP: usize = 16;
        let Some(events) = self.clusters.last_mut().map(|c| &mut c[warp]) else { return };
        let (at, count) = self.asked[warp];
        if at == pc && events.len() - count < LOOP {
            events.truncate(count);
        }
        self.asked[warp] = (pc, events.len());
    }

    /// Tells more of the last event of a warp.
    pub fn tell(&mut self, warp: usize, note: Note) {
        let Some(event) = self.clusters.last_mut().and_then(|c| c[warp].last_mut()) else { return };
        if event.fact == 0 {
            self.facts.push(Fact::default());
            event.fact = self.facts.len() as u32;
        }
        self.facts[event.fact as usize - 1].notes.push(note);
    }
}

/// The place of an mbarrier as a meeting.
pub(crate) fn object((rank, at): BarrierPlace) -> Meeting {
    Meeting::Object(rank as u32, at as u32)
}

/// Traffic of a launch between memory, L2 and multiprocessors, as far as the sampled clusters tell.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// When a sector was last touched in this cluster, in bytes that came since its start, and whether the
    /// cluster has stored to it.
    near: HashMap<(u32, u64), (u64, bool), BuildHasherDefault<Mix>>,
    bytes: u64,
    /// Bytes of the L1 that shared memory leaves.
    pub l1: u64,
    /// Lines and sectors of the present instruction: distinct ones, and those that the L1 lacks.
    lines: Vec<(u32, u64)>,
    distinct: u16,
    missing: u16,
    /// Distinct sectors of a cluster, summed over the sampled ones, by buffer.
    pub unique: BTreeMap<u32, Unique>,
    /// Sectors that the L2 was asked for, by buffer.
    pub asked: BTreeMap<u32, u64>,
}

/// Distinct sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unique {
    /// Loaded before they were stored to, if ever: they come from memory or the L2.
    pub loaded: u64,
    /// Stored to: they go to memory at last.
    pub stored: u64,
    /// Both of it.
    pub updated: u64,
}

/// Multiplies and folds: the map is asked for every sector of every access, and its keys are no foe's.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.0 ^ n) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Traffic {
    /// A cluster starts.
    pub fn begin(&mut self, shared: u64) {
        self.near.clear();
        self.bytes = 0;
        self.l1 = limits::L1.saturating_sub(shared);
    }

    /// An instruction touches distinct sectors of a buffer.
    pub fn touch(&mut self, buffer: u32, sectors: &[u64], store: bool) {
        let mut unique = self.unique.get(&buffer).copied().unwrap_or_default();
        for &sector in sectors {
            let last = self.near.get(&(buffer, sector)).copied();
            let stored = last.is_some_and(|(_, stored)| stored);
            self.near.insert((buffer, sector), (self.bytes, stored || store));
            unique.loaded += u64::from(!store && last.is_none());
            unique.stored += u64::from(store && !stored);
            unique.updated += u64::from(store && !stored && last.is_some());
            let hit = last.is_some_and(|(at, _)| self.bytes - at < self.l1) && !store;
            self.bytes += if hit { 0 } else { 32 };
            self.distinct += 1;
            self.missing += u16::from(!hit);
            let line = (buffer, sector / 4);
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
        self.unique.insert(buffer, unique);
    }

    /// What the present instruction has touched; `asked` is how many sectors it asked for, some
    /// perhaps twice.
    pub fn take(&mut self, asked: u64) -> Fact {
        let Some(&(buffer, _)) = self.lines.first() else { return Fact::default() };
        let twice = (asked as u16).saturating_sub(self.distinct);
        let fact = Fact {
            buffer,
            lines: self.lines.len() as u16,
            sectors: self.missing + twice,
            ..Fact::default()
        };
        *self.asked.entry(buffer).or_default() += u64::from(fact.sectors);
        self.lines.clear();
        (self.distinct, self.missing) = (0, 0);
        fact
    }
}
