//! Launches that are recorded for a prediction of their time.

use gradus_emu::Counters;
use gradus_emu::time::{Estimate, Record, Timing, rates::Gpu};

use super::{EmuDriver, error};
use crate::device::driver::{DriverError, DriverResult};

/// Launches that a device which records them writes down. The others do nothing at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimedLaunches {
    /// None: what only has to be there before the launches of interest.
    Nothing,
    /// Those of graphs.
    OfGraphs,
    /// Every one.
    #[default]
    All,
}

/// Registers of every shipped kernel, as ptxas reports them.
const MANIFEST: &str = include_str!("../../../kernels/generated/manifest.json");

/// Bytes of an upload or a fill from which on a device that records does without its values.
pub(super) const VALUES: usize = 256 << 20;

/// A launch of which a few clusters ran.
#[derive(Debug)]
pub struct TimedLaunch {
    /// The kernel's name.
    pub kernel: String,
    /// Counts of the clusters that ran.
    pub counters: Counters,
    /// What they did.
    pub record: Record,
    /// Registers of a thread.
    pub registers: u32,
}

impl TimedLaunch {
    /// Its predicted time. With `cold` operands are in memory, unless an earlier launch of the same op
    /// touched them; without, they are in the L2 if they fit.
    ///
    /// # Errors
    /// A record that cannot be replayed.
    pub fn estimate(&self, gpu: &Gpu, cold: bool) -> Result<Estimate, String> {
        let timing = Timing { gpu, registers: self.registers, cold };
        self.record.estimate(&timing).map_err(|error| format!("{}: {error}", self.kernel))
    }

    /// Bytes between memory and the L2 of an [`estimate`](TimedLaunch::estimate), at a fraction of its cost.
    pub fn memory_bytes(&self, gpu: &Gpu, cold: bool) -> f64 {
        self.record.memory_bytes(&Timing { gpu, registers: self.registers, cold })
    }
}

/// Registers of a kernel of the PTX `file`, which is `<op>.<set>`.
pub(super) fn registers(file: &str, kernel: &str) -> DriverResult<u32> {
    let unknown = || {
        let text =
            format!("registers of {kernel} of {file} are not in the manifest of the kernels");
        error("cuLaunchKernel", DriverError::NOT_FOUND, text)
    };
    let (_, entry) = MANIFEST.split_once(&format!("generated/{file}.ptx\"")).ok_or_else(unknown)?;
    let entry = entry.split("\"generated/").next().unwrap_or("");
    let (_, row) = entry.split_once(&format!("\"name\": \"{kernel}\"")).ok_or_else(unknown)?;
    let (_, number) = row.split_once("\"registers\": ").ok_or_else(unknown)?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| unknown())
}

impl EmuDriver {
    /// Records launches instead of running them: of each `samples` of its clusters, evenly spread, or
    /// all if it has no more. Memory counts as written and holds no results, so that only time can be
    /// learned from what follows. Of launches with long clusters one runs.
    pub fn with_records(self, samples: u64) -> EmuDriver {
        let mut state = self.lock();
        state.samples = Some(samples);
        state.machine.presume_written();
        drop(state);
        self
    }

    /// Which launches are recorded from here on, on a device [with records](EmuDriver::with_records).
    pub fn record_only(&self, launches: TimedLaunches) {
        self.lock().wanted = launches;
    }

    /// Every recorded launch since the last call. What comes next is another op, whose operands are
    /// not in the L2.
    pub fn take_records(&self) -> Vec<TimedLaunch> {
        let mut state = self.lock();
        state.machine.cool();
        std::mem::take(&mut state.timed)
    }
}

#[cfg(test)]
mod tests {
    use super::registers;

    #[test]
    fn registers_are_those_of_the_manifest() {
        assert!(registers("nf4_matmul.sm90a", "nf4_matmul_few8_bf16").unwrap() > 60);
        assert_ne!(
            registers("adamw.sm80", "adamw_check").unwrap(),
            registers("adamw.sm90a", "adamw_check").unwrap()
        );
        assert!(registers("adamw.sm90a", "lerp_f32").is_err());
    }
}
