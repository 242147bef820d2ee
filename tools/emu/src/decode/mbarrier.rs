//! `mbarrier.*`: every active lane acts on its own.

use super::place::SharedAddress;
use super::shared::shared_place;
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::pending::{Landing, Payload, Signal};
use crate::machine::registers::{Registers, lanes};
use crate::machine::{Context, Flow};
use crate::tensor::mbarrier::Mbarrier;
use crate::text::ast::{Class, Operand};

/// Modifiers that all forms share.
struct Form {
    relaxed: bool,
    parity: bool,
    expect: bool,
    no_complete: bool,
}

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let form = form(ops)?;
    let kind = ops.instruction.opcode.get(1).cloned().unwrap_or_default();
    let run = match kind.as_str() {
        "init" => init(ops)?,
        "inval" => invalidate(ops)?,
        "arrive" | "arrive_drop" => arrive(ops, &form, kind == "arrive_drop")?,
        "expect_tx" | "complete_tx" => transact(ops, kind == "expect_tx")?,
        "test_wait" | "try_wait" => wait(ops, &form)?,
        "pending_count" => pending_count(ops)?,
        _ => return ops.unknown(),
    };
    Ok((Work::Control, run))
}

fn form(ops: &Ops<'_, '_, '_, '_>) -> Result<Form, String> {
    let mut form = Form { relaxed: false, parity: false, expect: false, no_complete: false };
    let modifiers = ops.modifiers();
    if modifiers.last() != Some(&"b64") {
        return ops.unknown();
    }
    for modifier in modifiers.iter().skip(1).take(modifiers.len().saturating_sub(2)) {
        match *modifier {
            "relaxed" => form.relaxed = true,
            "parity" => form.parity = true,
            "expect_tx" => form.expect = true,
            "noComplete" => form.no_complete = true,
            "release" | "acquire" | "cta" | "cluster" | "shared" | "shared::cta"
            | "shared::cluster" => {}
            _ => return ops.unknown(),
        }
    }
    Ok(form)
}

/// The value of a 32-bit register in a lane, which has to be defined.
pub(super) fn defined(r: &Registers, index: usize, lane: usize) -> Step<u32> {
    if r.known(Class::Narrow, index) >> lane & 1 == 0 {
        return Err(Fault::new(
            Kind::Uninitialized,
            format!("an operand in lane {lane} was never set"),
        ));
    }
    Ok(r.narrow[index][lane])
}

fn init(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.count(2)?;
    let (address, count) = (SharedAddress::new(ops, 0)?, ops.narrow(1)?);
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        for lane in lanes(mask) {
            let place = places[lane];
            let count = defined(&c.warp.registers, count, lane)?;
            c.initialize_barrier(place, count, lane as u8)?;
        }
        Ok(Flow::Next)
    }))
}

fn invalidate(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.count(1)?;
    let address = SharedAddress::new(ops, 0)?;
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        for lane in lanes(mask) {
            let place = places[lane];
            c.reach_barrier(place)?;
            c.invalidate_barrier(place, lane as u8)?;
        }
        Ok(Flow::Next)
    }))
}

/// `mbarrier.arrive{_drop}{.expect_tx | .noComplete}.b64 state, [p]{, count}`; the state may be
/// left out or `_`.
fn arrive(ops: &mut Ops<'_, '_, '_, '_>, form: &Form, drop: bool) -> Result<Execute, String> {
    let operands = ops.instruction.operands.clone();
    let first = usize::from(!matches!(operands.first(), Some(Operand::Address(..))));
    let state = match operands.first() {
        Some(Operand::Reg(_)) => Some(ops.dst(0, Class::Wide)?),
        _ => None,
    };
    let address = SharedAddress::new(ops, first)?;
    let count = match operands.len() - first {
        1 if !form.expect && !form.no_complete => None,
        2 => Some(ops.narrow(first + 1)?),
        n => return Err(format!("`{}` with {n} operands", ops.instruction.opcode.join("."))),
    };
    let (expect, no_complete, relaxed) = (form.expect, form.no_complete, form.relaxed);
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        for lane in lanes(mask) {
            let place = places[lane];
            let count = count.map_or(Ok(1), |count| defined(&c.warp.registers, count, lane))?;
            c.reach_barrier(place)?;
            if !relaxed {
                c.release_to(place);
            }
            let act = |barrier: &mut Mbarrier| match (drop, expect, no_complete) {
                (false, false, false) => barrier.arrive(count),
                (false, false, true) => barrier.arrive_no_complete(count),
                (true, false, false) => barrier.arrive_drop(count),
                (true, false, true) => barrier.arrive_drop_no_complete(count),
                (false, true, _) => barrier.arrive_expect_tx(count),
                (true, true, _) => barrier.expect_tx(count).and_then(|()| barrier.arrive_drop(1)),
            };
            let token = c.cluster.update_barrier(place, act)?;
            if let Some(state) = state {
                c.warp.registers.set_wide(state, &[token; 32], 1 << lane, ALL_LANES);
            }
        }
        Ok(Flow::Next)
    }))
}

const ALL_LANES: u32 = u32::MAX;

fn transact(ops: &mut Ops<'_, '_, '_, '_>, expect: bool) -> Result<Execute, String> {
    ops.count(2)?;
    let (address, bytes) = (SharedAddress::new(ops, 0)?, ops.narrow(1)?);
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        for lane in lanes(mask) {
            let place = places[lane];
            let bytes = defined(&c.warp.registers, bytes, lane)?;
            c.reach_barrier(place)?;
            c.cluster.update_barrier(place, |barrier| {
                if expect { barrier.expect_tx(bytes) } else { barrier.complete_tx(bytes) }
            })?;
        }
        Ok(Flow::Next)
    }))
}

/// What a wait waits for.
#[derive(Clone, Copy)]
enum Awaited {
    Parity(usize),
    State(usize),
}

/// `mbarrier.{test,try}_wait{.parity}.b64 done, [p], state | parity{, hint}`. A failed wait gives
/// the other warps a turn.
fn wait(ops: &mut Ops<'_, '_, '_, '_>, form: &Form) -> Result<Execute, String> {
    let operands = ops.instruction.operands.len();
    if operands != 3 && !(operands == 4 && ops.instruction.opcode[1] == "try_wait") {
        return ops.unknown();
    }
    let done = ops.dst(0, Class::Predicate)?;
    let address = SharedAddress::new(ops, 1)?;
    let awaited =
        if form.parity { Awaited::Parity(ops.narrow(2)?) } else { Awaited::State(ops.wide(2)?) };
    let relaxed = form.relaxed;
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        let mut holds = 0;
        for lane in lanes(mask) {
            let place = places[lane];
            c.reach_barrier(place)?;
            if completed(c, place, awaited, lane)? {
                holds |= 1 << lane;
                c.note_wait(place);
                if !relaxed {
                    c.acquire_from(place);
                }
            }
        }
        c.warp.registers.set_predicate(done, holds, mask, mask);
        Ok(if holds == mask { Flow::Next } else { Flow::Yield })
    }))
}

fn completed(c: &Context<'_>, place: (usize, usize), awaited: Awaited, lane: usize) -> Step<bool> {
    let barrier = c.cluster.barrier(place)?;
    let result = match awaited {
        Awaited::Parity(parity) => {
            barrier.test_wait_parity(defined(&c.warp.registers, parity, lane)?)
        }
        Awaited::State(state) => barrier.test_wait(defined_wide(&c.warp.registers, state, lane)?),
    };
    result.map_err(|message| Fault::new(Kind::Misuse, message))
}

/// The value of a 64-bit register in a lane, which has to be defined.
pub(super) fn defined_wide(r: &Registers, index: usize, lane: usize) -> Step<u64> {
    if r.known(Class::Wide, index) >> lane & 1 == 0 {
        return Err(Fault::new(
            Kind::Uninitialized,
            format!("an operand in lane {lane} was never set"),
        ));
    }
    Ok(r.wide[index][lane])
}

/// `cp.async.mbarrier.arrive{.noinc}.b64 [p]`: arrives when the lane's copies until now are done,
/// which from here on land by themselves.
pub(super) fn arrive_after_copies(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let known = ["async", "mbarrier", "arrive", "noinc", "shared", "shared::cta", "b64"];
    if let Some(m) = ops.modifiers().iter().find(|m| !known.contains(m)) {
        return Err(format!("copy modifier `.{m}` is not supported"));
    }
    ops.count(1)?;
    let (address, counted, line) =
        (SharedAddress::new(ops, 0)?, ops.has("noinc"), ops.instruction.line);
    Ok(Box::new(move |c, mask| {
        let places = address.places(c, mask)?;
        for lane in lanes(mask) {
            let place = places[lane];
            c.reach_barrier(place)?;
            c.release_to(place);
            c.note_landing(place);
            if !counted {
                c.cluster.update_barrier(place, Mbarrier::expect_arrival)?;
            }
            let pieces = take_copies(c, lane as u8)?;
            let landing =
                Landing { rank: c.warp.block, pieces, signal: Signal::Arrival(place), line };
            c.cluster
                .late
                .push_back(Box::new(move |cluster, memory, _| landing.land(cluster, memory)));
        }
        Ok(Flow::Next)
    }))
}

/// Takes a lane's copies out of the warp's groups.
fn take_copies(c: &mut Context<'_>, lane: u8) -> Step<Vec<(usize, usize, Payload)>> {
    let groups = c.warp.copy_groups.iter_mut().chain(std::iter::once(&mut c.warp.open_copies));
    let mut copies = Vec::new();
    for group in groups {
        copies.extend(group.extract_if(.., |copy| copy.lane == lane));
    }
    let mut pieces = Vec::new();
    for copy in copies {
        let (_, at) = shared_place(c, u64::from(copy.shared), false)?;
        let (bytes, source) = (usize::from(copy.bytes), usize::from(copy.source));
        if source > 0 {
            let (slot, offset) = c.memory.locate(copy.global, source)?;
            let buffer = c.memory.buffer(slot);
            if let Some(bad) = buffer.first_unwritten(offset, source) {
                let message =
                    format!("byte {bad} of `{}` is copied and was never written", buffer.name);
                return Err(Fault::new(Kind::Uninitialized, message));
            }
            pieces.push((at, source, Payload::Global(copy.global)));
        }
        if source < bytes {
            pieces.push((at + source, bytes - source, Payload::Zero));
        }
    }
    Ok(pieces)
}

fn pending_count(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.count(2)?;
    let (d, state) = (ops.dst(0, Class::Narrow)?, ops.wide(1)?);
    Ok(Box::new(move |c, mask| {
        for lane in lanes(mask) {
            let token = defined_wide(&c.warp.registers, state, lane)?;
            let count = Mbarrier::pending_count(token)
                .map_err(|message| Fault::new(Kind::Misuse, message))?;
            c.warp.registers.set_narrow(d, &[count; 32], 1 << lane, ALL_LANES);
        }
        Ok(Flow::Next)
    }))
}
