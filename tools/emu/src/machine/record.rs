//! What a launch that is timed writes down.

use super::Flow;
use super::fault::Step;
use super::grid::{Grid, Random, Running};
use crate::time::tape::{Fact, Meeting, Note};

/// Counts before an instruction: sectors asked for, passes over shared memory, multiply-adds.
pub(super) type Tally = [u64; 3];

/// Clusters of a launch that stand for all, evenly spread, the one in the middle first.
pub(super) fn sampled(clusters: u64, samples: u64) -> Vec<u64> {
    let mut order: Vec<u64> = if clusters <= samples {
        (0..clusters).collect()
    } else {
        (0..samples).map(|i| (2 * i + 1) * clusters / (2 * samples)).collect()
    };
    let middle = order.len() / 2;
    order.swap(0, middle);
    order
}

impl Grid<'_> {
    /// Runs clusters one after another. If the first that is recorded is long, it stands for all.
    pub(super) fn clusters(&mut self, order: &[u64], random: &mut Random) -> Step<()> {
        for &index in order {
            self.cluster(index, random)?;
            if self.recording.as_ref().is_some_and(|recording| recording.is_long()) {
                break;
            }
        }
        if let Some(recording) = &mut self.recording {
            recording.exchange(0, order.len() / 2);
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn tally(&self) -> Tally {
        if self.recording.is_none() {
            return [0; 3];
        }
        let c = &self.counters;
        [c.global_load_sectors + c.global_store_sectors, c.shared_wavefronts, c.mma_macs]
    }

    /// Writes down an instruction that a warp has executed.
    #[inline(always)]
    pub(super) fn record(
        &mut self,
        running: &mut Running,
        (warp, pc): (usize, usize),
        flow: Flow,
        before: Tally,
    ) {
        if self.recording.is_some() {
            self.write_down(running, (warp, pc), flow, before);
        }
    }

    fn write_down(
        &mut self,
        running: &mut Running,
        (warp, pc): (usize, usize),
        flow: Flow,
        before: Tally,
    ) {
        let notes = std::mem::take(&mut running.cluster.notes);
        let now = self.tally();
        let [asked, passes, macs] = std::array::from_fn(|i| now[i] - before[i]);
        let mut fact = match &mut self.memory.traffic {
            Some(traffic) => traffic.take(asked),
            None => Fact::default(),
        };
        // Whoever polls, or stands where others have yet to come, is here again.
        if matches!(flow, Flow::Yield | Flow::Converge(_)) {
            if let (Flow::Yield, Some(recording)) = (flow, &mut self.recording) {
                recording.poll(warp, pc);
            }
            return;
        }
        (fact.passes, fact.macs) = (passes as u16, macs as u32);
        fact.notes = notes;
        if let Some(recording) = &mut self.recording {
            recording.event(warp, pc, fact);
        }
    }

    /// Notes an arrival at a barrier of a block: the last event of the warp.
    pub(super) fn note_barrier(
        &mut self,
        running: &Running,
        warp: usize,
        slot: usize,
        waits: bool,
    ) {
        let Some(recording) = &mut self.recording else { return };
        let (meeting, phase) = (Meeting::Block(slot as u32), running.phases[slot]);
        recording.tell(warp, Note::Arrives(meeting, phase));
        if waits {
            recording.tell(warp, Note::Waits(meeting, phase));
        }
    }

    /// Notes an arrival at the barrier of the cluster, or a wait for the phase that the warp arrived at.
    pub(super) fn note_cluster(
        &mut self,
        running: &Running,
        warp: usize,
        [arrives, waits]: [bool; 2],
    ) {
        let Some(recording) = &mut self.recording else { return };
        let phase = running.warps[warp].cluster_phase as u32;
        if arrives {
            recording.tell(warp, Note::Arrives(Meeting::Cluster, phase));
        }
        if waits {
            let awaited = if arrives { phase } else { phase.saturating_sub(1) };
            recording.tell(warp, Note::Waits(Meeting::Cluster, awaited));
        }
    }
}
