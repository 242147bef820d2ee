//! Happens-before between warps. Every warp carries a vector clock over the warps of its cluster;
//! barriers join clocks. Between clusters an order exists only where a fence and an atomic on one
//! side meet an atomic and a fence on the other. Each word of memory remembers its last write and
//! its reads; two accesses without an order, one of them a write, are a race.

use std::collections::HashMap;

use super::Launch;
use super::warp::Warp;

/// An access: who and when. Owner 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub owner: u32,
    pub clock: u32,
}

/// Shadow of a 4-byte word.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shadow {
    pub write: Mark,
    pub read: Mark,
    /// Bytes of the word that the marks are about.
    pub write_bytes: u8,
    pub read_bytes: u8,
    /// Lane of the access, 32 for several.
    pub write_lane: u8,
    pub read_lane: u8,
    /// The write was an atomic or a volatile store.
    pub strong: bool,
    /// The read was a volatile load or its like.
    pub read_strong: bool,
    /// Readers that `read` does not tell of: a list of [`Readers`] by its number, 0 for none.
    pub crowd: u32,
}

/// A reader of a word: who, which bytes, and whether its read was strong.
type Reader = (Mark, u8, bool);

/// The readers of words that several warps read, in lists that are used again.
#[derive(Default)]
pub struct Readers {
    lists: Vec<Vec<Reader>>,
    free: Vec<u32>,
    /// Most readers remembered of one word.
    most: usize,
}

impl Readers {
    /// Remembers up to `most` readers of a word beside the last.
    pub fn new(most: usize) -> Readers {
        Readers { lists: Vec::new(), free: Vec::new(), most }
    }

    /// Takes the last reader of a word into its list.
    #[inline(never)]
    fn keep(&mut self, shadow: &mut Shadow) {
        if shadow.crowd == 0 {
            shadow.crowd = self.free.pop().unwrap_or_else(|| {
                self.lists.push(Vec::new());
                self.lists.len() as u32
            });
        }
        let list = &mut self.lists[shadow.crowd as usize - 1];
        let reader = (shadow.read, shadow.read_bytes, shadow.read_strong);
        if let Some(entry) = list.iter_mut().find(|(m, ..)| m.owner == shadow.read.owner) {
            *entry = reader;
        } else if list.len() < self.most {
            list.push(reader);
        }
    }

    /// Forgets the readers of a word.
    #[inline(always)]
    pub fn release(&mut self, shadow: &mut Shadow) {
        if shadow.crowd != 0 {
            self.lists[shadow.crowd as usize - 1].clear();
            self.free.push(shadow.crowd);
            shadow.crowd = 0;
        }
    }
}

/// Clocks of warps of other clusters whose writes this cluster may see.
pub type Acquired = HashMap<u32, Vec<u32>>;

/// The warp on whose behalf an access is made.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// Index of the cluster in the grid.
    pub cluster: u32,
    /// Warps of a cluster.
    pub warps: u32,
    /// Index of the warp in its cluster.
    pub warp: u32,
    pub clock: &'a [u32],
    pub acquired: &'a Acquired,
}

/// The race detector's view of a warp; pieces are taken apart so that memory can be borrowed too.
pub fn who<'a>(
    warp: &'a Warp,
    cluster: u32,
    acquired: &'a Acquired,
    launch: &Launch<'_>,
) -> Who<'a> {
    let warps = launch.warps_per_block as u32 * launch.cluster;
    Who { cluster, warps, warp: warp.index, clock: &warp.clock, acquired }
}

impl Who<'_> {
    #[inline(always)]
    pub fn mark(&self) -> Mark {
        let owner = self.cluster * self.warps + self.warp + 1;
        Mark { owner, clock: self.clock[self.warp as usize] }
    }

    /// True if the access that left the mark happened before what this warp does now.
    #[inline(always)]
    pub fn follows(&self, mark: Mark) -> bool {
        if mark.owner == 0 {
            return true;
        }
        let (cluster, warp) = ((mark.owner - 1) / self.warps, (mark.owner - 1) % self.warps);
        if cluster == self.cluster {
            return warp == self.warp || self.clock[warp as usize] >= mark.clock;
        }
        self.acquired.get(&cluster).is_some_and(|clock| clock[warp as usize] >= mark.clock)
    }

    /// "block-local warp 3" in messages.
    pub fn name(&self, mark: Mark) -> String {
        let (cluster, warp) = ((mark.owner - 1) / self.warps, (mark.owner - 1) % self.warps);
        if cluster == self.cluster {
            return format!("warp {warp}");
        }
        format!("warp {warp} of block or cluster {cluster}")
    }
}

/// The bytes `first..first + count` of a word as a mask.
#[inline(always)]
pub fn byte_mask(first: usize, count: usize) -> u8 {
    (((1u32 << count) - 1) << first) as u8
}

/// How an access takes part in races.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// Volatile, relaxed, acquire, release or atomic: never races with its own kind.
    StrongRead,
    StrongWrite,
}

/// What the check of one word found.
pub enum Conflict {
    /// With an access of another warp.
    Race(&'static str, Mark),
    /// With an access of another lane of the same warp, no warp barrier between.
    Lane(&'static str, u8),
}

/// The conflict of an access with an earlier one of the same bytes, unless the earlier one happened before it or
/// was the same lane's.
#[inline(always)]
fn conflict(
    what: &'static str,
    (earlier, earlier_lane): (Mark, u8),
    (who, mark): (&Who<'_>, Mark),
    (lane, lanes_matter): (u8, bool),
) -> Result<(), Conflict> {
    if earlier.owner != mark.owner {
        if !who.follows(earlier) {
            return Err(Conflict::Race(what, earlier));
        }
    } else if lanes_matter && earlier == mark && earlier_lane != lane && earlier_lane != 32 {
        return Err(Conflict::Lane(what, earlier_lane));
    }
    Ok(())
}

/// Leaves the mark of a read.
#[inline(always)]
fn mark_read(
    shadow: &mut Shadow,
    readers: &mut Readers,
    (mark, lane): (Mark, u8),
    bytes: u8,
    strong: bool,
) {
    if shadow.read == mark {
        shadow.read_bytes |= bytes;
        shadow.read_strong &= strong;
        if shadow.read_lane != lane {
            shadow.read_lane = 32;
        }
        return;
    }
    if shadow.read.owner != 0 && shadow.read.owner != mark.owner {
        readers.keep(shadow);
    }
    (shadow.read, shadow.read_bytes, shadow.read_lane) = (mark, bytes, lane);
    shadow.read_strong = strong;
}

/// Checks an access of `bytes` of a word against its shadow and leaves its own mark. `readers`
/// holds what does not fit the shadow; `lanes_matter` asks for warp barriers between lanes.
#[inline(always)]
pub fn access(
    shadow: &mut Shadow,
    readers: &mut Readers,
    (who, mark): (&Who<'_>, Mark),
    (lane, lanes_matter): (u8, bool),
    bytes: u8,
    access: Access,
) -> Result<(), Conflict> {
    let strong = matches!(access, Access::StrongRead | Access::StrongWrite);
    let reads = matches!(access, Access::Read | Access::StrongRead);
    if shadow.write_bytes & bytes != 0 && !(strong && shadow.strong) {
        let what = if reads { "reads what another wrote" } else { "overwrites what another wrote" };
        conflict(what, (shadow.write, shadow.write_lane), (who, mark), (lane, lanes_matter))?;
    }
    if reads {
        mark_read(shadow, readers, (mark, lane), bytes, strong);
        return Ok(());
    }
    let what = "overwrites what another reads";
    if shadow.read_bytes & bytes != 0 && !(strong && shadow.read_strong) {
        conflict(what, (shadow.read, shadow.read_lane), (who, mark), (lane, lanes_matter))?;
    }
    if shadow.crowd != 0 {
        let unordered =
            |(m, b, calm): &&Reader| b & bytes != 0 && !(strong && *calm) && !who.follows(*m);
        if let Some((reader, ..)) = readers.lists[shadow.crowd as usize - 1].iter().find(unordered)
        {
            return Err(Conflict::Race(what, *reader));
        }
        readers.release(shadow);
    }
    let same = shadow.write == mark;
    shadow.write_lane = if same && shadow.write_lane != lane { 32 } else { lane };
    shadow.write_bytes = if same { shadow.write_bytes | bytes } else { bytes };
    (shadow.write, shadow.strong) = (mark, access == Access::StrongWrite);
    (shadow.read, shadow.read_bytes) = (Mark::default(), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two warps of one cluster without any order between them access a word one after the other.
    fn unordered(first: Access, second: Access) -> bool {
        let (mut shadow, mut readers, acquired) =
            (Shadow::default(), Readers::new(4), Acquired::new());
        let clocks = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
        let mut step = |warp: usize, kind| {
            let clock = &clocks[warp];
            let who = Who { cluster: 0, warps: 3, warp: warp as u32, clock, acquired: &acquired };
            access(&mut shadow, &mut readers, (&who, who.mark()), (0, true), 15, kind).is_err()
        };
        // A third reader takes the place of the last one: the first is found in the list.
        let third = if first == Access::Read || first == Access::StrongRead {
            first
        } else {
            Access::StrongRead
        };
        step(0, first) | (first == third && step(2, third)) | step(1, second)
    }

    #[test]
    fn strong_accesses_race_with_plain_ones_only() {
        use Access::{Read, StrongRead, StrongWrite, Write};
        for (first, second, race) in [
            (Read, Read, false),
            (Read, Write, true),
            (Write, Read, true),
            (Write, Write, true),
            (StrongRead, StrongWrite, false),
            (StrongWrite, StrongRead, false),
            (StrongWrite, StrongWrite, false),
            (StrongRead, Write, true),
            (Read, StrongWrite, true),
            (StrongWrite, Read, true),
            (Write, StrongRead, true),
        ] {
            assert_eq!(unordered(first, second), race, "{first:?} then {second:?}");
        }
    }
}
