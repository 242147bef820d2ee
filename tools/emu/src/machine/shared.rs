//! Shared memory of one block: bytes, what state each is in, and the race detector's shadow.

use super::fault::{Fault, Kind, Step};
use super::race::{Access, Conflict, Mark, Readers, Shadow, Who, access, byte_mask};

/// A byte was never written.
pub const UNWRITTEN: u8 = 0;
/// A byte holds a value.
pub const VALID: u8 = 1;
/// An asynchronous copy will write the byte.
pub const IN_FLIGHT: u8 = 2;

/// The shared memory of a block.
#[derive(Default)]
pub struct Shared {
    pub data: Vec<u8>,
    pub state: Vec<u8>,
    shadow: Vec<Shadow>,
    readers: Readers,
}

impl Shared {
    pub fn new(bytes: usize) -> Shared {
        Shared {
            data: vec![0; bytes],
            state: vec![UNWRITTEN; bytes],
            shadow: vec![Shadow::default(); bytes.div_ceil(4)],
            readers: Readers::new(64),
        }
    }

    /// An error unless the range is inside.
    #[inline(always)]
    pub fn bounds(&self, offset: usize, bytes: usize) -> Step<()> {
        if offset + bytes <= self.data.len() {
            return Ok(());
        }
        let message =
            format!("{bytes} bytes at shared offset {offset}; the block has {}", self.data.len());
        Err(Fault::new(Kind::OutOfBounds, message))
    }

    /// An error unless every byte holds a value.
    #[inline(always)]
    pub fn readable(&self, offset: usize, bytes: usize) -> Step<()> {
        match self.state[offset..offset + bytes].iter().position(|&s| s != VALID) {
            None => Ok(()),
            Some(at) => Err(self.unreadable(offset + at)),
        }
    }

    #[cold]
    fn unreadable(&self, at: usize) -> Box<Fault> {
        if self.state[at] & IN_FLIGHT != 0 {
            let message =
                format!("shared byte {at} is read before its asynchronous copy was waited for");
            return Fault::new(Kind::InFlight, message);
        }
        Fault::new(Kind::Uninitialized, format!("shared byte {at} is read and was never written"))
    }

    /// An error if an asynchronous copy is about to write into the range.
    #[inline(always)]
    pub fn writable(&self, offset: usize, bytes: usize) -> Step<()> {
        match self.state[offset..offset + bytes].iter().position(|&s| s & IN_FLIGHT != 0) {
            None => Ok(()),
            Some(at) => {
                let at = offset + at;
                let message =
                    format!("shared byte {at} is written while an asynchronous copy writes it");
                Err(Fault::new(Kind::InFlight, message))
            }
        }
    }

    /// Checks and marks an access of the race detector.
    #[inline(always)]
    pub fn mark(
        &mut self,
        offset: usize,
        bytes: usize,
        who: &Who<'_>,
        lane: u8,
        kind: Access,
    ) -> Step<()> {
        let mark = who.mark();
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let first = at % 4;
            let count = (4 - first).min(end - at);
            let (word, mask) = (at / 4, byte_mask(first, count));
            let shadow = &mut self.shadow[word];
            let found = access(shadow, &mut self.readers, (who, mark), (lane, true), mask, kind);
            if let Err(conflict) = found {
                return Err(race(at, conflict, who));
            }
            at += count;
        }
        Ok(())
    }

    /// The last write of the word at `offset`.
    pub fn last_write(&self, offset: usize) -> Mark {
        self.shadow[offset / 4].write
    }

    /// Forgets the marks of a range: an asynchronous copy whose completion orders everything has
    /// written it.
    pub fn clear_marks(&mut self, offset: usize, bytes: usize) {
        for word in offset / 4..(offset + bytes).div_ceil(4) {
            self.readers.release(&mut self.shadow[word]);
            self.shadow[word] = Shadow::default();
        }
    }
}

#[cold]
fn race(at: usize, conflict: Conflict, who: &Who<'_>) -> Box<Fault> {
    let message = match conflict {
        Conflict::Race(what, mark) => {
            format!("{what} at shared byte {at} without a barrier between: {}", who.name(mark))
        }
        Conflict::Lane(what, lane) => {
            format!("{what} at shared byte {at} without a warp barrier between: lane {lane}")
        }
    };
    Fault::new(Kind::Race, message)
}

/// Passes over the banks that one warp access takes, and the fewest its distinct words allow.
/// Accesses of 4 bytes go in one phase, of 8 in two, of 16 in four.
pub fn wavefronts(addresses: &[(usize, u32)], bytes: usize) -> (u64, u64) {
    let per_phase = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let (mut total, mut ideal) = (0, 0);
    for phase in 0..32 / per_phase {
        // The first word of each bank, plus one; further words of a bank are conflicts.
        let (mut first, mut more) = ([0u32; 32], Vec::new());
        let mut distinct = 0u64;
        for &(lane, address) in addresses {
            if lane / per_phase != phase {
                continue;
            }
            for word in address / 4..=(address + bytes as u32 - 1) / 4 {
                let bank = (word % 32) as usize;
                if first[bank] == word + 1 || more.contains(&word) {
                    continue;
                }
                distinct += 1;
                if first[bank] == 0 {
                    first[bank] = word + 1;
                } else {
                    more.push(word);
                }
            }
        }
        if distinct == 0 {
            continue;
        }
        let mut depth = [1u64; 32];
        more.iter().for_each(|word| depth[(word % 32) as usize] += 1);
        total += depth.into_iter().max().unwrap_or(1);
        ideal += distinct.div_ceil(32);
    }
    (total, ideal)
}
