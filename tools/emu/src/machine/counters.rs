//! Exact counts of what a launch did.

/// Counts of one launch, or of several added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Blocks.
    pub blocks: u64,
    /// Warps.
    pub warps: u64,
    /// Instructions of the warp that had most, without those that asked again for what was not there.
    pub longest_warp: u64,
    /// Instructions issued to warps, by class.
    pub warp_instructions: [u64; CLASSES],
    /// The same, times the lanes that were active.
    pub lane_instructions: [u64; CLASSES],
    /// Bytes that lanes asked for in global memory.
    pub global_load_bytes: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_store_bytes: u64,
    /// 32-byte sectors that their warp instructions touched.
    pub global_load_sectors: u64,
    /// The same for stores.
    pub global_store_sectors: u64,
    /// Distinct sectors of the whole launch: what has to move if the L2 is cold and large.
    pub cold_load_sectors: u64,
    /// The same for stores.
    pub cold_store_sectors: u64,
    /// Passes over the 32 banks of shared memory.
    pub shared_wavefronts: u64,
    /// The fewest passes the distinct words allow.
    pub shared_wavefronts_ideal: u64,
    /// Atomic operations of lanes.
    pub atomics: u64,
    /// Atomic instructions of warps on the one sector of global memory that has most of them, which
    /// are done one after the other.
    pub serial_atomics: u64,
    /// Arrivals of warps at barriers.
    pub barriers: u64,
    /// Tensor-core instructions.
    pub mma: u64,
    /// Multiply-adds of tensor-core instructions.
    pub mma_macs: u64,
    /// Local-memory accesses: spills and indexed arrays.
    pub local_accesses: u64,
}

/// Instruction classes.
pub const CLASSES: usize = 10;

/// What an instruction keeps busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Integer and logic.
    Integer,
    /// f32 and packed half precision.
    Float,
    /// f64.
    Double,
    /// exp2, log2, reciprocal, roots, sine: the special-function unit.
    Special,
    /// Conversions.
    Convert,
    /// Moves, selections, predicates.
    Move,
    /// Memory.
    Memory,
    /// Branches and barriers.
    Control,
    /// Shuffles and votes.
    Shuffle,
    /// Tensor cores.
    Tensor,
}

/// Names of the classes, in order.
pub const CLASS_NAMES: [&str; CLASSES] = [
    "integer", "float", "double", "special", "convert", "move", "memory", "control", "shuffle",
    "tensor",
];

impl Counters {
    /// All instructions issued to warps.
    pub fn instructions(&self) -> u64 {
        self.warp_instructions.iter().sum()
    }

    /// Mean number of active lanes of an instruction.
    pub fn lanes_per_instruction(&self) -> f64 {
        let lanes: u64 = self.lane_instructions.iter().sum();
        lanes as f64 / self.instructions().max(1) as f64
    }

    /// Bytes that moved between L2 and the multiprocessors.
    pub fn global_bytes(&self) -> u64 {
        32 * (self.global_load_sectors + self.global_store_sectors)
    }

    /// Bytes that have to move between memory and L2.
    pub fn cold_bytes(&self) -> u64 {
        32 * (self.cold_load_sectors + self.cold_store_sectors)
    }

    /// Share of the bytes in touched sectors that lanes asked for.
    pub fn sector_efficiency(&self) -> f64 {
        let asked = self.global_load_bytes + self.global_store_bytes;
        asked as f64 / self.global_bytes().max(1) as f64
    }

    /// Adds the counts of another launch, the largest ones as well: launches follow each other.
    pub fn add(&mut self, other: &Counters) {
        let (mine, theirs) = (self.fields(), other.clone().fields_owned());
        for (mine, theirs) in mine.into_iter().zip(theirs) {
            *mine += theirs;
        }
    }

    fn fields(&mut self) -> Vec<&mut u64> {
        let mut list: Vec<&mut u64> =
            vec![&mut self.launches, &mut self.blocks, &mut self.warps, &mut self.longest_warp];
        list.extend(self.warp_instructions.iter_mut());
        list.extend(self.lane_instructions.iter_mut());
        list.extend([
            &mut self.global_load_bytes,
            &mut self.global_store_bytes,
            &mut self.global_load_sectors,
            &mut self.global_store_sectors,
            &mut self.cold_load_sectors,
            &mut self.cold_store_sectors,
            &mut self.shared_wavefronts,
            &mut self.shared_wavefronts_ideal,
            &mut self.atomics,
            &mut self.serial_atomics,
            &mut self.barriers,
            &mut self.mma,
            &mut self.mma_macs,
            &mut self.local_accesses,
        ]);
        list
    }

    fn fields_owned(mut self) -> Vec<u64> {
        self.fields().into_iter().map(|n| *n).collect()
    }
}
