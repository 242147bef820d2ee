//! What an instruction of PTX costs as machine code: the unit that does it, how many machine
//! instructions it becomes, and when its result may be used.
//!
//! The counts are those of sm_90 as ptxas 12.4 writes it. Moves, conversions of pointers and
//! parameters cost nothing: they become operands of others.

use super::rates::Gpu;
use crate::audit::{has, is};
use crate::text::ast::{Instruction, Operand, type_bits};

/// What does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nothing: the instruction disappears.
    None,
    /// Integers, logic, comparisons, packing: half a warp per clock and scheduler.
    Integer,
    /// f32 and pairs of 16 bits: a warp per clock.
    Float,
    /// f64: half a warp per clock.
    Double,
    /// Special functions and conversions: an eighth of a warp per clock.
    Special,
    /// Addresses and data of memory and of shuffles, shared by the four schedulers.
    Memory,
    /// Tensor cores of one scheduler.
    Tensor,
    /// Branches and barriers.
    Control,
}

/// What memory instructions wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// No memory.
    None,
    /// Constant memory and parameters.
    Constant,
    /// Loads of global, local or unknown memory.
    Load,
    /// Stores there.
    Store,
    /// Atomics with and without a result.
    Atomic,
    /// Copies from global to shared memory that do not wait.
    Copy,
    /// The same by the copy engine.
    Bulk,
    /// Loads, stores and atomics of shared memory.
    Shared,
}

/// How many machine instructions an instruction becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Of(u16),
    Divide64,
    Divide32,
    DivideF64,
    /// A reciprocal or a root: half a division.
    RootF64,
    DivideF32,
}

/// What an instruction is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub unit: Unit,
    pub count: Count,
    pub port: Port,
    /// Multiply-adds of `mma.sync`.
    pub macs: u16,
}

/// The cost of one instruction of a warp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub unit: Unit,
    /// Machine instructions: slots of the scheduler.
    pub slots: u16,
    /// Clocks of the unit for each of them.
    pub busy: u16,
    /// Clocks from the last of them to the result.
    pub latency: u16,
    pub port: Port,
}

impl Kind {
    /// An instruction that disappears.
    pub const NOTHING: Kind =
        Kind { unit: Unit::None, count: Count::Of(0), port: Port::None, macs: 0 };

    fn of(unit: Unit, count: u16) -> Kind {
        Kind { unit, count: Count::Of(count), port: Port::None, macs: 0 }
    }

    fn many(unit: Unit, count: Count) -> Kind {
        Kind { count, ..Kind::of(unit, 1) }
    }

    fn at(self, port: Port) -> Kind {
        Kind { port, ..self }
    }

    /// What it costs on a GPU.
    pub fn cost(&self, gpu: &Gpu) -> Cost {
        let (slots, latency) = (&gpu.slots, &gpu.latency);
        let count = match self.count {
            Count::Of(n) => n,
            Count::Divide64 => slots.divide_64,
            Count::Divide32 => slots.divide_32,
            Count::DivideF64 => slots.divide_f64,
            Count::RootF64 => slots.divide_f64 / 2,
            Count::DivideF32 => slots.divide_f32,
        };
        let (busy, latency) = match self.unit {
            Unit::None => (0, 0),
            Unit::Integer => (slots.integer, latency.arithmetic),
            Unit::Float => (slots.float, latency.arithmetic),
            Unit::Double => (slots.double, latency.double),
            Unit::Special => (slots.special, latency.special),
            Unit::Memory => (1, latency.shared),
            Unit::Tensor if self.macs > 0 => (self.macs.div_ceil(slots.mma_macs), latency.mma),
            Unit::Tensor => (1, latency.mma),
            Unit::Control => (1, latency.arithmetic),
        };
        // Steps of one instruction mostly wait for each other.
        let chain = count.saturating_sub(1).saturating_mul(latency / 2);
        Cost { unit: self.unit, slots: count, busy, latency: latency + chain, port: self.port }
    }
}

/// What an instruction is.
pub(crate) fn kind(i: &Instruction) -> Kind {
    let ty = i.opcode.last().map_or("", String::as_str);
    let wide = type_bits(ty) == Some(64);
    match i.opcode[0].as_str() {
        "mov" | "cvta" | "isspacep" => Kind::of(Unit::None, 0),
        "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "ldmatrix" | "stmatrix" | "prefetch"
        | "prefetchu" => memory(i),
        "shfl" | "redux" | "match" => Kind::of(Unit::Memory, 1),
        "vote" | "activemask" | "elect" => Kind::of(Unit::Integer, 1),
        "bra" | "ret" | "exit" | "trap" | "call" => Kind::of(Unit::Control, 1),
        "bar" | "barrier" | "fence" | "membar" | "griddepcontrol" | "nanosleep" | "setmaxnreg"
        | "mbarrier" => Kind::of(Unit::Control, 1),
        "wgmma" if has(i, "mma_async") => Kind::of(Unit::Tensor, 2),
        "wgmma" => Kind::of(Unit::Control, 1),
        "mma" => tensor(i),
        "cvt" => conversion(i, ty),
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rcp" | "rsqrt" | "sqrt" | "div" | "rem" => {
            function(i, ty)
        }
        "setp" | "set" | "selp" | "slct" | "prmt" => compared(i, ty),
        _ if ty == "f64" => Kind::of(Unit::Double, 1),
        _ if matches!(ty, "f32" | "f16" | "bf16" | "f16x2" | "bf16x2") => Kind::of(Unit::Float, 1),
        "mul" | "mad" if has(i, "wide") => Kind::of(Unit::Integer, 1),
        "mul" | "mad" if wide => Kind::of(Unit::Integer, 4),
        // Sums and shifts of addresses are one instruction together with what they are made of.
        "add" | "sub" | "shl" if wide => Kind::of(Unit::Integer, 1),
        _ if wide => Kind::of(Unit::Integer, 2),
        _ => Kind::of(Unit::Integer, 1),
    }
}

/// Comparisons and selections: twice for 64 bits.
fn compared(i: &Instruction, ty: &str) -> Kind {
    match ty {
        "f64" if is(i, "setp") => Kind::of(Unit::Double, 1),
        "f64" | "s64" | "u64" | "b64" => Kind::of(Unit::Integer, 2),
        _ => Kind::of(Unit::Integer, 1),
    }
}

fn memory(i: &Instruction) -> Kind {
    let shared = has(i, "shared");
    let base = Kind::of(Unit::Memory, 1);
    if is(i, "cp") {
        let waits = has(i, "wait_group") || has(i, "commit_group") || has(i, "wait_all");
        // `cp.async.mbarrier.arrive` copies nothing.
        if waits || i.opcode.get(2).is_some_and(|m| m == "mbarrier") {
            return Kind::of(Unit::Control, 1);
        }
        return base.at(if has(i, "bulk") { Port::Bulk } else { Port::Copy });
    }
    if is(i, "ldmatrix") || is(i, "stmatrix") {
        return base.at(Port::Shared);
    }
    if is(i, "ld") && (has(i, "param") || has(i, "const")) {
        return Kind::of(Unit::None, 0).at(Port::Constant);
    }
    match (i.opcode[0].as_str(), shared) {
        (_, true) => base.at(Port::Shared),
        ("ld" | "ldu", _) => base.at(Port::Load),
        ("st", _) => base.at(Port::Store),
        ("atom" | "red", _) => base.at(Port::Atomic),
        _ => base,
    }
}

/// `mma.sync`: clocks of the tensor core by its multiply-adds.
fn tensor(i: &Instruction) -> Kind {
    let k = i.opcode.iter().find_map(|m| m.strip_prefix("m16n8k")?.parse::<u16>().ok());
    Kind { macs: 16 * 8 * k.unwrap_or(16), ..Kind::of(Unit::Tensor, 1) }
}

fn conversion(i: &Instruction, from: &str) -> Kind {
    let to = i.opcode.iter().rev().nth(1).map_or("", String::as_str);
    let float = |ty: &str| ty.starts_with('f') || ty.starts_with("bf");
    match (float(from), float(to)) {
        (false, false) => match (type_bits(from), type_bits(to)) {
            // The upper half is the sign, or zero; the lower half is there already.
            (Some(32), Some(64)) => Kind::of(Unit::Integer, u16::from(from == "s32")),
            (Some(64), Some(32)) => Kind::of(Unit::None, 0),
            _ => Kind::of(Unit::Integer, 1),
        },
        _ if from == "f64" || to == "f64" => Kind::of(Unit::Special, 1),
        (true, true) => Kind::of(Unit::Integer, 1),
        _ => Kind::of(Unit::Special, 1),
    }
}

/// Functions, and divisions, which are code of their own.
fn function(i: &Instruction, ty: &str) -> Kind {
    let approximate = has(i, "approx");
    let constant = matches!(i.operands.get(2), Some(Operand::Int(_)));
    match (i.opcode[0].as_str(), ty) {
        ("div" | "rem", "s64" | "u64") if !constant => Kind::many(Unit::Integer, Count::Divide64),
        ("div" | "rem", "s32" | "u32" | "s16" | "u16") => {
            Kind::many(Unit::Integer, Count::Divide32)
        }
        ("div" | "rem", "s64" | "u64") => Kind::of(Unit::Integer, 8),
        ("div", "f64") => Kind::many(Unit::Double, Count::DivideF64),
        ("rcp" | "sqrt" | "rsqrt", "f64") => Kind::many(Unit::Double, Count::RootF64),
        ("div" | "rcp" | "sqrt", _) if !approximate => Kind::many(Unit::Float, Count::DivideF32),
        _ => Kind::of(Unit::Special, 1),
    }
}
