//! Predicted times of rows: the op runs on the emulator, which records a few blocks of each launch, and
//! the records are timed on a model of a GPU.
//!
//! How far predictions are from measurements is in `benches/results/predicted.json`.

mod least;
pub mod step;

use std::collections::BTreeMap;
use std::sync::Arc;

use gradus::device::timing::{Estimate, rates::Gpu as Model};
use gradus::device::{EmuDriver, Gpu, RecordingDriver, TimedLaunch, TimedLaunches};
use gradus::{Device, Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::case::Case;
use super::floors::Floors;
use super::timing;

/// Column names of [`Prediction::line`].
pub const HEAD: &str = "  op              shape                           dtype   us graph    us call  % of floor  \
                        bytes/least  launches  longest\n";

/// Clusters of a launch that run.
const SAMPLES: u64 = 3;

/// The launches of an op, and how often its call waits for the device.
#[derive(Debug)]
pub struct Recorded {
    /// In order.
    pub launches: Vec<TimedLaunch>,
    /// Waits of the host.
    pub waits: usize,
    /// Operands are in memory and not in the L2.
    pub cold: bool,
}

/// A predicted time, and what it is made of.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Microseconds of a call, one after the other in a graph.
    pub us: f64,
    /// Microseconds of a call from the host.
    pub call_us: f64,
    /// Bytes between memory and the L2, of all launches.
    pub memory_bytes: f64,
    /// The longest launch: kernel, microseconds, what was busy most, its share of the time.
    pub longest: (String, f64, &'static str, f64),
    /// Launches of a call.
    pub launches: usize,
}

/// What launches cost, together.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// Microseconds, with what lies between a launch and the one before.
    pub us: f64,
    /// How many there are.
    pub launches: f64,
    /// Bytes between memory and the L2.
    pub memory_bytes: f64,
    /// Bytes between the L2 and the multiprocessors.
    pub l2_bytes: f64,
    /// What was busy most, in the longest launch, and its share of the time: low where latency binds.
    pub busiest: (&'static str, f64),
}

impl Default for Spent {
    fn default() -> Spent {
        Spent {
            us: 0.0,
            launches: 0.0,
            memory_bytes: 0.0,
            l2_bytes: 0.0,
            busiest: ("nothing", 0.0),
        }
    }
}

impl Spent {
    /// Adds what others cost. What was busy is that of the one that takes longer.
    pub fn add(&mut self, other: &Spent) {
        if other.us > self.us {
            self.busiest = other.busiest;
        }
        self.us += other.us;
        self.launches += other.launches;
        self.memory_bytes += other.memory_bytes;
        self.l2_bytes += other.l2_bytes;
    }

    /// With `more` times what `both` cost beyond this.
    pub fn with_further(&self, both: &Spent, more: f64) -> Spent {
        let further = |mine: f64, both: f64| mine + more * (both - mine);
        Spent {
            us: further(self.us, both.us),
            launches: further(self.launches, both.launches),
            memory_bytes: further(self.memory_bytes, both.memory_bytes),
            l2_bytes: further(self.l2_bytes, both.l2_bytes),
            busiest: both.busiest,
        }
    }
}

/// An emulated device that records, behind a driver that counts waits.
pub struct Recorder {
    emulator: Arc<EmuDriver>,
    calls: Arc<RecordingDriver>,
    device: Device,
}

impl Recorder {
    /// A device of its own, with the kernels for sm_90a.
    ///
    /// # Errors
    /// Whatever keeps a device from starting.
    pub fn new() -> Result<Recorder> {
        let emulator = Arc::new(EmuDriver::new().with_records(SAMPLES));
        let calls = Arc::new(RecordingDriver::new(emulator.clone()));
        let device = Device::Gpu(Arc::new(Gpu::new(calls.clone())?));
        Ok(Recorder { emulator, calls, device })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Which launches are recorded from here on; the others do nothing.
    pub fn record_only(&self, launches: TimedLaunches) {
        self.emulator.record_only(launches);
    }

    /// What a call does that has run before.
    ///
    /// # Errors
    /// Those of the call.
    pub fn record(&self, cold: bool, call: impl FnOnce(&Device) -> Result<()>) -> Result<Recorded> {
        self.emulator.take_records();
        self.calls.take();
        call(&self.device)?;
        let waits = self.calls.take().iter().filter(|call| call.is_wait()).count();
        Ok(Recorded { launches: self.emulator.take_records(), waits, cold })
    }

    /// A row's op, on operands that no L2 holds unless the row's fit one.
    ///
    /// # Errors
    /// Those of the op.
    pub fn case(&self, case: &Case) -> Result<Recorded> {
        let mut body = (case.make)(&self.device)?;
        body(&self.device)?;
        self.record(timing::sets(case) > 1, &mut body)
    }
}

impl Recorded {
    /// Instructions that were recorded.
    pub fn events(&self) -> u64 {
        self.launches.iter().map(|launch| launch.record.events()).sum()
    }

    /// What each kernel costs, with what lies between a launch and the one before.
    ///
    /// # Errors
    /// `Unsupported` for a record that cannot be replayed.
    pub fn by_kernel(&self, model: &Model) -> Result<BTreeMap<String, Spent>> {
        let estimate = |launch: &TimedLaunch| launch.estimate(model, self.cold);
        let all: std::result::Result<Vec<Estimate>, String> =
            self.launches.par_iter().map(estimate).collect();
        let mut kernels: BTreeMap<String, Spent> = BTreeMap::new();
        for (launch, estimate) in self.launches.iter().zip(all.map_err(unsupported)?) {
            let spent = Spent {
                us: in_graph(&estimate, model),
                launches: 1.0,
                memory_bytes: estimate.memory_bytes,
                l2_bytes: estimate.l2_bytes,
                busiest: estimate.binds,
            };
            kernels.entry(launch.kernel.clone()).or_default().add(&spent);
        }
        Ok(kernels)
    }

    /// The time on a GPU.
    ///
    /// # Errors
    /// `Unsupported` for a record that cannot be replayed.
    pub fn predict(&self, model: &Model) -> Result<Prediction> {
        let mut out = Prediction {
            us: 0.0,
            call_us: 0.0,
            memory_bytes: 0.0,
            longest: (String::new(), 0.0, "nothing", 0.0),
            launches: self.launches.len(),
        };
        for launch in &self.launches {
            let estimate = launch.estimate(model, self.cold).map_err(unsupported)?;
            out.add(&launch.kernel, &estimate, model);
        }
        out.call_us += 1e6 * self.waits as f64 * model.wait;
        Ok(out)
    }
}

fn unsupported(reason: String) -> Error {
    Error::Unsupported { op: "bench", reason }
}

/// Microseconds of a launch in a graph. What does not depend on the launch before overlaps it.
fn in_graph(estimate: &Estimate, model: &Model) -> f64 {
    1e6 * (estimate.seconds + (model.launch - estimate.early).max(0.0))
}

impl Prediction {
    /// The row as JSON.
    pub fn json(&self, case: &Case, gpu: &str) -> Value {
        let (kernel, us, binds, share) = &self.longest;
        json!({
            "gpu": gpu, "row": case.name(), "us": self.us, "call_us": self.call_us,
            "launches": self.launches, "memory_bytes": self.memory_bytes, "bytes": case.bytes,
            "longest": { "kernel": kernel, "us": us, "busiest": binds, "share": share },
        })
    }

    /// A line of the table.
    pub fn line(&self, case: &Case, floors: &Floors) -> String {
        let floor = floors.floor(case.bytes, case.flops, case.work);
        let floor =
            floor.map_or("-".into(), |(ms, bound)| format!("{:.0} % {bound}", 1e5 * ms / self.us));
        let (kernel, us, binds, share) = &self.longest;
        format!(
            "  {:<15} {:<31} {:<5} {:>10.1} {:>10.1} {:>11} {:>12.2} {:>9}  {kernel} {us:.1} us, {binds} {:.0} %\n",
            case.op,
            case.shape,
            case.dtype.name(),
            self.us,
            self.call_us,
            floor,
            self.memory_bytes / case.bytes as f64,
            self.launches,
            100.0 * share,
        )
    }

    fn add(&mut self, kernel: &str, estimate: &Estimate, model: &Model) {
        let us = 1e6 * estimate.seconds;
        self.us += in_graph(estimate, model);
        self.call_us += us + 1e6 * model.call;
        self.memory_bytes += estimate.memory_bytes;
        if us > self.longest.1 {
            self.longest = (kernel.to_string(), us, estimate.binds.0, estimate.binds.1);
        }
    }
}

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod measured;

/// The default rows in bf16, which [`cases`](super::cases) leaves out of builds with debug assertions.
#[cfg(test)]
fn halves() -> Vec<Case> {
    use super::{decoder, products, quantize, vocabulary};
    use gradus::bf16;
    let families = [
        vocabulary::of::<bf16>(),
        products::of::<bf16>(),
        quantize::of::<bf16>(),
        decoder::of::<bf16>(),
    ];
    families.into_iter().flatten().collect()
}
