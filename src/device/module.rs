//! The PTX that is part of the crate, and which of it a device runs.

use crate::error::{Error, Result};

#[path = "../../kernels/generated/images.rs"]
mod images;

use images::IMAGES;

/// A family of PTX files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSet {
    /// Runs on compute capability 8.0 and everything newer.
    Sm80,
    /// Runs on compute capability 9.0 only: TMA, wgmma, clusters.
    Sm90a,
}

impl KernelSet {
    /// The best set for a compute capability.
    pub fn for_capability(capability: (u32, u32)) -> Result<KernelSet> {
        let set = if capability == (9, 0) { KernelSet::Sm90a } else { KernelSet::Sm80 };
        set.check(capability).map(|()| set)
    }

    /// The set's name in file names.
    pub fn name(self) -> &'static str {
        match self {
            KernelSet::Sm80 => "sm80",
            KernelSet::Sm90a => "sm90a",
        }
    }

    /// An error unless a device of this capability can run the set.
    pub(crate) fn check(self, capability: (u32, u32)) -> Result<()> {
        let (runs, needs) = match self {
            KernelSet::Sm80 => (capability >= (8, 0), "8.0 or newer"),
            KernelSet::Sm90a => (capability == (9, 0), "9.0"),
        };
        if runs {
            return Ok(());
        }
        let got = format!("{}.{}", capability.0, capability.1);
        Err(Error::invalid("device", "compute capability", got, needs))
    }
}

/// The PTX text of an op.
pub(crate) fn ptx(op: &'static str, set: KernelSet) -> Result<&'static str> {
    let image = IMAGES.iter().find(|(source, target, _)| (*source, *target) == (op, set.name()));
    let none = || Error::Unsupported { op, reason: "there is no kernel for it".to_string() };
    image.map(|(_, _, text)| *text).ok_or_else(none)
}

/// Every shipped PTX text as (op, set, text), for tests and tools.
pub fn shipped_ptx() -> impl Iterator<Item = (&'static str, KernelSet, &'static str)> {
    let of = |set: KernelSet| {
        let images = IMAGES.iter().filter(move |(_, target, _)| *target == set.name());
        images.map(move |(op, _, text)| (*op, set, *text))
    };
    [KernelSet::Sm80, KernelSet::Sm90a].into_iter().flat_map(of)
}

/// Names of the kernels in PTX text.
pub(crate) fn kernel_names(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(|line| {
        let (_, rest) = line.split_once(".entry ")?;
        Some(rest.trim().trim_end_matches('('))
    })
}
