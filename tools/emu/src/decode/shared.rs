//! Checked access to shared memory.

use super::memory::{Data, Order, aligned};
use crate::machine::Context;
use crate::machine::fault::{Fault, Kind, Step};
use crate::machine::race::{Access, who};
use crate::machine::registers::lanes;
use crate::machine::shared::{VALID, wavefronts};

/// Where the shared memory of a block of a cluster begins in the window that all of them share.
pub(crate) fn shared_base(block: usize) -> u64 {
    (block as u64) << 24
}

/// Block and offset of a shared address. What an instruction without `::cluster` may name is the
/// block's own memory: hardware stops at the address of another block with an illegal instruction.
pub(crate) fn shared_place(c: &Context<'_>, address: u64, any_block: bool) -> Step<(usize, usize)> {
    let (block, offset) = ((address >> 24) as usize, (address & 0xff_ffff) as usize);
    if block < c.cluster.shared.len() && block != c.warp.block && !any_block {
        let message = format!(
            "shared address {address:#x} names block {block}, in block {} and without `::cluster`",
            c.warp.block
        );
        return Err(Fault::new(Kind::OutOfBounds, message));
    }
    if block >= c.cluster.shared.len() {
        let message = format!(
            "shared address {address:#x} names block {block} of a cluster of {}",
            c.cluster.shared.len()
        );
        return Err(Fault::new(Kind::OutOfBounds, message));
    }
    Ok((block, offset))
}

pub(crate) fn count_banks(c: &mut Context<'_>, addresses: &[u64; 32], mask: u32, bytes: usize) {
    let (mut list, mut n) = ([(0usize, 0u32); 32], 0);
    for lane in lanes(mask) {
        list[n] = (lane, addresses[lane] as u32);
        n += 1;
    }
    let (took, ideal) = wavefronts(&list[..n], bytes);
    c.counters.shared_wavefronts += took;
    c.counters.shared_wavefronts_ideal += ideal;
}

pub(super) fn fetch_shared(
    c: &mut Context<'_>,
    addresses: &[u64; 32],
    mask: u32,
    bytes: usize,
    order: Order,
    data: &mut Data,
) -> Step<()> {
    count_banks(c, addresses, mask, bytes);
    for lane in lanes(mask) {
        aligned(addresses[lane], bytes)?;
        let (block, at) = shared_place(c, addresses[lane], order.any_block)?;
        read_shared(c, block, at, bytes, lane as u8, order.strong, &mut data[lane][..bytes])?;
    }
    Ok(())
}

/// One checked read of shared memory.
pub(crate) fn read_shared(
    c: &mut Context<'_>,
    block: usize,
    at: usize,
    bytes: usize,
    lane: u8,
    strong: bool,
    out: &mut [u8],
) -> Step<()> {
    let kind = if strong { Access::StrongRead } else { Access::Read };
    let (warp, cluster, launch) = (&*c.warp, &mut *c.cluster, c.launch);
    let who = who(warp, cluster.index, &cluster.acquired, launch);
    let shared = &mut cluster.shared[block];
    shared.bounds(at, bytes)?;
    shared.readable(at, bytes)?;
    shared.mark(at, bytes, &who, lane, kind)?;
    out.copy_from_slice(&shared.data[at..at + bytes]);
    Ok(())
}

/// One checked write of shared memory.
pub(crate) fn write_shared(
    c: &mut Context<'_>,
    block: usize,
    at: usize,
    lane: u8,
    strong: bool,
    bytes: &[u8],
) -> Step<()> {
    let kind = if strong { Access::StrongWrite } else { Access::Write };
    let (warp, cluster, launch) = (&*c.warp, &mut *c.cluster, c.launch);
    let who = who(warp, cluster.index, &cluster.acquired, launch);
    let shared = &mut cluster.shared[block];
    shared.bounds(at, bytes.len())?;
    shared.writable(at, bytes.len())?;
    shared.mark(at, bytes.len(), &who, lane, kind)?;
    shared.data[at..at + bytes.len()].copy_from_slice(bytes);
    shared.state[at..at + bytes.len()].fill(VALID);
    cluster.activity += 1;
    Ok(())
}
