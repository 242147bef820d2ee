//! Global memory: buffers with exact bounds, a bit per byte for "was written", and the shadow of
//! the race detector. An address is the buffer's number in the upper bits and an offset below, so
//! no pointer arithmetic leads from one buffer into another.

use std::collections::{HashMap, HashSet};

use super::fault::{Fault, Kind, Step};
use super::race::{Access, Conflict, Readers, Shadow, Who, access, byte_mask};
use crate::time::tape::Traffic;

/// Bits of an address below the buffer's number.
pub(crate) const OFFSET_BITS: u32 = 40;

/// Readers remembered of a word beside the last: those of other clusters have no order with a
/// write anyway, so that any of them shows a race.
const READERS: usize = 4;

/// One allocation.
pub(crate) struct Buffer {
    pub name: String,
    pub data: Vec<u8>,
    /// A bit per byte; empty if every byte is presumed to be written.
    init: Vec<u8>,
    shadow: Vec<Shadow>,
    readers: Readers,
    /// A bit per sector: loaded, stored.
    touched: [Vec<u8>; 2],
    /// The launch that the shadow and the sectors are about.
    launch: u64,
}

/// All allocations of a device.
#[derive(Default)]
pub struct Memory {
    buffers: Vec<Option<Buffer>>,
    /// Clocks that atomics left at an address, by cluster.
    pub(crate) published: HashMap<u64, HashMap<u32, Vec<u32>>>,
    launch: u64,
    /// Distinct sectors of the present launch: loaded, stored.
    pub(crate) cold_sectors: [u64; 2],
    /// How many warp instructions of the present launch were atomics on a sector.
    contended: HashMap<u64, u64>,
    /// Bytes of all allocations.
    pub live_bytes: u64,
    /// New buffers count as written, which those of an op that is timed have to: most of its blocks
    /// never run.
    pub(crate) presumed: bool,
    /// What a launch that is timed touches. Such a launch runs a few of its blocks, so that nothing can
    /// be said of values and races.
    pub(crate) traffic: Option<Box<Traffic>>,
    /// Buffers that earlier launches of the op that is timed have touched.
    pub(crate) warm: HashSet<u32>,
}

impl Memory {
    /// Allocates `bytes` bytes that hold nothing yet; the address is a multiple of 256.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        let buffer = Buffer {
            name: name.to_string(),
            data: vec![0; bytes],
            init: vec![0; if self.presumed { 0 } else { bytes.div_ceil(8) }],
            shadow: Vec::new(),
            readers: Readers::new(READERS),
            touched: [Vec::new(), Vec::new()],
            launch: 0,
        };
        self.live_bytes += bytes as u64;
        self.buffers.push(Some(buffer));
        (self.buffers.len() as u64) << OFFSET_BITS
    }

    /// Frees an allocation by its first address; false if there is none.
    pub fn free(&mut self, address: u64) -> bool {
        let slot = ((address >> OFFSET_BITS) as usize).wrapping_sub(1);
        if address & ((1 << OFFSET_BITS) - 1) != 0 {
            return false;
        }
        match self.buffers.get_mut(slot).and_then(Option::take) {
            Some(buffer) => {
                self.live_bytes -= buffer.data.len() as u64;
                true
            }
            None => false,
        }
    }

    /// Number of allocations that were not freed.
    pub fn live(&self) -> usize {
        self.buffers.iter().flatten().count()
    }

    /// Forgets what the detectors know of earlier launches.
    pub(crate) fn begin_launch(&mut self) {
        self.launch += 1;
        self.published.clear();
        self.cold_sectors = [0; 2];
        self.contended.clear();
    }

    /// Atomics of a warp instruction on these sectors.
    pub(crate) fn contend(&mut self, sectors: &[u64]) {
        for &sector in sectors {
            *self.contended.entry(sector).or_default() += 1;
        }
    }

    /// Atomics on the sector that the present launch has most of.
    pub(crate) fn hottest(&self) -> u64 {
        self.contended.values().copied().max().unwrap_or(0)
    }

    /// The buffer around `bytes` bytes at `address`, and the offset in it.
    pub(crate) fn locate(&self, address: u64, bytes: usize) -> Step<(usize, usize)> {
        let slot = ((address >> OFFSET_BITS) as usize).wrapping_sub(1);
        let offset = (address & ((1 << OFFSET_BITS) - 1)) as usize;
        match self.buffers.get(slot).and_then(Option::as_ref) {
            Some(buffer) if offset + bytes <= buffer.data.len() => Ok((slot, offset)),
            _ => Err(self.out_of_bounds(address, bytes)),
        }
    }

    #[cold]
    fn out_of_bounds(&self, address: u64, bytes: usize) -> Box<Fault> {
        let slot = ((address >> OFFSET_BITS) as usize).wrapping_sub(1);
        let offset = address & ((1 << OFFSET_BITS) - 1);
        let message = match self.buffers.get(slot) {
            Some(Some(b)) => {
                format!(
                    "{bytes} bytes at offset {offset} of `{}`, which has {}",
                    b.name,
                    b.data.len()
                )
            }
            Some(None) => format!("{bytes} bytes at offset {offset} of a freed buffer"),
            None => format!("{bytes} bytes at address {address:#x}, where nothing is"),
        };
        Fault::new(Kind::OutOfBounds, message)
    }

    #[inline(always)]
    pub(crate) fn buffer(&mut self, slot: usize) -> &mut Buffer {
        self.buffers[slot].as_mut().expect("located before")
    }

    /// Counts the sectors of a warp's accesses and remembers which the launch has touched.
    /// `store` picks the kind. Addresses come in lane order.
    pub(crate) fn sectors(&mut self, slot: usize, offsets: &[u64], bytes: u64, store: bool) -> u64 {
        let launch = self.launch;
        let buffer = self.buffers[slot].as_mut().expect("located before");
        buffer.prepare(launch, self.traffic.is_none());
        let touched = &mut buffer.touched[store as usize];
        let (mut seen, mut count, mut fresh) = ([0u64; 128], 0usize, 0u64);
        for &offset in offsets {
            for sector in offset / 32..=(offset + bytes - 1) / 32 {
                // Neighboring lanes mostly share a sector or take the next.
                let known =
                    count > 0 && (seen[count - 1] == sector || seen[..count].contains(&sector));
                if known {
                    continue;
                }
                seen[count] = sector;
                count += 1;
                let (byte, bit) = (sector as usize / 8, 1u8 << (sector % 8));
                fresh += (touched[byte] & bit == 0) as u64;
                touched[byte] |= bit;
            }
        }
        self.cold_sectors[store as usize] += fresh;
        if let Some(traffic) = &mut self.traffic {
            traffic.touch(slot as u32, &seen[..count], store);
        }
        count as u64
    }

    /// Checks and marks an access of the race detector. Lane 32 stands for the warp as a whole.
    #[inline(always)]
    pub(crate) fn mark(
        &mut self,
        (slot, offset): (usize, usize),
        bytes: usize,
        (who, lane): (&Who<'_>, u8),
        kind: Access,
    ) -> Step<()> {
        if self.traffic.is_some() {
            return Ok(());
        }
        let launch = self.launch;
        let buffer = self.buffers[slot].as_mut().expect("located before");
        buffer.prepare(launch, true);
        let mark = who.mark();
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let first = at % 4;
            let count = (4 - first).min(end - at);
            let (word, mask) = (at / 4, byte_mask(first, count));
            let shadow = &mut buffer.shadow[word];
            let lane = (lane, lane < 32);
            let found = access(shadow, &mut buffer.readers, (who, mark), lane, mask, kind);
            if let Err(conflict) = found {
                return Err(race(&buffer.name, at, conflict, who));
            }
            at += count;
        }
        Ok(())
    }

    /// Bytes of a buffer, by number.
    pub(crate) fn size(&self, slot: u32) -> u64 {
        self.buffers.get(slot as usize).and_then(Option::as_ref).map_or(0, |b| b.data.len() as u64)
    }

    /// Bytes for the host, without any check of races.
    pub fn host_read(&mut self, address: u64, out: &mut [u8]) -> Step<()> {
        let (slot, offset) = self.locate(address, out.len())?;
        let buffer = self.buffer(slot);
        if let Some(bad) = buffer.first_unwritten(offset, out.len()) {
            let message =
                format!("the host reads byte {bad} of `{}`, which was never written", buffer.name);
            return Err(Fault::new(Kind::Uninitialized, message));
        }
        out.copy_from_slice(&buffer.data[offset..offset + out.len()]);
        Ok(())
    }

    /// Bytes from the host.
    pub fn host_write(&mut self, address: u64, bytes: &[u8]) -> Step<()> {
        let (slot, offset) = self.locate(address, bytes.len())?;
        let buffer = self.buffer(slot);
        buffer.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        buffer.set_written(offset, bytes.len());
        Ok(())
    }
}

#[cold]
fn race(name: &str, at: usize, conflict: Conflict, who: &Who<'_>) -> Box<Fault> {
    let message = match conflict {
        Conflict::Race(what, mark) => {
            format!("{what} at byte {at} of `{name}` without an order: {}", who.name(mark))
        }
        Conflict::Lane(what, lane) => {
            format!("{what} at byte {at} of `{name}` without a warp barrier between: lane {lane}")
        }
    };
    Fault::new(Kind::Race, message)
}

impl Buffer {
    #[inline(always)]
    fn prepare(&mut self, launch: u64, checked: bool) {
        if self.launch != launch {
            self.launch = launch;
            let words = if checked { self.data.len().div_ceil(4) } else { 0 };
            self.shadow = vec![Shadow::default(); words];
            self.readers = Readers::new(READERS);
            let sectors = self.data.len().div_ceil(32).div_ceil(8);
            self.touched = [vec![0; sectors], vec![0; sectors]];
        }
    }

    /// First byte of a range that was never written.
    #[inline(always)]
    pub fn first_unwritten(&self, offset: usize, bytes: usize) -> Option<usize> {
        if self.init.is_empty() {
            return None;
        }
        if bytes <= 16 && offset.is_multiple_of(bytes) {
            let all = (1u32 << bytes) - 1;
            let mut bits = self.init[offset / 8] as u32;
            if bytes == 16 {
                bits |= (self.init[offset / 8 + 1] as u32) << 8;
            }
            if bits >> (offset % 8) & all == all {
                return None;
            }
        }
        (offset..offset + bytes).find(|&i| self.init[i / 8] >> (i % 8) & 1 == 0)
    }

    /// True if this launch has written a word of the range.
    pub fn written_in_launch(&self, offset: usize, bytes: usize) -> bool {
        let words = self.shadow.get(offset / 4..(offset + bytes).div_ceil(4));
        words.is_some_and(|words| words.iter().any(|s| s.write.owner != 0))
    }

    /// Marks a range as written.
    #[inline(always)]
    pub fn set_written(&mut self, offset: usize, bytes: usize) {
        if self.init.is_empty() {
            return;
        }
        // A power of two at a multiple of itself does not cross into the next byte of flags.
        if bytes <= 8 && bytes.is_power_of_two() && offset.is_multiple_of(bytes) {
            self.init[offset / 8] |= (((1u32 << bytes) - 1) << (offset % 8)) as u8;
            return;
        }
        let (mut i, end) = (offset, offset + bytes);
        while i < end {
            if i.is_multiple_of(8) && end - i >= 8 {
                self.init[i / 8] = 255;
                i += 8;
            } else {
                self.init[i / 8] |= 1 << (i % 8);
                i += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes of every length at every offset mark what they wrote and nothing else.
    #[test]
    fn writes_mark_exactly_their_bytes() {
        for (offset, bytes) in (0..33).flat_map(|offset| (1..20).map(move |n| (offset, n))) {
            let mut memory = Memory::default();
            let at = memory.alloc("b", 64);
            memory.host_write(at + offset, &vec![1; bytes]).unwrap();
            let written = |i: u64| (offset..offset + bytes as u64).contains(&i);
            for i in 0..64 {
                let read = memory.host_read(at + i, &mut [0]);
                assert_eq!(read.is_ok(), written(i), "{bytes} bytes from {offset}: byte {i}");
            }
        }
    }
}
