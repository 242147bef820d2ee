//! The constants of the timing model, with their units and where each comes from.
//!
//! *Data sheet*: NVIDIA's data sheets of the H100 and H200, and the table of throughput in the CUDA
//! programming guide. *Published*: microbenchmarks of Hopper (Luo et al. 2024, arXiv:2402.13499).
//! *Measured*: `benches/results` of this repository. *Fitted*: chosen on the rows that
//! `benches/results/predicted.json` marks as fitted, and on no other. *Assumed*: nobody has measured it.

/// A GPU as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Product name.
    pub name: &'static str,
    /// Streaming multiprocessors. Data sheet.
    pub multiprocessors: u32,
    /// Clock under load, in Hz. Fitted; 1.98e9 is the most that the data sheet allows.
    pub clock: f64,
    /// Bytes per second that a copy reads and writes in memory. Measured (H200: 4.24e12 by torch; H100:
    /// fitted).
    pub memory_bytes: f64,
    /// Bytes per second from the L2 into all multiprocessors. Fitted on dense products.
    pub l2_bytes: f64,
    /// Bytes of the L2. Data sheet: 50 MB.
    pub l2_size: f64,
    /// Bytes per clock from the L2 into one multiprocessor. Data sheet.
    pub l2_port: f64,
    /// Bytes per clock that one multiprocessor can have from memory. Assumed.
    pub memory_port: f64,
    /// Seconds from one kernel to the next in a graph, beside the work of the kernel. Fitted on rows
    /// whose work is next to nothing.
    pub launch: f64,
    /// Seconds from one call of the host to the next. Fitted likewise.
    pub call: f64,
    /// Seconds that a call takes longer in which the host waits for a result. Fitted likewise.
    pub wait: f64,
    /// Clocks between atomics on one sector of the L2. Fitted on adamw.
    pub serial_atomic: f64,
    /// Share of the multiprocessors that clusters of several blocks can fill. Fitted on products with
    /// clusters of 8, of which about 11 seem to run at a time; 16 were expected.
    pub cluster_share: f64,
    /// Times of results.
    pub latency: Latency,
    /// Throughput.
    pub slots: Slots,
}

/// Clocks from an instruction to its result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Integers and f32. Published: 4 and more; fitted.
    pub arithmetic: u16,
    /// f64. Published.
    pub double: u16,
    /// Special functions and conversions. Published: 18 to 26.
    pub special: u16,
    /// Shared memory and shuffles. Published: 23 to 30.
    pub shared: u16,
    /// Shared memory of another block of the cluster. Published: 180 to 210.
    pub remote: u16,
    /// `mma.sync` of 16 steps. Published: 33.
    pub mma: u16,
    /// From one instruction of a warp to its next, where nothing else keeps it: registers are few, and
    /// the assembler's order is not the best. Fitted.
    pub pace: u16,
    /// A branch back, until the next instruction of the warp. Fitted.
    pub branch: u16,
    /// A hit of the L1. Published: 33 and more.
    pub l1: u16,
    /// A hit of the L2. Published: 200 to 270, without load; fitted.
    pub l2: u16,
    /// Memory beyond the L2. Published: 480 to 700, without load; fitted.
    pub memory: u16,
    /// From the last arrival at a barrier of a block, or an mbarrier, until a warp goes on. Fitted.
    pub barrier: u16,
    /// The same for the barrier of a cluster. Published: 190.
    pub cluster: u16,
    /// An atomic with a result. Assumed.
    pub atomic: u16,
    /// A fence of device scope. Assumed.
    pub fence: u16,
    /// A fence for the async proxy. Measured: tiles with and without, 2 % (H200).
    pub proxy: u16,
    /// The first instructions of a block, which come from memory. Fitted.
    pub start: u16,
    /// What a block of a cluster starts later. Fitted.
    pub cluster_start: u16,
    /// A block that takes the place of one that has ended. Fitted.
    pub next_block: u16,
}

/// Clocks of a scheduler's unit for an instruction of a warp, and machine instructions of one of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots {
    /// Clocks. 16 lanes at a time. Data sheet.
    pub integer: u16,
    /// Clocks. 32 lanes at a time. Data sheet.
    pub float: u16,
    /// Clocks. 16 lanes at a time. Data sheet.
    pub double: u16,
    /// Clocks. 4 lanes at a time would be 8 (data sheet); fitted on conversions to f64.
    pub special: u16,
    /// Multiply-adds per clock of `mma.sync`, one scheduler's tensor core: 60 % of 512. As in `report`.
    pub mma_macs: u16,
    /// Multiply-adds per clock of `wgmma`, one scheduler's tensor core. Data sheet.
    pub wgmma_macs: u16,
    /// Instructions of a 64-bit division of integers, a call. Counted in machine code.
    pub divide_64: u16,
    /// Of a 32-bit one. Counted in machine code.
    pub divide_32: u16,
    /// Of one of f64. Counted in machine code.
    pub divide_f64: u16,
    /// Of an exact one of f32. Counted in machine code.
    pub divide_f32: u16,
    /// Clocks of work that memory instructions may be ahead of their unit. Assumed.
    pub ahead: u16,
}

/// H200 SXM, 141 GB.
pub const H200: Gpu = Gpu {
    name: "H200",
    multiprocessors: 132,
    clock: 1.755e9,
    memory_bytes: 4.24e12,
    l2_bytes: 5.9e12,
    l2_size: 50e6,
    l2_port: 64.0,
    memory_port: 32.0,
    launch: 1.44e-6,
    call: 3.3e-6,
    wait: 14.0e-6,
    serial_atomic: 2.0,
    cluster_share: 0.67,
    latency: Latency {
        arithmetic: 5,
        double: 8,
        special: 18,
        shared: 26,
        remote: 190,
        mma: 33,
        pace: 2,
        branch: 6,
        l1: 30,
        l2: 270,
        memory: 800,
        barrier: 30,
        cluster: 190,
        atomic: 300,
        fence: 400,
        proxy: 40,
        start: 980,
        cluster_start: 1,
        next_block: 210,
    },
    slots: Slots {
        integer: 2,
        float: 1,
        double: 2,
        special: 12,
        mma_macs: 307,
        wgmma_macs: 512,
        divide_64: 70,
        divide_32: 16,
        divide_f64: 24,
        divide_f32: 10,
        ahead: 48,
    },
};

/// H100 SXM, 80 GB.
pub const H100: Gpu = Gpu { name: "H100", memory_bytes: 3.0e12, ..H200 };

/// What holds blocks on a multiprocessor: limits of compute capability 9.0, from the data sheet.
pub(crate) mod limits {
    /// Warps.
    pub const WARPS: u32 = 64;
    /// Blocks.
    pub const BLOCKS: u32 = 32;
    /// Registers.
    pub const REGISTERS: u32 = 65_536;
    /// Bytes of shared memory.
    pub const SHARED: u32 = 233_472;
    /// Bytes that a block takes beside what it asks for.
    pub const SHARED_OF_SYSTEM: u32 = 1024;
    /// Bytes of L1 and shared memory together.
    pub const L1: u64 = 262_144;
}
