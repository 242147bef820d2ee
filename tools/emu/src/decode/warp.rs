//! Shuffles, votes and the other operations of a whole warp.

use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::registers::{Registers, Row, lanes};
use crate::machine::{Context, Flow};
use crate::text::ast::{Class, Operand};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let run = match ops.name() {
        "shfl" => shuffle(ops)?,
        "vote" => vote(ops)?,
        "match" => matching(ops)?,
        "redux" => redux(ops)?,
        "elect" => elect(ops)?,
        _ => {
            let d = ops.dst(0, Class::Narrow)?;
            Box::new(move |c: &mut Context<'_>, mask| {
                c.warp.registers.set_narrow(d, &[mask; 32], mask, mask);
                Ok(Flow::Next)
            })
        }
    };
    Ok((Work::Shuffle, run))
}

/// The lanes that take part, or `None` if some of them have yet to come.
fn together(c: &Context<'_>, members: usize, mask: u32) -> Step<Result<u32, u32>> {
    let row = &c.warp.registers.narrow[members];
    let named = row[mask.trailing_zeros() as usize];
    if lanes(mask).any(|lane| row[lane] != named) {
        return Err(Fault::new(Kind::Divergence, "lanes name different member masks"));
    }
    if let Some(lane) = lanes(mask).find(|lane| named >> lane & 1 == 0) {
        return Err(Fault::new(
            Kind::Divergence,
            format!("lane {lane} is not in its own member mask {named:#010x}"),
        ));
    }
    if named & !c.warp.live != 0 {
        let message =
            format!("member mask {named:#010x} names lanes that have exited or never were");
        return Err(Fault::new(Kind::Divergence, message));
    }
    Ok(if named & !mask != 0 { Err(named) } else { Ok(named) })
}

/// Runs a body with all named lanes, or waits for them.
fn synchronized(
    members: usize,
    body: impl Fn(&mut Registers, u32) -> Step<()> + Send + Sync + 'static,
) -> Execute {
    Box::new(move |c, mask| match together(c, members, mask)? {
        Err(named) => Ok(Flow::Converge(named)),
        Ok(named) => body(&mut c.warp.registers, named).map(|()| Flow::Next),
    })
}

/// `shfl.sync.bfly.b32 d|p, a, b, c, membermask`.
fn shuffle(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.only(&["sync", "up", "down", "bfly", "idx"])?;
    if !ops.has("sync") || ops.ty() != "b32" {
        return ops.unknown();
    }
    ops.count(5)?;
    let mode = ops.instruction.opcode[2].clone();
    let (d, p) = match ops.operand(0)? {
        Operand::Pair(d, p) => (
            d.map(|d| ops.reg(d, Class::Narrow)).transpose()?,
            p.map(|p| ops.reg(p, Class::Predicate)).transpose()?,
        ),
        _ => (Some(ops.dst(0, Class::Narrow)?), None),
    };
    let (a, b, clamp, members) = (ops.narrow(1)?, ops.narrow(2)?, ops.narrow(3)?, ops.narrow(4)?);
    Ok(synchronized(members, move |r, mask| {
        let (value, known) = (r.narrow[a], r.known(Class::Narrow, a));
        let (mut out, mut inside, mut out_known) = ([0u32; 32], 0u32, 0u32);
        for lane in lanes(mask) {
            let (offset, limits) = (r.narrow[b][lane] & 31, r.narrow[clamp][lane]);
            let (segment, clamp) = (limits >> 8 & 31, limits & 31);
            let (l, top) = (lane as u32, (lane as u32 & segment) | (clamp & !segment));
            let bottom = l & segment;
            let (source, ok) = match mode.as_str() {
                "up" => (l.wrapping_sub(offset), l as i32 - offset as i32 >= top as i32),
                "down" => (l + offset, l + offset <= top),
                "bfly" => (l ^ offset, l ^ offset <= top),
                _ => (bottom | (offset & !segment), bottom | (offset & !segment) <= top),
            };
            let source = if ok { source as usize } else { lane };
            if mask >> source & 1 == 0 {
                let message = format!("lane {lane} reads lane {source}, which does not take part");
                return Err(Fault::new(Kind::Divergence, message));
            }
            out[lane] = value[source];
            inside |= (ok as u32) << lane;
            out_known |= (known >> source & 1) << lane;
        }
        if let Some(d) = d {
            r.set_narrow(d, &out, mask, out_known);
        }
        if let Some(p) = p {
            r.set_predicate(p, inside, mask, mask);
        }
        Ok(())
    }))
}

/// `vote.sync.{all,any,uni}.pred p, q, mask` and `vote.sync.ballot.b32 d, q, mask`.
fn vote(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    if !ops.has("sync") {
        return ops.unknown();
    }
    let mode = ops.instruction.opcode[2].clone();
    let (p, negated) = ops.predicate(1)?;
    let members = ops.narrow(2)?;
    let ballot = mode == "ballot";
    let d = ops.dst(0, if ballot { Class::Narrow } else { Class::Predicate })?;
    if !matches!(mode.as_str(), "ballot" | "all" | "any" | "uni") {
        return ops.unknown();
    }
    Ok(synchronized(members, move |r, mask| {
        let value = if negated { !r.predicate[p] } else { r.predicate[p] };
        if r.known(Class::Predicate, p) & mask != mask {
            return Err(Fault::new(
                Kind::Uninitialized,
                "a vote on a predicate that was never set",
            ));
        }
        let yes = value & mask;
        if ballot {
            r.set_narrow(d, &[yes; 32], mask, mask);
            return Ok(());
        }
        let holds = match mode.as_str() {
            "all" => yes == mask,
            "any" => yes != 0,
            _ => yes == mask || yes == 0,
        };
        r.set_predicate(d, if holds { mask } else { 0 }, mask, mask);
        Ok(())
    }))
}

/// `match.any.sync.b32 d, a, mask`; `match.all.sync` with a predicate.
fn matching(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let (all, wide) = (ops.has("all"), ops.ty() == "b64");
    let (d, p) = match ops.operand(0)? {
        Operand::Pair(Some(d), p) => {
            (ops.reg(*d, Class::Narrow)?, p.map(|p| ops.reg(p, Class::Predicate)).transpose()?)
        }
        _ => (ops.dst(0, Class::Narrow)?, None),
    };
    let a = if wide { ops.wide(1)? } else { ops.narrow(1)? };
    let members = ops.narrow(2)?;
    Ok(synchronized(members, move |r, mask| {
        let value = |lane: usize| if wide { r.wide[a][lane] } else { r.narrow[a][lane] as u64 };
        let mut out = [0u32; 32];
        for lane in lanes(mask) {
            out[lane] = lanes(mask).filter(|&l| value(l) == value(lane)).fold(0, |m, l| m | 1 << l);
        }
        let same = lanes(mask).all(|lane| out[lane] == mask);
        if all {
            r.set_narrow(d, &[if same { mask } else { 0 }; 32], mask, mask);
        } else {
            r.set_narrow(d, &out, mask, mask);
        }
        if let Some(p) = p {
            r.set_predicate(p, if same { mask } else { 0 }, mask, mask);
        }
        Ok(())
    }))
}

/// `redux.sync.add.u32 d, a, mask`.
fn redux(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let (operation, ty) = (ops.instruction.opcode[2].clone(), ops.ty().to_string());
    let signed = ty == "s32";
    let combine: fn(u32, u32) -> u32 = match (operation.as_str(), signed) {
        ("add", _) => |a, b| a.wrapping_add(b),
        ("min", true) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", true) => |a, b| (a as i32).max(b as i32) as u32,
        ("min", false) => u32::min,
        ("max", false) => u32::max,
        ("and", _) => |a, b| a & b,
        ("or", _) => |a, b| a | b,
        ("xor", _) => |a, b| a ^ b,
        _ => return ops.unknown(),
    };
    let (d, a, members) = (ops.dst(0, Class::Narrow)?, ops.narrow(1)?, ops.narrow(2)?);
    Ok(synchronized(members, move |r, mask| {
        let row: Row = r.narrow[a];
        let known = if r.known(Class::Narrow, a) & mask == mask { mask } else { 0 };
        let total = lanes(mask).map(|lane| row[lane]).reduce(combine).unwrap_or(0);
        r.set_narrow(d, &[total; 32], mask, known);
        Ok(())
    }))
}

/// `elect.sync d|p, mask`: the lowest lane is the leader.
fn elect(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let Operand::Pair(d, Some(p)) = ops.operand(0)?.clone() else { return ops.unknown() };
    let d = d.map(|d| ops.reg(d, Class::Narrow)).transpose()?;
    let (p, members) = (ops.reg(p, Class::Predicate)?, ops.narrow(1)?);
    Ok(synchronized(members, move |r, mask| {
        let leader = mask.trailing_zeros();
        if let Some(d) = d {
            r.set_narrow(d, &[leader; 32], mask, mask);
        }
        r.set_predicate(p, 1 << leader, mask, mask);
        Ok(())
    }))
}
