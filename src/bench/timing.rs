//! Medians and spreads of repeated calls.

use std::sync::Arc;
use std::time::Instant;

use crate::device::Gpu;
use crate::device::driver::Event;
use crate::{Device, Result};

use super::case::{Body, Case};

/// Fewest samples of a row, and most.
const SAMPLES: [usize; 2] = [3, 1000];
/// Seconds a sample lasts at least: calls shorter than that are timed several together.
const CPU_SAMPLE: f64 = 2e-5;
const GPU_SAMPLE: f64 = 2e-4;

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

    fn time(&self, device: &Device, body: &mut Body, calls: usize) -> Result<f64> {
        self.gpu.call(|d| d.record(self.start, self.gpu.stream()))?;
        (0..calls).try_for_each(|_| body(device))?;
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

/// Times between events of the stream: what the host needs to start the next call counts only
/// where it is longer than the kernel.
pub fn on_gpu(device: &Device, gpu: &Arc<Gpu>, case: &Case, seconds: f64) -> Result<Times> {
    let (mut body, clock) = ((case.make)(device)?, Clock::new(gpu)?);
    collect(seconds, GPU_SAMPLE, |calls| clock.time(device, &mut body, calls))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
