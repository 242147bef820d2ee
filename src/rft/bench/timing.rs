//! Medians and spreads of repeated calls.

use std::sync::Arc;
use std::time::Instant;

use gradus::device::Gpu;
use gradus::device::driver::Event;
use gradus::{Device, Error, Result};

use super::case::{Body, Case};

/// Fewest samples of a row, and most.
const SAMPLES: [usize; 2] = [3, 1000];
/// Seconds a sample lasts at least: calls shorter than that are timed several together.
/// On a GPU the first call of a sample waits some microseconds for its launch.
const CPU_SAMPLE: f64 = 2e-5;
const GPU_SAMPLE: f64 = 2e-3;
/// Bytes that other calls touch before a set of operands is used again: several times the L2 of
/// any GPU (50 MB on an H200).
const COLD: u64 = 256 << 20;
/// Most sets of operands. A case that needs more lives in the L2 of a real run too.
const MOST_SETS: u64 = 1024;

/// Milliseconds of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// One sample in ten is shorter.
    pub p10: f64,
    /// Half of the samples are.
    pub median: f64,
    /// Nine in ten are.
    pub p90: f64,
    /// How many there are.
    pub samples: usize,
}

impl Times {
    /// Of at least one sample.
    fn of(mut ms: Vec<f64>) -> Times {
        ms.sort_by(f64::total_cmp);
        let at = |share: f64| ms[((ms.len() - 1) as f64 * share).round() as usize];
        Times { p10: at(0.1), median: at(0.5), p90: at(0.9), samples: ms.len() }
    }
}

/// Samples of `sample(calls)`, which returns the milliseconds of that many calls, for `seconds`.
fn collect(
    seconds: f64,
    shortest: f64,
    mut sample: impl FnMut(usize) -> Result<f64>,
) -> Result<Times> {
    // The first call loads kernels and grows scratch memory; the second one counts.
    sample(1)?;
    let once = sample(1)? / 1e3;
    let calls = (shortest / once.max(1e-9)).ceil().clamp(1.0, 1e4) as usize;
    let (start, mut ms) = (Instant::now(), Vec::new());
    while ms.len() < SAMPLES[0]
        || (ms.len() < SAMPLES[1] && start.elapsed().as_secs_f64() < seconds)
    {
        ms.push(sample(calls)? / calls as f64);
    }
    Ok(Times::of(ms))
}

pub fn on_cpu(case: &Case, seconds: f64) -> Result<Times> {
    let mut body = (case.make)(&Device::Cpu)?;
    collect(seconds, CPU_SAMPLE, |calls| {
        let start = Instant::now();
        (0..calls).try_for_each(|_| body(&Device::Cpu))?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}

/// Sets of operands that a GPU takes turns with, 1 if they stay in its L2. A set has at least half
/// of the bytes that a call moves, as none is both read and written more than once.
pub fn sets(case: &Case) -> usize {
    let sets = 1 + COLD.div_ceil((case.bytes / 2).max(1));
    if case.turns && sets <= MOST_SETS { sets as usize } else { 1 }
}

/// Calls of the same case on one set of operands after the other.
struct Turns {
    bodies: Vec<Body>,
    next: usize,
}

impl Turns {
    fn new(device: &Device, case: &Case) -> Result<Turns> {
        let bodies = (0..sets(case)).map(|_| (case.make)(device)).collect::<Result<_>>()?;
        Ok(Turns { bodies, next: 0 })
    }

    /// On the sets that come next.
    fn calls(&mut self, device: &Device, count: usize) -> Result<()> {
        for _ in 0..count {
            self.bodies[self.next](device)?;
            self.next = (self.next + 1) % self.bodies.len();
        }
        Ok(())
    }

    /// On each set once.
    fn round(&mut self, device: &Device) -> Result<()> {
        self.calls(device, self.bodies.len())
    }
}

/// Two events of the driver.
struct Clock<'g> {
    gpu: &'g Gpu,
    start: Event,
    end: Event,
}

impl Clock<'_> {
    fn new(gpu: &Gpu) -> Result<Clock<'_>> {
        let start = gpu.call(|d| d.event())?;
        Ok(Clock { gpu, start, end: gpu.call(|d| d.event())? })
    }

    fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.gpu.call(|d| d.record(self.start, self.gpu.stream()))?;
        work()?;
        self.gpu.call(|d| d.record(self.end, self.gpu.stream()))?;
        self.gpu.call(|d| d.elapsed_ms(self.start, self.end)).map(f64::from)
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let _ = self.gpu.call(|d| d.destroy_event(self.start));
        let _ = self.gpu.call(|d| d.destroy_event(self.end));
    }
}

/// How a row was measured on a GPU.
#[derive(Clone, Debug)]
pub struct OnGpu {
    /// Sets of operands that were used in turn.
    pub sets: usize,
    /// The same calls replayed from a graph, without the host's part; or why there is none.
    pub graph: std::result::Result<Times, String>,
}

impl OnGpu {
    /// True if no call found its operands in the L2.
    pub fn cold(&self) -> bool {
        self.sets > 1
    }
}

/// Times between events of the stream: what the host needs to start the next call counts where it
/// is longer than the kernel. Then as long again for a graph of one call on each set.
pub fn on_gpu(
    device: &Device,
    gpu: &Arc<Gpu>,
    case: &Case,
    seconds: f64,
) -> Result<(Times, OnGpu)> {
    timed(device, gpu, case, [seconds, GPU_SAMPLE])
}

/// `[seconds of the row, seconds of a sample]`.
pub(super) fn timed(
    device: &Device,
    gpu: &Arc<Gpu>,
    case: &Case,
    [seconds, shortest]: [f64; 2],
) -> Result<(Times, OnGpu)> {
    let (mut turns, clock) = (Turns::new(device, case)?, Clock::new(gpu)?);
    let sets = turns.bodies.len();
    turns.round(device)?;
    let times = collect(seconds, shortest, |calls| clock.time(|| turns.calls(device, calls)))?;
    let graph = match gpu.capture(|| turns.round(device)) {
        Ok(graph) => {
            let sample = |launches: usize| {
                let ms = clock.time(|| (0..launches).try_for_each(|_| graph.launch()))?;
                Ok(ms / sets as f64)
            };
            Ok(collect(seconds, shortest / sets as f64, sample)?)
        }
        // Ops that return a number wait for it.
        Err(error @ (Error::Unsupported { .. } | Error::Driver { .. })) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok((times, OnGpu { sets, graph }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Mutex;

    use super::*;
    use crate::bench::case::Work;

    #[test]
    fn percentiles_are_samples() {
        let times = Times::of((0..=100).rev().map(f64::from).collect());
        assert_eq!(times, Times { p10: 10.0, median: 50.0, p90: 90.0, samples: 101 });
        assert_eq!(Times::of(vec![3.0]).p90, 3.0);
    }

    #[test]
    fn short_calls_are_timed_together() {
        let mut most = 0;
        let times = collect(1e-3, 1e-3, |calls| {
            most = most.max(calls);
            Ok(calls as f64 * 0.125)
        });
        assert_eq!((times.unwrap().median, most), (0.125, 8));
    }

    /// A case whose calls write down which set they used.
    fn noting(bytes: usize, notes: &Arc<Mutex<Vec<usize>>>) -> Case {
        let (notes, made) = (notes.clone(), Cell::new(0));
        Case::new::<f32>(["test", "note"], "1".into(), [bytes, 0], Work::F32, move |_| {
            let (notes, set) = (notes.clone(), made.replace(made.get() + 1));
            Ok(Box::new(move |_| {
                notes.lock().unwrap().push(set);
                Ok(())
            }))
        })
    }

    #[test]
    fn sets_of_operands_are_used_in_turn() {
        let notes = Arc::default();
        let case = noting(COLD as usize, &notes);
        let mut turns = Turns::new(&Device::Cpu, &case).unwrap();
        turns.calls(&Device::Cpu, 2).unwrap();
        turns.round(&Device::Cpu).unwrap();
        assert_eq!(*notes.lock().unwrap(), [0, 1, 2, 0, 1]);
    }

    /// The other sets are larger than any L2; tiny operands and whole steps have one set.
    #[test]
    fn other_sets_push_operands_out_of_the_l2() {
        let of = |bytes: usize| sets(&noting(bytes, &Arc::default()));
        for bytes in [1 << 20, 12_345_678, COLD as usize, 8 << 30] {
            assert!((of(bytes) as u64 - 1) * bytes as u64 / 2 >= COLD, "{bytes}");
        }
        assert_eq!((of(1000), of(8 << 30)), (1, 2));
        assert_eq!(sets(&noting(1 << 24, &Arc::default()).with_one_set()), 1);
    }

    /// On the emulated device, where every clock shows 0: sets in turn, and a graph of them.
    #[cfg(feature = "emu")]
    #[test]
    fn a_gpu_is_timed_in_turns_and_from_a_graph() {
        use crate::bench::case::wave;
        use gradus::device::{Buffer, EmuDriver};
        use gradus::ops::{Lerp, lerp};
        let gpu = Arc::new(Gpu::new(Arc::new(EmuDriver::new())).unwrap());
        let device = Device::Gpu(gpu.clone());
        let measure = |waits: bool| {
            let costs = [COLD as usize / 8, 0];
            let case =
                Case::new::<f32>(["test", "lerp"], "8".into(), costs, Work::F64, move |device| {
                    let (a, b) = (wave::<f32>(device, 8, 1)?, wave::<f32>(device, 8, 2)?);
                    let mut y = Buffer::<f32>::new(device, 8)?;
                    Ok(Box::new(move |device| {
                        if waits {
                            a.to_host()?;
                        }
                        let (a, b) = (a.view(&[8])?, b.view(&[8])?);
                        lerp(device, Lerp { a, b, weight: 0.5, y: y.view_mut(&[8])? })
                    }))
                });
            timed(&device, &gpu, &case, [1e-3, 0.0]).unwrap()
        };
        let (times, how) = measure(false);
        assert_eq!((times.median, how.sets, how.cold()), (0.0, 17, true));
        assert!(how.graph.is_ok(), "{how:?}");
        let (_, how) = measure(true);
        assert!(how.graph.is_err(), "a call that waits cannot be captured: {how:?}");
    }
}
