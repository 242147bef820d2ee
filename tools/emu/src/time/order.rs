//! The order in which the assembler issues the instructions between two branches: what the longest
//! way to the end hangs on comes first, so that loads go ahead of the arithmetic that needs none.

use std::collections::{BinaryHeap, HashMap};

use super::cost::{Port, Unit};
use super::tape::Event;
use super::timeline::Timeline;

/// What a load from global memory counts in the choice: more than any arithmetic beside it.
const LOAD: u32 = 400;
/// A load from shared memory.
const SHARED: u32 = 26;
/// Special functions and conversions, and all other arithmetic.
const SPECIAL: u32 = 18;
const ARITHMETIC: u32 = 5;

/// Reorders the events of a warp, straight stretch by straight stretch.
pub(crate) fn reorder(events: &[Event], timeline: &Timeline) -> Vec<Event> {
    let mut out = Vec::with_capacity(events.len());
    let mut known: HashMap<Vec<u32>, Vec<u32>> = HashMap::new();
    let (mut start, mut stretch) = (0, Vec::new());
    while start < events.len() {
        let mut end = start + 1;
        while end < events.len() && follows(timeline, events[end - 1].pc, events[end].pc) {
            end += 1;
        }
        stretch.clear();
        stretch.extend(events[start..end].iter().map(|event| event.pc));
        if !known.contains_key(&stretch) {
            known.insert(stretch.clone(), schedule(timeline, &stretch));
        }
        out.extend(known[&stretch].iter().map(|&i| events[start + i as usize]));
        start = end;
    }
    out
}

/// Whether the assembler sees two instructions in one stretch: the next one, or where a branch goes that is
/// none in machine code.
fn follows(timeline: &Timeline, pc: u32, next: u32) -> bool {
    let skips = timeline.skips_to(pc as usize);
    !timeline.steps[pc as usize].fixed()
        && (next == pc + 1 || skips.is_some_and(|target| target == next as usize))
}

/// Instructions that have to come before each of a stretch.
fn predecessors(timeline: &Timeline, stretch: &[u32]) -> Vec<Vec<u32>> {
    let mut before = vec![Vec::new(); stretch.len()];
    let mut written: HashMap<u32, u32> = HashMap::new();
    let mut read: HashMap<u32, Vec<u32>> = HashMap::new();
    // The last store, and what has touched memory since.
    let (mut store, mut touched): ([Option<u32>; 2], [Vec<u32>; 2]) = ([None; 2], [vec![], vec![]]);
    // The last condition of what follows, and where that ends.
    let mut condition = (0, 0);
    for (i, &pc) in stretch.iter().enumerate() {
        let (pc, at) = (pc as usize, i as u32);
        let step = &timeline.steps[pc];
        let edges = &mut before[i];
        if pc < condition.1 {
            edges.push(condition.0);
        }
        if let Some(target) = timeline.skips_to(pc) {
            condition = (at, target);
        }
        for r in timeline.reads(pc) {
            edges.extend(written.get(r));
            read.entry(*r).or_default().push(at);
        }
        for r in timeline.writes(pc) {
            edges.extend(written.insert(*r, at));
            edges.extend(read.remove(r).unwrap_or_default().iter().filter(|&&e| e != at));
        }
        let space = match step.kind.port {
            Port::None | Port::Constant => None,
            Port::Shared => Some(1),
            Port::Load | Port::Store | Port::Atomic | Port::Copy | Port::Bulk => Some(0),
        };
        let Some(space) = space else { continue };
        edges.extend(store[space]);
        let writes = step.stores() || (space == 1 && timeline.writes(pc).is_empty());
        if writes {
            edges.append(&mut touched[space]);
            store[space] = Some(at);
        } else {
            touched[space].push(at);
        }
    }
    before
}

/// The order of a stretch: places in it.
fn schedule(timeline: &Timeline, stretch: &[u32]) -> Vec<u32> {
    let (before, count) = (predecessors(timeline, stretch), stretch.len());
    let step = |i: usize| &timeline.steps[stretch[i] as usize];
    let mut after = vec![Vec::new(); count];
    let mut waits = vec![0u32; count];
    for (i, edges) in before.iter().enumerate() {
        for &edge in edges {
            after[edge as usize].push(i as u32);
            waits[i] += 1;
        }
    }
    let mut height = vec![0u32; count];
    for i in (0..count).rev() {
        let own = match step(i).kind.port {
            Port::Load | Port::Atomic => LOAD,
            Port::Shared => SHARED,
            Port::None | Port::Constant | Port::Store | Port::Copy | Port::Bulk => {
                if step(i).kind.unit == Unit::Special { SPECIAL } else { ARITHMETIC }
            }
        };
        let rest = after[i].iter().map(|&j| height[j as usize]).max().unwrap_or(0);
        height[i] = rest + own;
    }
    // A branch, or whatever else cannot be moved, stays where it is: at the end.
    let last = step(count - 1).fixed().then_some(count - 1);
    let mut open: BinaryHeap<(u32, std::cmp::Reverse<u32>)> = BinaryHeap::new();
    let ready = |i: usize| (height[i], std::cmp::Reverse(i as u32));
    open.extend((0..count).filter(|&i| waits[i] == 0 && Some(i) != last).map(ready));
    let mut order = Vec::with_capacity(count);
    while let Some((_, std::cmp::Reverse(i))) = open.pop() {
        order.push(i);
        for &j in &after[i as usize] {
            waits[j as usize] -= 1;
            if waits[j as usize] == 0 && Some(j as usize) != last {
                open.push(ready(j as usize));
            }
        }
    }
    order.extend(last.map(|i| i as u32));
    order
}
