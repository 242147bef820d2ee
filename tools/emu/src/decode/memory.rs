//! Loads, stores, address conversions; atomics are in `atomic`.

use super::control::{acquire, publish};
use super::shared::{count_banks, fetch_shared, shared_base, shared_place, write_shared};
use super::{Decode, Execute, Ops, address, atomic};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::race::{Access, who};
use crate::machine::registers::lanes;
use crate::machine::{CONST_WINDOW, Context, Flow, LOCAL_WINDOW, PARAM_OFFSET, SHARED_WINDOW};
use crate::text::ast::{Base, Class, Operand, Space, type_bits, type_of};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let name = ops.name().to_string();
    let (work, run) = match name.as_str() {
        "ld" | "ldu" => (Work::Memory, load(ops)?),
        "st" if ops.has("async") => (Work::Memory, super::bulk::store_async(ops)?),
        "st" => (Work::Memory, store(ops)?),
        "atom" | "red" => (Work::Memory, atomic::decode(ops)?),
        "cvta" => (Work::Move, address::convert(ops)?),
        "mapa" => (Work::Integer, address::mapa(ops)?),
        _ => return ops.unknown(),
    };
    Ok((work, run))
}

/// An address operand: register (narrow for 32-bit shared addresses) plus offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    base: Option<(Class, usize)>,
    offset: i64,
    /// The offset is one in the block's own shared memory.
    shared: bool,
}

impl Ops<'_, '_, '_, '_> {
    /// The address of operand `i`, and the space if a symbol tells it.
    pub(crate) fn address(&self, i: usize) -> Result<(Address, Option<Space>), String> {
        let operand = self.operand(i)?;
        self.address_of(operand)
    }

    pub(crate) fn address_of(&self, operand: &Operand) -> Result<(Address, Option<Space>), String> {
        match operand {
            Operand::Address(Base::Reg(reg), offset) => {
                let base = Some((reg.class, self.reg(*reg, reg.class)?));
                Ok((Address { base, offset: *offset, shared: false }, None))
            }
            Operand::Address(Base::Absolute, offset) => {
                Ok((Address { base: None, offset: *offset, shared: false }, None))
            }
            Operand::Address(Base::Symbol(_), _) => {
                let (place, offset) = self.symbol(operand)?;
                let (offset, shared) =
                    (place.address as i64 + offset, place.space == Space::Shared);
                Ok((Address { base: None, offset, shared }, Some(place.space)))
            }
            other => Err(format!("{other:?} where an address belongs")),
        }
    }

    /// The state space an instruction names; generic if none.
    pub(crate) fn space(&self) -> Space {
        for m in self.modifiers() {
            match m {
                "global" => return Space::Global,
                "shared" | "shared::cta" | "shared::cluster" => return Space::Shared,
                "local" => return Space::Local,
                "const" => return Space::Const,
                "param" | "param::entry" | "param::func" => return Space::Param,
                _ => {}
            }
        }
        Space::Generic
    }
}

impl Address {
    /// Every lane's address.
    pub(crate) fn resolve(&self, c: &Context<'_>, mask: u32) -> Step<[u64; 32]> {
        let offset = self.offset as u64;
        let Some((class, index)) = self.base else {
            let base = if self.shared { shared_base(c.warp.block) } else { 0 };
            return Ok([base.wrapping_add(offset); 32]);
        };
        let r = &c.warp.registers;
        if r.known(class, index) & mask != mask {
            return Err(Fault::new(Kind::Uninitialized, "an address that was never computed"));
        }
        Ok(match class {
            Class::Wide => r.wide[index].map(|a| a.wrapping_add(offset)),
            _ => r.narrow[index].map(|a| a.wrapping_add(offset as u32) as u64),
        })
    }
}

/// Modifiers that change nothing here: cache hints, scopes.
const HINTS: [&str; 27] = [
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "const",
    "param",
    "param::entry",
    "param::func",
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
];

fn check_modifiers(ops: &Ops<'_, '_, '_, '_>) -> Result<(), String> {
    let inner = &ops.instruction.opcode[1..ops.instruction.opcode.len() - 1];
    let known = |m: &str| {
        HINTS.contains(&m)
            || m == "v2"
            || m == "v4"
            || m.starts_with("L1::")
            || m.starts_with("L2::")
    };
    match inner.iter().find(|m| !known(m)) {
        Some(m) => Err(format!("memory modifier `.{m}` is not supported")),
        None => Ok(()),
    }
}

/// What an access moves: elements of `bytes` bytes to or from registers.
struct Shape {
    bytes: usize,
    wide: bool,
    /// Sign extension of narrow elements.
    signed: bool,
    registers: Vec<usize>,
}

fn shape(ops: &mut Ops<'_, '_, '_, '_>, i: usize, store: bool) -> Result<Shape, String> {
    let ty = ops.ty().to_string();
    let bits = type_bits(&ty).filter(|b| *b >= 8).ok_or(format!("type `.{ty}` in memory"))?;
    let operand = ops.operand(i)?.clone();
    let list = match operand {
        Operand::Vector(list) => list,
        single => vec![single],
    };
    let expected = if ops.has("v2") {
        2
    } else if ops.has("v4") {
        4
    } else {
        1
    };
    if list.len() != expected {
        return Err(format!("{} elements, expected {expected}", list.len()));
    }
    let mut registers = Vec::new();
    let mut wide = bits == 64;
    for part in &list {
        registers.push(match part {
            // A narrow value may live in a wider register.
            Operand::Reg(reg) if reg.class == Class::Wide => {
                wide = true;
                ops.reg(*reg, Class::Wide)?
            }
            Operand::Reg(reg) => ops.reg(*reg, Class::Narrow)?,
            constant if store && bits == 64 => ops.wide_of(constant)?,
            constant if store => ops.narrow_of(constant)?,
            other => return Err(format!("loading into {other:?}")),
        });
    }
    let signed = type_of(&ty).is_some_and(|(_, signed)| signed);
    Ok(Shape { bytes: bits as usize / 8, wide, signed, registers })
}

/// How an access takes part in ordering.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    pub strong: bool,
    pub acquire: bool,
    pub release: bool,
    /// Through the read-only cache: nothing may write there during the launch.
    pub read_only: bool,
    /// Of shared memory: that of every block of the cluster.
    pub any_block: bool,
}

impl Ops<'_, '_, '_, '_> {
    pub(crate) fn order(&self) -> Order {
        let acquire = self.has("acquire") || self.has("acq_rel");
        let release = self.has("release") || self.has("acq_rel");
        let strong = acquire || release || self.has("volatile") || self.has("relaxed");
        let any_block = self.space() == Space::Generic || self.has("shared::cluster");
        Order { strong, acquire, release, read_only: self.has("nc"), any_block }
    }
}

fn load(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    check_modifiers(ops)?;
    ops.count(2)?;
    let shape = shape(ops, 0, false)?;
    let (address, symbol_space) = ops.address(1)?;
    let space = symbol_space.filter(|_| ops.space() == Space::Param).unwrap_or(ops.space());
    let (order, total) = (ops.order(), shape.bytes * shape.registers.len());
    Ok(Box::new(move |c, mask| {
        let addresses = address.resolve(c, mask)?;
        let data = fetch(c, space, &addresses, mask, total, order)?;
        for (i, &d) in shape.registers.iter().enumerate() {
            let at = i * shape.bytes;
            if shape.wide {
                let row =
                    std::array::from_fn(|l| extend(&data[l][at..at + shape.bytes], shape.signed));
                c.warp.registers.set_wide(d, &row, mask, mask);
            } else {
                let row = std::array::from_fn(|l| {
                    extend(&data[l][at..at + shape.bytes], shape.signed) as u32
                });
                c.warp.registers.set_narrow(d, &row, mask, mask);
            }
        }
        Ok(Flow::Next)
    }))
}

#[inline(always)]
fn extend(bytes: &[u8], signed: bool) -> u64 {
    match (bytes.len(), signed) {
        (1, false) => bytes[0] as u64,
        (1, true) => bytes[0] as i8 as i64 as u64,
        (2, false) => u16::from_le_bytes([bytes[0], bytes[1]]) as u64,
        (2, true) => i16::from_le_bytes([bytes[0], bytes[1]]) as i64 as u64,
        (4, false) => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as u64,
        (4, true) => i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i64 as u64,
        _ => bytes.iter().rev().fold(0, |v, &b| v << 8 | b as u64),
    }
}

fn store(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    check_modifiers(ops)?;
    ops.count(2)?;
    let shape = shape(ops, 1, true)?;
    let (address, symbol_space) = ops.address(0)?;
    let space = symbol_space.filter(|_| ops.space() == Space::Param).unwrap_or(ops.space());
    let (order, total) = (ops.order(), shape.bytes * shape.registers.len());
    Ok(Box::new(move |c, mask| {
        let addresses = address.resolve(c, mask)?;
        let mut data = [[0u8; 16]; 32];
        for (i, &s) in shape.registers.iter().enumerate() {
            let r = &c.warp.registers;
            let class = if shape.wide { Class::Wide } else { Class::Narrow };
            if r.known(class, s) & mask != mask && space != Space::Local {
                if !shape.wide && c.warp.products.in_flight(s) {
                    let message = "an accumulator is stored before wgmma.wait_group";
                    return Err(Fault::new(Kind::InFlight, message));
                }
                return Err(Fault::new(
                    Kind::Uninitialized,
                    "a value that was never computed is stored",
                ));
            }
            for lane in 0..32 {
                let value = if shape.wide { r.wide[s][lane] } else { r.narrow[s][lane] as u64 };
                let at = i * shape.bytes;
                data[lane][at..at + shape.bytes]
                    .copy_from_slice(&value.to_le_bytes()[..shape.bytes]);
            }
        }
        deposit(c, space, &addresses, mask, total, order, &data)?;
        Ok(Flow::Next)
    }))
}

/// The space of a generic address, and the address in it.
pub(crate) fn specific(address: u64) -> (Space, u64) {
    if address >= SHARED_WINDOW {
        (Space::Shared, address - SHARED_WINDOW)
    } else if address >= LOCAL_WINDOW {
        (Space::Local, address - LOCAL_WINDOW)
    } else if address >= CONST_WINDOW {
        (Space::Const, address - CONST_WINDOW)
    } else {
        (Space::Global, address)
    }
}

/// Splits lanes with generic addresses by space and runs `body` on each part.
fn by_space(
    addresses: &[u64; 32],
    mask: u32,
    mut body: impl FnMut(Space, &[u64; 32], u32) -> Step<()>,
) -> Step<()> {
    let mut left = mask;
    while left != 0 {
        let (space, _) = specific(addresses[left.trailing_zeros() as usize]);
        let part =
            lanes(left).filter(|&l| specific(addresses[l]).0 == space).fold(0, |m, l| m | 1 << l);
        body(space, &addresses.map(|a| specific(a).1), part)?;
        left &= !part;
    }
    Ok(())
}

pub(super) type Data = [[u8; 16]; 32];

/// Reads `bytes` bytes of each lane of the mask.
pub(crate) fn fetch(
    c: &mut Context<'_>,
    space: Space,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
    order: Order,
) -> Step<Data> {
    let mut data = [[0u8; 16]; 32];
    match space {
        Space::Generic => by_space(addresses, mask, |space, addresses, part| {
            let found = fetch(c, space, addresses, part, bytes, order)?;
            lanes(part).for_each(|lane| data[lane] = found[lane]);
            Ok(())
        })?,
        Space::Global => fetch_global(c, addresses, mask, bytes, order, &mut data)?,
        Space::Shared => fetch_shared(c, addresses, mask, bytes, order, &mut data)?,
        Space::Local => {
            c.counters.local_accesses += 1;
            for lane in lanes(mask) {
                let at = local(c, addresses[lane], lane, bytes)?;
                if !c.warp.local_written[at..at + bytes].iter().all(|&w| w) {
                    return Err(Fault::new(
                        Kind::Uninitialized,
                        "local memory that was never written is read",
                    ));
                }
                data[lane][..bytes].copy_from_slice(&c.warp.local[at..at + bytes]);
            }
        }
        Space::Const | Space::Param => {
            for lane in lanes(mask) {
                let source = constant(c, addresses[lane], bytes)?;
                data[lane][..bytes].copy_from_slice(source);
            }
        }
    }
    Ok(data)
}

fn constant<'a>(c: &Context<'a>, address: u64, bytes: usize) -> Step<&'a [u8]> {
    aligned(address, bytes)?;
    let (memory, at, what) = if address >= PARAM_OFFSET {
        (c.launch.params, (address - PARAM_OFFSET) as usize, "parameter")
    } else {
        (c.launch.constants, address as usize, "constant")
    };
    memory.get(at..at + bytes).ok_or_else(|| {
        Fault::new(
            Kind::OutOfBounds,
            format!("{bytes} bytes at {what} offset {at} of {}", memory.len()),
        )
    })
}

/// Offset of a lane's local address in the warp's local memory.
fn local(c: &Context<'_>, address: u64, lane: usize, bytes: usize) -> Step<usize> {
    aligned(address, bytes)?;
    let size = c.warp.local.len() / 32;
    if address as usize + bytes > size {
        return Err(Fault::new(
            Kind::OutOfBounds,
            format!("{bytes} bytes at local offset {address} of {size}"),
        ));
    }
    Ok(lane * size + address as usize)
}

#[inline(always)]
pub(super) fn aligned(address: u64, bytes: usize) -> Step<()> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    Err(Fault::new(Kind::Misaligned, format!("an access of {bytes} bytes at address {address:#x}")))
}

/// Buffer and offsets of a warp's accesses; all lanes of one buffer at a time.
fn located(
    c: &Context<'_>,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
) -> Step<(usize, [usize; 32], u32)> {
    let mut offsets = [0usize; 32];
    let (first, _) = c.memory.locate(addresses[mask.trailing_zeros() as usize], bytes)?;
    let mut same = 0u32;
    for lane in lanes(mask) {
        aligned(addresses[lane], bytes)?;
        let (slot, offset) = c.memory.locate(addresses[lane], bytes)?;
        offsets[lane] = offset;
        same |= ((slot == first) as u32) << lane;
    }
    Ok((first, offsets, same))
}

/// Counts sectors of the lanes in the mask.
fn count_sectors(
    c: &mut Context<'_>,
    slot: usize,
    offsets: &[usize; 32],
    mask: u32,
    bytes: usize,
    store: bool,
) {
    let (mut list, mut n) = ([0u64; 32], 0);
    for lane in lanes(mask) {
        list[n] = offsets[lane] as u64;
        n += 1;
    }
    let sectors = c.memory.sectors(slot, &list[..n], bytes as u64, store);
    let asked = (n * bytes) as u64;
    if store {
        c.counters.global_store_sectors += sectors;
        c.counters.global_store_bytes += asked;
    } else {
        c.counters.global_load_sectors += sectors;
        c.counters.global_load_bytes += asked;
    }
}

fn fetch_global(
    c: &mut Context<'_>,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
    order: Order,
    data: &mut Data,
) -> Step<()> {
    let mut left = mask;
    while left != 0 {
        let (slot, offsets, same) = located(c, addresses, left, bytes)?;
        count_sectors(c, slot, &offsets, same, bytes, false);
        let kind = if order.strong { Access::StrongRead } else { Access::Read };
        let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
        for lane in lanes(same) {
            c.memory.mark((slot, offsets[lane]), bytes, (&who, lane as u8), kind)?;
            let buffer = c.memory.buffer(slot);
            if let Some(bad) = buffer.first_unwritten(offsets[lane], bytes) {
                let message =
                    format!("byte {bad} of `{}` is read and was never written", buffer.name);
                return Err(Fault::new(Kind::Uninitialized, message));
            }
            if order.read_only && buffer.written_in_launch(offsets[lane], bytes) {
                let message =
                    format!("a read-only load of `{}`, which this kernel writes", buffer.name);
                return Err(Fault::new(Kind::Race, message));
            }
            data[lane][..bytes].copy_from_slice(&buffer.data[offsets[lane]..offsets[lane] + bytes]);
        }
        left &= !same;
    }
    if order.acquire {
        lanes(mask).for_each(|lane| acquire(c, addresses[lane]));
    }
    Ok(())
}

/// Writes `bytes` bytes of each lane of the mask.
pub(crate) fn deposit(
    c: &mut Context<'_>,
    space: Space,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
    order: Order,
    data: &Data,
) -> Step<()> {
    match space {
        Space::Generic => by_space(addresses, mask, |space, addresses, part| {
            deposit(c, space, addresses, part, bytes, order, data)
        }),
        Space::Global => deposit_global(c, addresses, mask, bytes, order, data),
        Space::Shared => {
            count_banks(c, addresses, mask, bytes);
            for lane in lanes(mask) {
                aligned(addresses[lane], bytes)?;
                let (block, at) = shared_place(c, addresses[lane], order.any_block)?;
                write_shared(c, block, at, lane as u8, order.strong, &data[lane][..bytes])?;
            }
            Ok(())
        }
        Space::Local => {
            c.counters.local_accesses += 1;
            for lane in lanes(mask) {
                let at = local(c, addresses[lane], lane, bytes)?;
                c.warp.local[at..at + bytes].copy_from_slice(&data[lane][..bytes]);
                c.warp.local_written[at..at + bytes].fill(true);
            }
            Ok(())
        }
        Space::Const | Space::Param => {
            Err(Fault::new(Kind::OutOfBounds, "a store to constant memory"))
        }
    }
}

fn deposit_global(
    c: &mut Context<'_>,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
    order: Order,
    data: &Data,
) -> Step<()> {
    if order.release {
        let clock = c.warp.clock.clone();
        lanes(mask).for_each(|lane| publish(c, addresses[lane], &clock));
    }
    let mut left = mask;
    while left != 0 {
        let (slot, offsets, same) = located(c, addresses, left, bytes)?;
        count_sectors(c, slot, &offsets, same, bytes, true);
        let kind = if order.strong { Access::StrongWrite } else { Access::Write };
        let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
        for lane in lanes(same) {
            c.memory.mark((slot, offsets[lane]), bytes, (&who, lane as u8), kind)?;
            let buffer = c.memory.buffer(slot);
            buffer.data[offsets[lane]..offsets[lane] + bytes].copy_from_slice(&data[lane][..bytes]);
            buffer.set_written(offsets[lane], bytes);
        }
        left &= !same;
    }
    c.cluster.activity += 1;
    if order.release {
        c.warp.tick();
    }
    Ok(())
}
