//! `gradus bench`: time, traffic and distance from the floor of each op and of whole steps, on the
//! CPU and on CUDA.
//!
//! Bytes and flops are formulas of the extents, those of the kernels' head comments: the least an
//! op has to move and to compute. The floor is the longer of bytes / bandwidth and flops / peak.
//! Operands that fit a cache stay in it between calls, so small rows may be faster than a floor of
//! main memory.

mod case;
mod decoder;
mod floors;
mod products;
mod rl;
mod steps;
mod table;
mod timing;

use crate::device::{Device, GpuProbe, probe_gpu};
use crate::dtype::DType;
use crate::error::{Error, Result};

pub use case::{Case, Work};
pub use floors::{Floors, cpu_name};
pub use table::{HEAD, Row, Table};
pub use timing::Times;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only rows whose `op shape dtype` contains one of these texts, separated by `|`.
    pub ops: Option<String>,
    /// Time to spend on each row.
    pub seconds: f64,
}

/// Measures; `print` gets each line when it is known.
///
/// # Errors
/// `InvalidArgument` for a time that is not positive or texts that no row contains; whatever an
/// op or `print` returns.
pub fn bench(settings: &Settings, print: impl Fn(&str) -> Result<()>) -> Result<Table> {
    let seconds = settings.seconds;
    if !(seconds.is_finite() && seconds > 0.0) {
        return Err(Error::invalid("bench", "seconds", seconds, "a finite number > 0"));
    }
    let cases: Vec<Case> = cases().into_iter().filter(|c| chosen(c, &settings.ops)).collect();
    if cases.is_empty() {
        let got = settings.ops.clone().unwrap_or_default();
        return Err(Error::invalid("bench", "ops", got, "part of the name of an op"));
    }
    let mut table = Table::new(seconds);
    let floors = Floors::of_cpu(seconds);
    if cfg!(debug_assertions) {
        print("built for debugging: figures mean nothing, build with --release\n")?;
    }
    print(&format!("{}\n{HEAD}\n", floors.describe()))?;
    table.floors.push(floors);
    for case in cases.iter().filter(|case| case.dtype == DType::F32) {
        let times = timing::on_cpu(case, seconds)?;
        print(&table.push(Row::of("cpu", case, times)))?;
    }
    match cuda() {
        Ok(device) => on_cuda(&device, &cases, &mut table, &print)?,
        Err(reason) => {
            print(&format!("cuda left out: {reason}\n"))?;
            table.left_out = Some(reason);
        }
    }
    Ok(table)
}

fn on_cuda(
    device: &Device,
    cases: &[Case],
    table: &mut Table,
    print: &impl Fn(&str) -> Result<()>,
) -> Result<()> {
    let Device::Gpu(gpu) = device else { return Ok(()) };
    let floors = Floors::of_gpu(gpu.info());
    print(&format!("{}\n{HEAD}\n", floors.describe()))?;
    table.floors.push(floors);
    for case in cases {
        let times = timing::on_gpu(device, gpu, case, table.seconds)?;
        print(&table.push(Row::of("cuda", case, times)))?;
    }
    Ok(())
}

/// The first CUDA device, or why there is none.
fn cuda() -> std::result::Result<Device, String> {
    match probe_gpu() {
        missing @ GpuProbe::Missing(_) => Err(format!("driver {missing}")),
        GpuProbe::Library(_) => Device::cuda(0).map_err(|error| error.to_string()),
    }
}

/// All rows there can be: f32 for both devices, bf16 for CUDA. Builds with debug assertions, whose
/// figures mean nothing, leave bf16 out: its code for the CPU is much of the time of a build.
fn cases() -> Vec<Case> {
    let mut cases = products::cases();
    cases.extend(decoder::cases());
    cases.extend(rl::cases());
    cases.extend(steps::cases());
    cases
}

fn chosen(case: &Case, ops: &Option<String>) -> bool {
    let name = format!("{} {} {}", case.op, case.shape, case.dtype.name());
    ops.as_ref().is_none_or(|ops| ops.split('|').any(|part| name.contains(part.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row moves bytes and has a name of its own.
    #[test]
    fn rows_have_names_of_their_own_and_costs() {
        let mut names = std::collections::BTreeSet::new();
        for case in cases() {
            let name = format!("{} {} {}", case.op, case.shape, case.dtype.name());
            assert!(case.bytes > 0, "{name}");
            assert!(names.insert(name.clone()), "{name} twice");
        }
        assert!(names.len() > 30, "{}", names.len());
    }

    #[test]
    fn rows_are_chosen_by_text() {
        let case = &decoder::cases()[0];
        assert!(chosen(case, &None) && chosen(case, &Some(case.op.to_string())));
        assert!(chosen(case, &Some(format!("nothing | {}", case.dtype.name()))));
        assert!(!chosen(case, &Some("nothing".into())));
    }
}
