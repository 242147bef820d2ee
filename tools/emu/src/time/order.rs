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
    let mut known: HashMap<(u32, usize), Vec<u32>> = HashMap::new();
    let mut start = 0;
    while start < events.len() {
        let mut end = start + 1;
        while end < events.len()
            && events[end].pc == events[end - 1].pc + 1
            && !timeline.steps[events[end - 1].pc as usize].fixed()
        {
            end += 1;
        }
        let first = events[start].pc;
        let order = known
            .entry((first, end - start))
            .or_insert_with(|| schedule(timeline, first as usize, end - start));
        out.extend(order.iter().map(|&i| events[start + i as usize]));
        start = end;
    }
    out
}

/// Instructions that have to come before each of `count` from `first` on.
fn predecessors(timeline: &Timeline, first: usize, count: usize) -> Vec<Vec<u32>> {
    let mut before = vec![Vec::new(); count];
    let mut written: HashMap<u32, u32> = HashMap::new();
    let mut read: HashMap<u32, Vec<u32>> = HashMap::new();
    // The last store, and what has touched memory since.
    let (mut store, mut touched): ([Option<u32>; 2], [Vec<u32>; 2]) = ([None; 2], [vec![], vec![]]);
    for i in 0..count {
        let (pc, at) = (first + i, i as u32);
        let step = &timeline.steps[pc];
        let edges = &mut before[i];
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

/// The order of `count` instructions from `first` on.
fn schedule(timeline: &Timeline, first: usize, count: usize) -> Vec<u32> {
    let before = predecessors(timeline, first, count);
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
        let step = &timeline.steps[first + i];
        let own = match step.kind.port {
            Port::Load | Port::Atomic => LOAD,
            Port::Shared => SHARED,
            Port::None | Port::Constant | Port::Store | Port::Copy | Port::Bulk => {
                if step.kind.unit == Unit::Special { SPECIAL } else { ARITHMETIC }
            }
        };
        let rest = after[i].iter().map(|&j| height[j as usize]).max().unwrap_or(0);
        height[i] = rest + own;
    }
    // A branch, or whatever else cannot be moved, stays where it is: at the end.
    let last = timeline.steps[first + count - 1].fixed().then_some(count - 1);
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
