//! `mma.sync`, `ldmatrix` and `stmatrix`: the registers of a whole warp at once.

use super::place::SharedAddress;
use super::shared::{read_shared, write_shared};
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::registers::{ALL, Registers, Row};
use crate::machine::shared::wavefronts;
use crate::machine::{Context, Flow};
use crate::tensor::ldmatrix::{Matrices, MatrixRow};
use crate::tensor::mma::{Accumulator, Element, Mma};
use crate::tensor::numerics::FloatAccumulator;
use crate::text::ast::{Class, Operand};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    match ops.name() {
        "mma" => Ok((Work::Tensor, multiply(ops)?)),
        "ldmatrix" => Ok((Work::Memory, load(ops)?)),
        "stmatrix" => Ok((Work::Memory, store(ops)?)),
        _ => ops.unknown(),
    }
}

/// An error unless all 32 lanes are here: `.aligned` instructions leave no choice.
pub(super) fn whole_warp(c: &Context<'_>, mask: u32) -> Step<()> {
    if mask == ALL {
        return Ok(());
    }
    let message = if c.warp.live == ALL {
        format!("only lanes {mask:#010x} execute an instruction of the whole warp")
    } else {
        format!("an instruction of the whole warp, of which lanes {:#010x} are left", c.warp.live)
    };
    Err(Fault::new(Kind::Divergence, message))
}

/// The registers of a vector operand, `count` of them.
pub(super) fn vector(
    ops: &Ops<'_, '_, '_, '_>,
    i: usize,
    count: usize,
) -> Result<Vec<usize>, String> {
    let list = match ops.operand(i)? {
        Operand::Vector(list) => list.clone(),
        single => vec![single.clone()],
    };
    if list.len() != count {
        return Err(format!("operand {i} has {} registers, expected {count}", list.len()));
    }
    list.iter()
        .map(|operand| match operand {
            Operand::Reg(reg) => ops.reg(*reg, Class::Narrow),
            other => Err(format!("{other:?} in a vector of registers")),
        })
        .collect()
}

/// The rows of registers that have to be defined in all lanes.
pub(super) fn rows(r: &Registers, indices: &[usize]) -> Step<Vec<Row>> {
    for (i, &index) in indices.iter().enumerate() {
        if r.known(Class::Narrow, index) != ALL {
            let lane = (!r.known(Class::Narrow, index)).trailing_zeros();
            let message =
                format!("register {i} of a matrix fragment is not defined in lane {lane}");
            return Err(Fault::new(Kind::Uninitialized, message));
        }
    }
    Ok(indices.iter().map(|&index| r.narrow[index]).collect())
}

/// A misuse that the tensor functions found.
pub(super) fn misuse(message: String) -> Box<Fault> {
    Fault::new(Kind::Misuse, message)
}

/// The accumulator type that PTX writes as `.name`.
pub(super) fn accumulator(name: &str, saturate: bool) -> Option<Accumulator> {
    match name {
        "f32" if !saturate => Some(Accumulator::Float(FloatAccumulator::F32)),
        "f16" if !saturate => Some(Accumulator::Float(FloatAccumulator::F16)),
        "s32" => Some(Accumulator::S32 { saturate }),
        _ => None,
    }
}

/// `mma.sync.aligned.m16n8kK.row.col{.satfinite}.d.a.b.c d, a, b, c`.
fn multiply(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let modifiers: Vec<String> = ops.modifiers().iter().map(|m| m.to_string()).collect();
    let plain: Vec<&str> =
        modifiers.iter().map(String::as_str).filter(|m| *m != "satfinite").collect();
    let ["sync", "aligned", shape, "row", "col", d, a, b, c] = plain[..] else {
        return ops.unknown();
    };
    let k = shape.strip_prefix("m16n8k").and_then(|k| k.parse().ok());
    let (a, b) = (Element::from_ptx(a), Element::from_ptx(b));
    let saturate = plain.len() != modifiers.len();
    let (Some(k), Some(a), Some(b), Some(accumulator)) = (k, a, b, accumulator(d, saturate)) else {
        return ops.unknown();
    };
    if d != c {
        return ops.unknown();
    }
    let mma = Mma::new(k, a, b, accumulator)?;
    let count = mma.registers();
    ops.count(4)?;
    let d = vector(ops, 0, count.c)?;
    let (a, b) = (vector(ops, 1, count.a)?, vector(ops, 2, count.b)?);
    let c = vector(ops, 3, count.c)?;
    Ok(Box::new(move |context, mask| {
        whole_warp(context, mask)?;
        let r = &mut context.warp.registers;
        let (a, b, c) = (rows(r, &a)?, rows(r, &b)?, rows(r, &c)?);
        let mut out = c.clone();
        if !context.cluster.timed {
            mma.execute(context.cluster.numerics, &a, &b, &c, &mut out).map_err(misuse)?;
        }
        for (&index, row) in d.iter().zip(&out) {
            r.set_narrow(index, row, ALL, ALL);
        }
        context.counters.mma += 1;
        context.counters.mma_macs += mma.multiply_adds();
        Ok(Flow::Next)
    }))
}

/// Shape and transposition of `ldmatrix` and `stmatrix`.
fn matrices(ops: &Ops<'_, '_, '_, '_>) -> Result<Matrices, String> {
    let (mut count, mut transposed) = (0, false);
    for modifier in ops.modifiers() {
        match modifier {
            "sync" | "aligned" | "m8n8" | "b16" | "shared" | "shared::cta" => {}
            "x1" => count = 1,
            "x2" => count = 2,
            "x4" => count = 4,
            "trans" => transposed = true,
            _ => return ops.unknown(),
        }
    }
    if !["sync", "aligned", "m8n8", "b16"].iter().all(|m| ops.has(m)) {
        return ops.unknown();
    }
    Matrices::new(count, transposed)
}

/// Offsets in the block's own shared memory that the first lanes name.
fn addresses(c: &Context<'_>, address: &SharedAddress, matrices: Matrices) -> Step<Vec<u32>> {
    let named = (u64::MAX >> (64 - 8 * matrices.count())) as u32;
    let mut row = [0; 32];
    for (lane, (block, at)) in
        address.places(c, named)?.into_iter().enumerate().take(8 * matrices.count())
    {
        if block != c.warp.block {
            return Err(misuse("a matrix row in the shared memory of another block".into()));
        }
        row[lane] = at as u32;
    }
    matrices.rows(&row).map_err(|message| Fault::new(Kind::Misaligned, message))
}

/// Bank passes: the eight rows of a matrix are one phase.
fn count_banks(c: &mut Context<'_>, rows: &[u32]) {
    let lanes: Vec<(usize, u32)> = rows.iter().copied().enumerate().collect();
    let (total, ideal) = wavefronts(&lanes, 16);
    c.counters.shared_wavefronts += total;
    c.counters.shared_wavefronts_ideal += ideal;
}

/// `ldmatrix.sync.aligned.m8n8.xN{.trans}{.shared}.b16 r, [p]`.
fn load(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let matrices = matrices(ops)?;
    ops.count(2)?;
    let destination = vector(ops, 0, matrices.count())?;
    let address = SharedAddress::new(ops, 1)?;
    Ok(Box::new(move |c, mask| {
        whole_warp(c, mask)?;
        let addresses = addresses(c, &address, matrices)?;
        let mut rows: Vec<MatrixRow> = Vec::with_capacity(addresses.len());
        for (lane, &at) in addresses.iter().enumerate() {
            let mut row = [0; 16];
            read_shared(c, c.warp.block, at as usize, 16, lane as u8, false, &mut row)?;
            rows.push(row);
        }
        count_banks(c, &addresses);
        let registers = matrices.load(&rows);
        for (&index, row) in destination.iter().zip(&registers) {
            c.warp.registers.set_narrow(index, row, ALL, ALL);
        }
        Ok(Flow::Next)
    }))
}

/// `stmatrix.sync.aligned.m8n8.xN{.trans}{.shared}.b16 [p], r`.
fn store(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let matrices = matrices(ops)?;
    ops.count(2)?;
    let address = SharedAddress::new(ops, 0)?;
    let source = vector(ops, 1, matrices.count())?;
    Ok(Box::new(move |c, mask| {
        whole_warp(c, mask)?;
        let addresses = addresses(c, &address, matrices)?;
        let registers = rows(&c.warp.registers, &source)?;
        for (lane, (&at, row)) in addresses.iter().zip(matrices.store(&registers)).enumerate() {
            write_shared(c, c.warp.block, at as usize, lane as u8, false, &row)?;
        }
        count_banks(c, &addresses);
        Ok(Flow::Next)
    }))
}
