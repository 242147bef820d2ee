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
    /// More readers than `read` tells of.
    pub crowd: bool,
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

/// Checks an access of `bytes` of a word against its shadow and leaves its own mark. `readers`
/// holds what does not fit the shadow; `lanes_matter` asks for warp barriers between lanes.
#[inline(always)]
pub fn access(
    shadow: &mut Shadow,
    index: usize,
    readers: &mut HashMap<usize, Vec<(Mark, u8)>>,
    (who, mark): (&Who<'_>, Mark),
    (lane, lanes_matter): (u8, bool),
    bytes: u8,
    access: Access,
) -> Result<(), Conflict> {
    let strong = matches!(access, Access::StrongRead | Access::StrongWrite);
    let met = shadow.write_bytes & bytes != 0 && !(strong && shadow.strong);
    if met {
        let what = if matches!(access, Access::Read | Access::StrongRead) {
            "reads what another wrote"
        } else {
            "overwrites what another wrote"
        };
        if shadow.write.owner != mark.owner {
            if !who.follows(shadow.write) {
                return Err(Conflict::Race(what, shadow.write));
            }
        } else if lanes_matter
            && shadow.write == mark
            && shadow.write_lane != lane
            && shadow.write_lane != 32
        {
            return Err(Conflict::Lane(what, shadow.write_lane));
        }
    }
    if matches!(access, Access::Read | Access::StrongRead) {
        if shadow.read == mark {
            shadow.read_bytes |= bytes;
            if shadow.read_lane != lane {
                shadow.read_lane = 32;
            }
            return Ok(());
        }
        if shadow.read.owner != 0 && shadow.read.owner != mark.owner {
            crowd(shadow, index, readers);
        }
        (shadow.read, shadow.read_bytes, shadow.read_lane) = (mark, bytes, lane);
        return Ok(());
    }
    if shadow.read_bytes & bytes != 0 {
        if shadow.read.owner != mark.owner {
            if !who.follows(shadow.read) {
                return Err(Conflict::Race("overwrites what another reads", shadow.read));
            }
        } else if lanes_matter
            && shadow.read == mark
            && shadow.read_lane != lane
            && shadow.read_lane != 32
        {
            return Err(Conflict::Lane("overwrites what another reads", shadow.read_lane));
        }
    }
    if shadow.crowd {
        let crowd = readers.remove(&index).unwrap_or_default();
        if let Some((reader, _)) = crowd.iter().find(|(m, b)| b & bytes != 0 && !who.follows(*m)) {
            return Err(Conflict::Race("overwrites what another reads", *reader));
        }
        shadow.crowd = false;
    }
    let same = shadow.write == mark;
    shadow.write_lane = if same && shadow.write_lane != lane { 32 } else { lane };
    shadow.write_bytes = if same { shadow.write_bytes | bytes } else { bytes };
    (shadow.write, shadow.strong) = (mark, access == Access::StrongWrite);
    (shadow.read, shadow.read_bytes) = (Mark::default(), 0);
    Ok(())
}

/// Most readers remembered of one word.
const CROWD: usize = 64;

#[cold]
fn crowd(shadow: &mut Shadow, index: usize, readers: &mut HashMap<usize, Vec<(Mark, u8)>>) {
    shadow.crowd = true;
    let list = readers.entry(index).or_default();
    if let Some(entry) = list.iter_mut().find(|(m, _)| m.owner == shadow.read.owner) {
        *entry = (shadow.read, shadow.read_bytes);
    } else if list.len() < CROWD {
        list.push((shadow.read, shadow.read_bytes));
    }
}
