//! `atom` and `red` on global and shared memory. Lanes go one after another, lowest first.

use super::control::{acquire, publish};
use super::memory::specific;
use super::shared::shared_place;
use super::{Execute, Ops};
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::race::{Access, who};
use crate::machine::registers::{Registers, lanes};
use crate::machine::{Context, Flow};
use crate::num::{self, Bf16, F16, Round};
use crate::text::ast::{Class, Operand, Space, type_bits, type_of};

type Update = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

/// New value from (old, b, c).
fn update(operation: &str, ty: &str) -> Option<Update> {
    let signed = type_of(ty).is_some_and(|(_, s)| s);
    let bits = type_bits(ty)? as u32;
    let extend =
        move |x: u64| if signed { ((x << (64 - bits)) as i64) >> (64 - bits) } else { x as i64 };
    Some(match (operation, ty) {
        ("add", "f32") => Box::new(|a, b, _| {
            num::add32(f32::from_bits(a as u32), f32::from_bits(b as u32), Round::Nearest).to_bits()
                as u64
        }),
        ("add", "f64") => Box::new(|a, b, _| {
            num::add64(f64::from_bits(a), f64::from_bits(b), Round::Nearest).to_bits()
        }),
        ("add", "f16x2") => Box::new(|a, b, _| pairwise(a, b, num::add16::<F16>)),
        ("add", "bf16x2") => Box::new(|a, b, _| pairwise(a, b, num::add16::<Bf16>)),
        ("add", "f16") => Box::new(|a, b, _| num::add16::<F16>(a as u16, b as u16) as u64),
        ("add", "bf16") => Box::new(|a, b, _| num::add16::<Bf16>(a as u16, b as u16) as u64),
        (_, "f32" | "f64" | "f16x2" | "bf16x2") => return None,
        ("add", _) => Box::new(|a, b, _| a.wrapping_add(b)),
        ("min", _) if signed => Box::new(move |a, b, _| if extend(b) < extend(a) { b } else { a }),
        ("max", _) if signed => Box::new(move |a, b, _| if extend(b) > extend(a) { b } else { a }),
        ("min", _) => Box::new(|a, b, _| a.min(b)),
        ("max", _) => Box::new(|a, b, _| a.max(b)),
        ("and", _) => Box::new(|a, b, _| a & b),
        ("or", _) => Box::new(|a, b, _| a | b),
        ("xor", _) => Box::new(|a, b, _| a ^ b),
        ("exch", _) => Box::new(|_, b, _| b),
        ("cas", _) => Box::new(|a, b, c| if a == b { c } else { a }),
        ("inc", "u32") => Box::new(|a, b, _| if a >= b { 0 } else { a + 1 }),
        ("dec", "u32") => Box::new(|a, b, _| if a == 0 || a > b { b } else { a - 1 }),
        _ => return None,
    })
}

fn pairwise(a: u64, b: u64, f: fn(u16, u16) -> u16) -> u64 {
    f(a as u16, b as u16) as u64 | (f((a >> 16) as u16, (b >> 16) as u16) as u64) << 16
}

const OPERATIONS: [&str; 11] =
    ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec", "noftz"];
const SCOPES: [&str; 12] = [
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "cluster",
    "gpu",
    "sys",
];

/// The operation among the modifiers, all of which are known.
fn operation(ops: &Ops<'_, '_, '_, '_>) -> Result<String, String> {
    let inner: Vec<String> =
        ops.modifiers()[..ops.modifiers().len() - 1].iter().map(|m| m.to_string()).collect();
    if let Some(m) =
        inner.iter().find(|m| !OPERATIONS.contains(&m.as_str()) && !SCOPES.contains(&m.as_str()))
    {
        return Err(format!("atomic modifier `.{m}` is not supported"));
    }
    Ok(inner.iter().find(|m| OPERATIONS.contains(&m.as_str())).ok_or("no operation")?.clone())
}

/// The values of a lane of two registers.
#[inline(always)]
fn values(r: &Registers, class: Class, [b, c]: [usize; 2], lane: usize) -> (u64, u64) {
    if class == Class::Wide {
        (r.wide[b][lane], r.wide[c][lane])
    } else {
        (r.narrow[b][lane] as u64, r.narrow[c][lane] as u64)
    }
}

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let (ty, operation) = (ops.ty().to_string(), operation(ops)?);
    let Some(update) = update(&operation, &ty) else { return ops.unknown() };
    let bits = type_bits(&ty).ok_or("this type is not supported")?;
    let returns = ops.name() == "atom";
    let first = returns as usize;
    let (address, _) = ops.address(first)?;
    let wide = bits == 64;
    let b = if wide { ops.wide(first + 1)? } else { ops.narrow(first + 1)? };
    let c2 = match operation.as_str() {
        "cas" if wide => ops.wide(first + 2)?,
        "cas" => ops.narrow(first + 2)?,
        _ => b,
    };
    ops.count(first + 2 + (operation == "cas") as usize)?;
    let class = if wide { Class::Wide } else { Class::Narrow };
    let d = match ops.operand(0)? {
        Operand::Symbol(name) if name == "_" => None,
        _ if returns => Some(ops.dst(0, class)?),
        _ => None,
    };
    let (space, order, bytes) = (ops.space(), ops.order(), bits as usize / 8);
    Ok(Box::new(move |c, mask| {
        let addresses = address.resolve(c, mask)?;
        if c.warp.registers.known(class, b) & c.warp.registers.known(class, c2) & mask != mask {
            return Err(Fault::new(
                Kind::Uninitialized,
                "an atomic with a value that was never computed",
            ));
        }
        c.counters.atomics += mask.count_ones() as u64;
        let mut old_row = [0u64; 32];
        let mut sectors = Vec::new();
        for lane in lanes(mask) {
            let (x, y) = values(&c.warp.registers, class, [b, c2], lane);
            let place = match space {
                Space::Generic => specific(addresses[lane]),
                named => (named, addresses[lane]),
            };
            old_row[lane] = exchange(c, place, bytes, order.any_block, |old| update(old, x, y))?;
            if place.0 == Space::Global {
                order_global(c, place.1, order.acquire, order.release);
                if !sectors.contains(&(place.1 / 32)) {
                    sectors.push(place.1 / 32);
                }
            }
        }
        c.memory.contend(&sectors);
        if let Some(d) = d {
            if wide {
                c.warp.registers.set_wide(d, &old_row, mask, mask);
            } else {
                c.warp.registers.set_narrow(d, &old_row.map(|x| x as u32), mask, mask);
            }
        }
        c.cluster.activity += 1;
        Ok(Flow::Next)
    }))
}

/// A relaxed atomic publishes what the last fence covered, and the next fence takes in what it met.
fn order_global(c: &mut Context<'_>, address: u64, acquires: bool, releases: bool) {
    if acquires {
        acquire(c, address);
    } else {
        c.warp.unfenced_atomics.push(address);
    }
    if releases {
        let clock = c.warp.clock.clone();
        publish(c, address, &clock);
        c.warp.tick();
    } else if let Some(clock) = c.warp.fenced.clone() {
        publish(c, address, &clock);
    }
}

/// Replaces the value at a place and returns the old one.
fn exchange(
    c: &mut Context<'_>,
    (space, address): (Space, u64),
    bytes: usize,
    any_block: bool,
    f: impl Fn(u64) -> u64,
) -> Step<u64> {
    if !address.is_multiple_of(bytes as u64) {
        return Err(Fault::new(
            Kind::Misaligned,
            format!("an atomic of {bytes} bytes at {address:#x}"),
        ));
    }
    let value = |data: &[u8]| data.iter().rev().fold(0u64, |v, &b| v << 8 | b as u64);
    match space {
        Space::Global => {
            let (slot, at) = c.memory.locate(address, bytes)?;
            let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
            c.memory.mark((slot, at), bytes, (&who, 32), Access::StrongWrite)?;
            c.counters.global_load_sectors += 1;
            let buffer = c.memory.buffer(slot);
            if buffer.first_unwritten(at, bytes).is_some() {
                let message =
                    format!("an atomic on memory of `{}` that was never written", buffer.name);
                return Err(Fault::new(Kind::Uninitialized, message));
            }
            let old = value(&buffer.data[at..at + bytes]);
            buffer.data[at..at + bytes].copy_from_slice(&f(old).to_le_bytes()[..bytes]);
            Ok(old)
        }
        Space::Shared => {
            let (block, at) = shared_place(c, address, any_block)?;
            let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
            let shared = &mut c.cluster.shared[block];
            shared.bounds(at, bytes)?;
            shared.readable(at, bytes)?;
            shared.mark(at, bytes, &who, 32, Access::StrongWrite)?;
            let old = value(&shared.data[at..at + bytes]);
            shared.data[at..at + bytes].copy_from_slice(&f(old).to_le_bytes()[..bytes]);
            Ok(old)
        }
        _ => Err(Fault::new(Kind::OutOfBounds, "an atomic outside global and shared memory")),
    }
}
