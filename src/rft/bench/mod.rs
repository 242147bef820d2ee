//! `gradus bench`: time, traffic and distance from the floor of each op and of whole steps, on the
//! CPU and on CUDA.
//!
//! Bytes and flops are formulas of the extents, those of the kernels' head comments: the least an
//! op has to move and to compute. The floor is the longer of bytes / bandwidth and flops / peak.
//! On the CPU operands that fit a cache stay in it between calls, so small rows may be faster than
//! a floor of main memory. On a GPU a row takes turns with enough sets of operands that no L2 keeps
//! one until it is used again, and says so; calls are timed in batches, from the host and once
//! more from a graph.

mod case;
mod decoder;
mod floors;
mod optim;
mod peers;
mod policy;
#[cfg(feature = "emu")]
pub mod predict;
mod products;
mod quantize;
mod steps;
mod table;
mod timing;
mod vocabulary;

use gradus::device::{Device, GpuProbe, probe_gpu};
use gradus::dtype::DType;
use gradus::error::{Error, Result};

pub use case::{Case, Work};
pub use floors::{Floors, cpu_name};
pub use table::{HEAD, Row, Table};
pub use timing::{OnGpu, Times};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only rows whose `op shape dtype` contains one of these texts, separated by `|`, or is the
    /// text after a `=`.
    pub ops: Option<String>,
    /// Which rows there are.
    pub shapes: Shapes,
    /// Only this device, which has to be there; otherwise the CPU and CUDA if it is there.
    pub device: Option<Only>,
    /// Time to spend on each row.
    pub seconds: f64,
    /// Whose times are predicted.
    pub gpu: Predicted,
}

/// Rows to choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub enum Shapes {
    /// Every op, as in a decoder of 1.5 billion parameters.
    #[default]
    Default,
    /// What other libraries have as well, small.
    Peers,
    /// What the CPU is compared on with other libraries, in f32 and bf16.
    Cpu,
    /// The same as in models of 8 to 70 billion parameters: bf16, on CUDA only.
    Large,
    /// Whole steps of a model of 7 billion parameters, predicted: with `--device emu` only.
    Model,
}

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum Only {
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
    /// No device: predicted times of an H200 or an H100, in builds with the feature `emu`.
    Emu,
}

/// A GPU whose times can be predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
pub enum Predicted {
    /// H200 SXM.
    #[default]
    H200,
    /// H100 SXM.
    H100,
}

/// Names of the rows that [`bench()`] would measure on a machine with CUDA.
///
/// # Errors
/// `InvalidArgument` for texts that no row contains.
pub fn names(settings: &Settings) -> Result<Vec<String>> {
    Ok(chosen_cases(settings)?.iter().map(Case::name).collect())
}

fn chosen_cases(settings: &Settings) -> Result<Vec<Case>> {
    let fits = |case: &Case| {
        chosen(case, &settings.ops)
            && (settings.device != Some(Only::Cpu) || on_cpu_too(case, settings))
    };
    let cases: Vec<Case> = cases(settings.shapes).into_iter().filter(fits).collect();
    if cases.is_empty() {
        let got = settings.ops.clone().unwrap_or_default();
        return Err(Error::invalid("bench", "ops", got, "part of the name of a row (see --list)"));
    }
    Ok(cases)
}

/// The default rows that the CPU is measured on: what `cargo bench` gives to criterion.
pub fn cpu_cases() -> Vec<Case> {
    cases(Shapes::Default).into_iter().filter(|case| case.dtype == DType::F32).collect()
}

fn on_cpu_too(case: &Case, settings: &Settings) -> bool {
    match settings.shapes {
        Shapes::Cpu => true,
        Shapes::Large | Shapes::Model => false,
        Shapes::Default | Shapes::Peers => case.dtype == DType::F32,
    }
}

/// Measures; `print` gets each line when it is known.
///
/// # Errors
/// `InvalidArgument` for a time that is not positive or texts that no row contains; `NoDriver` if
/// CUDA alone is asked for and not there; whatever an op or `print` returns. A row that CUDA has no
/// memory for is left out and listed.
pub fn bench(settings: &Settings, print: impl Fn(&str) -> Result<()>) -> Result<Table> {
    let seconds = settings.seconds;
    if !(seconds.is_finite() && seconds > 0.0) {
        return Err(Error::invalid("bench", "seconds", seconds, "a finite number > 0"));
    }
    if settings.device == Some(Only::Emu) {
        return predicted(settings, print);
    }
    if settings.shapes == Shapes::Model {
        let expected = "`--device emu`: steps are predicted, not measured";
        return Err(Error::invalid("bench", "shapes", "model", expected));
    }
    let cases = chosen_cases(settings)?;
    let mut table = Table::new(seconds);
    if cfg!(debug_assertions) {
        print("built for debugging: figures mean nothing, build with --release\n")?;
    }
    if settings.device != Some(Only::Cuda) {
        let cases: Vec<&Case> = cases.iter().filter(|case| on_cpu_too(case, settings)).collect();
        if !cases.is_empty() {
            on_cpu(&cases, &mut table, &print)?;
        }
    }
    if settings.device == Some(Only::Cpu) {
        return Ok(table);
    }
    match cuda() {
        Ok(device) => on_cuda(&device, &cases, &mut table, &print)?,
        Err(reason) if settings.device.is_some() => return Err(Error::NoDriver { reason }),
        Err(reason) => {
            print(&format!("cuda left out: {reason}\n"))?;
            table.left_out = Some(reason);
        }
    }
    Ok(table)
}

/// Predicted rows, or steps.
#[cfg(feature = "emu")]
fn predicted(settings: &Settings, print: impl Fn(&str) -> Result<()>) -> Result<Table> {
    use gradus::device::timing::rates::{H100, H200};
    let gpu = match settings.gpu {
        Predicted::H200 => H200,
        Predicted::H100 => H100,
    };
    let mut table = Table::new(settings.seconds);
    print(&format!("predicted for an {}, not measured\n", gpu.name))?;
    if settings.shapes == Shapes::Model {
        let step = predict::step::StepShape::reference().predict(&gpu)?;
        print(&step.to_string())?;
        table.predicted.push(step.json());
        return Ok(table);
    }
    let floors = Floors::nominal(gpu.name);
    print(predict::HEAD)?;
    for case in chosen_cases(settings)? {
        let predicted = predict::Recorder::new()?.case(&case)?.predict(&gpu)?;
        print(&predicted.line(&case, &floors))?;
        table.predicted.push(predicted.json(&case, gpu.name));
    }
    Ok(table)
}

#[cfg(not(feature = "emu"))]
fn predicted(_: &Settings, _: impl Fn(&str) -> Result<()>) -> Result<Table> {
    let expected = "`cpu` or `cuda`: predictions need a build with the feature `emu`";
    Err(Error::invalid("bench", "device", "emu", expected))
}

fn on_cpu(cases: &[&Case], table: &mut Table, print: &impl Fn(&str) -> Result<()>) -> Result<()> {
    let floors = Floors::of_cpu(table.seconds);
    print(&format!("{}\n{HEAD}\n", floors.describe()))?;
    table.floors.push(floors);
    for case in cases {
        let times = timing::on_cpu(case, table.seconds)?;
        print(&table.push(Row::of("cpu", case, times, None)))?;
    }
    Ok(())
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
        match timing::on_gpu(device, gpu, case, table.seconds) {
            Ok((times, how)) => print(&table.push(Row::of("cuda", case, times, Some(how))))?,
            Err(error @ Error::OutOfMemory { .. }) => {
                print(&format!("  {} left out: {error}\n", case.name()))?;
                table.rows_left_out.push((case.name(), error.to_string()));
            }
            Err(error) => return Err(error),
        }
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

/// All rows there can be: f32 for both devices, bf16 for CUDA (for the CPU in `Shapes::Cpu` alone). Builds with debug assertions, whose
/// figures mean nothing, leave bf16 out: its code for the CPU is much of the time of a build.
fn cases(shapes: Shapes) -> Vec<Case> {
    match shapes {
        Shapes::Default => {}
        Shapes::Peers => return peers::small(),
        Shapes::Cpu => return peers::cpu(),
        Shapes::Large => return peers::large(),
        // Steps are no rows.
        Shapes::Model => return Vec::new(),
    }
    let families = [
        vocabulary::cases,
        policy::cases,
        products::cases,
        quantize::cases,
        decoder::cases,
        optim::cases,
    ];
    families.into_iter().chain([steps::cases as fn() -> Vec<Case>]).flat_map(|of| of()).collect()
}

fn chosen(case: &Case, ops: &Option<String>) -> bool {
    let name = case.name();
    let fits = |text: &str| match text.strip_prefix('=') {
        Some(whole) => name == whole,
        None => name.contains(text),
    };
    ops.as_ref().is_none_or(|ops| ops.split('|').any(|text| fits(text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row moves bytes and has a name of its own.
    #[test]
    fn rows_have_names_of_their_own_and_costs() {
        for (shapes, least) in
            [(Shapes::Default, 50), (Shapes::Peers, 29), (Shapes::Cpu, 12), (Shapes::Large, 125)]
        {
            let mut names = std::collections::BTreeSet::new();
            for case in cases(shapes) {
                let name = case.name();
                assert!(case.bytes > 0, "{name}");
                assert!(names.insert(name.clone()), "{name} twice");
            }
            assert!(names.len() >= least, "{shapes:?} {}", names.len());
        }
    }

    /// Operands of the large rows are never found in an L2, and the sets of one fit 80 GB.
    #[test]
    fn large_rows_take_turns_with_sets_that_fit() {
        for case in cases(Shapes::Large) {
            let sets = timing::sets(&case);
            assert!(sets > 1, "{}", case.name());
            assert!(sets as u64 * case.bytes < 64 << 30, "{} {sets}", case.name());
        }
    }

    #[test]
    fn rows_are_chosen_by_text() {
        let case = &decoder::cases()[0];
        assert!(chosen(case, &None) && chosen(case, &Some(case.op.to_string())));
        assert!(chosen(case, &Some(format!("nothing | {}", case.dtype.name()))));
        assert!(chosen(case, &Some(format!("={}", case.name()))));
        assert!(!chosen(case, &Some("nothing".into())));
        assert!(!chosen(case, &Some(format!("={}", case.op))));
    }
}
