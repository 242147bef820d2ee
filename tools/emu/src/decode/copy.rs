//! `cp.async`: copies to shared memory that land when they are waited for, and not before.

use super::control::immediate;
use super::shared::shared_place;
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::race::{Access, who};
use crate::machine::registers::lanes;
use crate::machine::shared::{IN_FLIGHT, VALID};
use crate::machine::warp::PendingCopy;
use crate::machine::{Context, Flow};
use crate::text::ast::{Class, Operand};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    if ops.instruction.opcode.get(1).is_none_or(|m| m != "async") || ops.has("bulk") {
        return ops.unknown();
    }
    let run: Execute = if ops.has("commit_group") {
        Box::new(|c, _| {
            let group = std::mem::take(&mut c.warp.open_copies);
            c.warp.copy_groups.push_back(group);
            Ok(Flow::Next)
        })
    } else if ops.has("wait_group") {
        let keep = immediate(ops.operand(0)?)? as usize;
        Box::new(move |c, _| {
            while c.warp.copy_groups.len() > keep {
                let group = c.warp.copy_groups.pop_front().unwrap_or_default();
                deliver(c, group)?;
            }
            Ok(Flow::Next)
        })
    } else if ops.has("wait_all") {
        Box::new(|c, _| {
            let open = std::mem::take(&mut c.warp.open_copies);
            c.warp.copy_groups.push_back(open);
            while let Some(group) = c.warp.copy_groups.pop_front() {
                deliver(c, group)?;
            }
            Ok(Flow::Next)
        })
    } else if ops.has("mbarrier") {
        super::mbarrier::arrive_after_copies(ops)?
    } else {
        issue(ops)?
    };
    Ok((Work::Memory, run))
}

/// `cp.async.cg.shared.global [d], [s], 16, n`: bytes from `n` on are zero.
fn issue(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let known = |m: &&str| {
        matches!(*m, "async" | "ca" | "cg" | "shared" | "shared::cta" | "global")
            || m.starts_with("L2::")
    };
    if let Some(m) = ops.modifiers().iter().find(|m| !known(m)) {
        return Err(format!("copy modifier `.{m}` is not supported"));
    }
    let ((to, _), (from, _)) = (ops.address(0)?, ops.address(1)?);
    let bytes = immediate(ops.operand(2)?)? as u8;
    if !matches!(bytes, 4 | 8 | 16) || (ops.has("cg") && bytes != 16) {
        return Err(format!("an asynchronous copy of {bytes} bytes"));
    }
    let (mut size, mut ignore) = (None, None);
    match ops.instruction.operands.get(3) {
        Some(Operand::Reg(reg)) if reg.class == Class::Predicate => {
            ignore = Some(ops.predicate(3)?)
        }
        Some(_) => size = Some(ops.narrow(3)?),
        None => {}
    }
    let through_l1 = ops.has("ca");
    Ok(Box::new(move |c, mask| {
        let (shared, global) = (to.resolve(c, mask)?, from.resolve(c, mask)?);
        super::shared::count_banks(c, &shared, mask, bytes as usize);
        let mut fetched = Fetched { through_l1, ..Fetched::default() };
        for lane in lanes(mask) {
            let r = &c.warp.registers;
            let skip =
                ignore.is_some_and(|(p, negated)| (r.predicate[p] >> lane & 1 != 0) != negated);
            let source = if skip { 0 } else { size.map_or(bytes as u32, |s| r.narrow[s][lane]) };
            if source > bytes as u32 {
                return Err(Fault::new(
                    Kind::Misuse,
                    format!("{source} source bytes of a copy of {bytes}"),
                ));
            }
            let copy = PendingCopy {
                lane: lane as u8,
                shared: shared[lane] as u32,
                global: global[lane],
                bytes,
                source: source as u8,
            };
            start(c, copy, &mut fetched)?;
        }
        c.counters.global_load_sectors += fetched.count as u64;
        Ok(Flow::Next)
    }))
}

/// Sectors that one instruction asks the L2 for. Without the L1 one whose halves go to different
/// places of shared memory comes twice: measured on an H200, half of the L2's work.
#[derive(Default)]
struct Fetched {
    through_l1: bool,
    seen: [(usize, usize, u32); 32],
    count: usize,
}

impl Fetched {
    fn add(&mut self, slot: usize, offset: usize, shared: u32) {
        let place = if self.through_l1 { 0 } else { shared / 32 };
        let sector = (slot, offset / 32, place);
        if !self.seen[..self.count].contains(&sector) {
            self.seen[self.count] = sector;
            self.count += 1;
        }
    }
}

fn start(c: &mut Context<'_>, copy: PendingCopy, fetched: &mut Fetched) -> Step<()> {
    let bytes = copy.bytes as usize;
    if !(copy.shared as usize).is_multiple_of(bytes)
        || (copy.source > 0 && !copy.global.is_multiple_of(bytes as u64))
    {
        let message = format!(
            "an asynchronous copy of {bytes} bytes from {:#x} to {:#x}",
            copy.global, copy.shared
        );
        return Err(Fault::new(Kind::Misaligned, message));
    }
    let (block, at) = shared_place(c, copy.shared as u64, false)?;
    let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
    let shared = &mut c.cluster.shared[block];
    shared.bounds(at, bytes)?;
    shared.writable(at, bytes)?;
    shared.mark(at, bytes, &who, copy.lane, Access::Write)?;
    shared.state[at..at + bytes].fill(IN_FLIGHT);
    if copy.source > 0 {
        let source = copy.source as usize;
        let (slot, offset) = c.memory.locate(copy.global, source)?;
        c.memory.mark((slot, offset), source, (&who, copy.lane), Access::Read)?;
        // Counts the sector as touched in this launch.
        c.memory.sectors(slot, &[offset as u64], source as u64, false);
        fetched.add(slot, offset, copy.shared);
        c.counters.global_load_bytes += source as u64;
    }
    c.warp.open_copies.push(copy);
    Ok(())
}

/// The data of a group lands; the waiting warp is the one that wrote it.
fn deliver(c: &mut Context<'_>, group: Vec<PendingCopy>) -> Step<()> {
    for copy in group {
        let (bytes, source) = (copy.bytes as usize, copy.source as usize);
        let (block, at) = shared_place(c, copy.shared as u64, false)?;
        let mut data = [0u8; 16];
        if source > 0 {
            let (slot, offset) = c.memory.locate(copy.global, source)?;
            let buffer = c.memory.buffer(slot);
            if let Some(bad) = buffer.first_unwritten(offset, source) {
                let message =
                    format!("byte {bad} of `{}` is copied and was never written", buffer.name);
                return Err(Fault::new(Kind::Uninitialized, message));
            }
            data[..source].copy_from_slice(&buffer.data[offset..offset + source]);
        }
        let who = who(c.warp, c.cluster.index, &c.cluster.acquired, c.launch);
        let shared = &mut c.cluster.shared[block];
        shared.state[at..at + bytes].fill(VALID);
        shared.mark(at, bytes, &who, copy.lane, Access::Write)?;
        shared.data[at..at + bytes].copy_from_slice(&data[..bytes]);
    }
    Ok(())
}
