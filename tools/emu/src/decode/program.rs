//! A kernel that is ready to run.

use crate::machine::Execute;
use crate::machine::counters::Work;
use crate::machine::registers::{ALL, Registers};
use crate::time::timeline::Timeline;

/// A decoded kernel.
pub struct Program {
    pub(crate) name: String,
    pub(crate) instructions: Vec<Instruction>,
    /// What they cost.
    pub(crate) timeline: std::sync::Arc<Timeline>,
    /// Registers by class, constants and special registers included.
    pub(crate) registers: [usize; 3],
    /// Registers that hold the same value in every lane.
    pub(crate) narrow_constants: Vec<(usize, u32)>,
    pub(crate) wide_constants: Vec<(usize, u64)>,
    /// Registers that hold an address in the block's own shared memory, by its offset.
    pub(crate) narrow_shared: Vec<(usize, u64)>,
    pub(crate) wide_shared: Vec<(usize, u64)>,
    /// Registers that are filled when a warp starts.
    pub(crate) specials: Vec<(Special, usize)>,
    /// Constant memory of the module.
    pub(crate) constants: Vec<u8>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: u32,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) cluster: Option<u32>,
    /// The PTX text, for messages.
    pub(crate) text: std::sync::Arc<str>,
}

/// One instruction.
pub struct Instruction {
    /// Predicate register, and whether it is negated.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) run: Execute,
    pub(crate) line: u32,
    pub(crate) work: Work,
}

/// A special register that does not change while a warp runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    ClusterRank,
    ClusterSize,
    ClusterId(usize),
    Clusters(usize),
    ClusterCtaid(usize),
    ClusterNctaid(usize),
    LaneMask(LaneMask),
    DynamicShared,
    TotalShared,
}

/// `%lanemask_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneMask {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl LaneMask {
    /// The mask of lane `lane`.
    pub fn mask(self, lane: u32) -> u32 {
        let equal = 1u32 << lane;
        match self {
            LaneMask::Equal => equal,
            LaneMask::Less => equal - 1,
            LaneMask::LessEqual => equal | (equal - 1),
            LaneMask::Greater => !(equal | (equal - 1)),
            LaneMask::GreaterEqual => !(equal - 1),
        }
    }
}

impl Special {
    /// The special register of a name such as `%tid.x`.
    pub fn named(name: &str) -> Option<Special> {
        let (base, axis) = match name.rsplit_once('.') {
            Some((base, "x")) => (base, 0),
            Some((base, "y")) => (base, 1),
            Some((base, "z")) => (base, 2),
            _ => (name, 0),
        };
        Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Warps,
            "%cluster_ctarank" => Special::ClusterRank,
            "%cluster_nctarank" => Special::ClusterSize,
            "%clusterid" => Special::ClusterId(axis),
            "%nclusterid" => Special::Clusters(axis),
            "%cluster_ctaid" => Special::ClusterCtaid(axis),
            "%cluster_nctaid" => Special::ClusterNctaid(axis),
            "%lanemask_eq" => Special::LaneMask(LaneMask::Equal),
            "%lanemask_lt" => Special::LaneMask(LaneMask::Less),
            "%lanemask_le" => Special::LaneMask(LaneMask::LessEqual),
            "%lanemask_gt" => Special::LaneMask(LaneMask::Greater),
            "%lanemask_ge" => Special::LaneMask(LaneMask::GreaterEqual),
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            _ => return None,
        })
    }
}

impl Program {
    /// Registers of a new warp: nothing is defined but constants and special registers.
    pub(crate) fn initialize(
        &self,
        registers: &mut Registers,
        shared_base: u64,
        special: impl Fn(Special) -> [u32; 32],
    ) {
        registers.resize(self.registers);
        for &(index, value) in &self.narrow_constants {
            registers.set_narrow(index, &[value; 32], ALL, ALL);
        }
        for &(index, value) in &self.wide_constants {
            registers.set_wide(index, &[value; 32], ALL, ALL);
        }
        for &(index, offset) in &self.narrow_shared {
            registers.set_narrow(index, &[(shared_base + offset) as u32; 32], ALL, ALL);
        }
        for &(index, offset) in &self.wide_shared {
            registers.set_wide(index, &[shared_base + offset; 32], ALL, ALL);
        }
        for &(which, index) in &self.specials {
            registers.set_narrow(index, &special(which), ALL, ALL);
        }
    }

    /// The text of a line, trimmed.
    pub(crate) fn line_text(&self, line: u32) -> String {
        self.text.lines().nth(line.saturating_sub(1) as usize).unwrap_or("").trim().to_string()
    }
}
