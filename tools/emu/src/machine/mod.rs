//! The machine that programs run on.

mod barrier;
pub mod counters;
pub mod fault;
pub mod grid;
pub mod memory;
pub mod pending;
pub mod race;
mod record;
pub mod registers;
pub mod shared;
pub mod warp;

use std::collections::{HashMap, VecDeque};

use crate::tensor::Numerics;
use crate::time::tape::Note;
use counters::Counters;
use fault::Step;
use memory::Memory;
use pending::{BarrierClocks, BarrierPlace};
use race::Acquired;
use shared::Shared;
use warp::Warp;

/// Generic addresses at and above this are shared memory: block rank in the cluster in bits
/// 24 and up, offset below.
pub const SHARED_WINDOW: u64 = 1 << 62;
/// Generic addresses at and above this, below shared memory, are the lane's local memory.
pub const LOCAL_WINDOW: u64 = 1 << 61;
/// Generic addresses at and above this, below local memory, are constants, then parameters.
pub const CONST_WINDOW: u64 = 1 << 60;
/// Where parameters begin in the constant window.
pub const PARAM_OFFSET: u64 = 1 << 32;

/// What an instruction executes on.
pub struct Context<'a> {
    pub warp: &'a mut Warp,
    pub cluster: &'a mut Cluster,
    pub memory: &'a mut Memory,
    pub counters: &'a mut Counters,
    pub launch: &'a Launch<'a>,
}

/// What is the same for all blocks of a launch.
pub struct Launch<'a> {
    pub constants: &'a [u8],
    pub params: &'a [u8],
    /// Blocks of a cluster.
    pub cluster: u32,
    pub warps_per_block: usize,
}

/// What the blocks of a cluster share, and the shared memory of each.
#[derive(Default)]
pub struct Cluster {
    pub index: u32,
    pub shared: Vec<Shared>,
    pub acquired: Acquired,
    /// Finished phases of the cluster's barrier, and the clocks the last one passed on.
    pub phase: u64,
    pub phase_clock: (Vec<u32>, Vec<u32>),
    /// Copies that land when nothing else can go on.
    pub late: VecDeque<Delivery>,
    pub numerics: Numerics,
    /// What the detectors know of mbarriers.
    pub barriers: HashMap<BarrierPlace, BarrierClocks>,
    /// Grows whenever something happens that may let a waiting warp go on.
    pub activity: u64,
    /// The launch is timed: meetings of warps are noted, and products are not computed.
    pub timed: bool,
    pub notes: Vec<Note>,
}

impl Cluster {
    /// Notes a meeting of the present instruction, if the launch is timed.
    pub fn note(&mut self, note: impl FnOnce() -> Note) {
        if self.timed {
            let note = note();
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

/// What happens after an instruction.
#[derive(Clone, Copy, Debug)]
pub enum Flow {
    Next,
    /// Lanes of `taken` go to `target`.
    Branch {
        taken: u32,
        target: usize,
    },
    /// The lanes are done.
    Exit(u32),
    /// Goes on after the other warps had a turn.
    Yield,
    /// Arrives at a barrier of the block.
    Barrier(Arrival),
    /// Arrives at the cluster's barrier, waits at it, or both.
    ClusterBarrier {
        arrive: bool,
        wait: bool,
    },
    /// Waits until the lanes of the mask stand at this instruction.
    Converge(u32),
}

/// An arrival at a barrier of the block.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub barrier: u32,
    /// Threads that complete the barrier; `None` for all of the block.
    pub threads: Option<u32>,
    pub wait: bool,
    /// All lanes of the warp have to arrive together.
    pub aligned: bool,
    /// `bar.red`: operation, lanes whose predicate holds, destination.
    pub reduction: Option<(Reduction, u32, u32)>,
}

/// The operation of `bar.red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Popc,
    And,
    Or,
}

/// What an asynchronous copy does when it lands.
pub type Delivery = Box<dyn FnOnce(&mut Cluster, &mut Memory, &mut Counters) -> Step<()> + Send>;

/// A decoded instruction.
pub type Execute = Box<dyn Fn(&mut Context<'_>, u32) -> Step<Flow> + Send + Sync>;
