//! The phase `quantize`: 4-bit weights, frozen, with adapters. Its work is done between two steps.

use crate::train::config::readers::Reader;
use crate::train::phase::{Neighbors, Phase, PhaseSpec, refused};
use crate::train::run::memory_plan::Probe;
use crate::train::run::metrics::Metrics;
use crate::train::run::progress::line;
use crate::train::run::summary::Scored;
use crate::train::run::{Run, shown};
use crate::train::trainer::Trainer;
use gradus::dtype::Float;
use gradus::error::Result;

pub(crate) struct Quantize;

impl PhaseSpec for Quantize {
    const READERS: &'static [&'static [Reader]] = &[&[Reader::Quantize, Reader::FreshAdapter]];

    fn check(at: &Neighbors<'_>) -> Result<()> {
        let quantizes = at.plans.iter().filter(|plan| plan.kind == Phase::Quantize);
        match quantizes.count() {
            1 => Ok(()),
            n => refused(format!("`quantize` {n} times: weights are quantized once")),
        }
    }

    fn steps<T: Float>(_: &Trainer<T>) -> u64 {
        0
    }

    fn step<T: Float>(_: &mut Run<T>, _: u64) -> Result<Metrics> {
        Ok(Metrics::default())
    }

    fn finish<T: Float>(run: &mut Run<T>) -> Result<()> {
        if !run.figures.left {
            run.trainer.quantize()?;
            run.figures.left = true;
        }
        let accuracy = run.evaluate()?.accuracy;
        run.figures.quantized_accuracy = accuracy;
        run.figures.scored(Scored::Quantized, accuracy);
        let weights = run.trainer.model.weight_parts();
        line(&format!("quantize {weights}; held-out score {}", shown(accuracy)));
        Ok(())
    }

    fn probe<T: Float>(probe: &mut Probe<T>) -> Result<()> {
        probe.trainer.quantize()?;
        probe.count_state();
        Ok(())
    }
}
