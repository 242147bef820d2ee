//! The PTX that is part of the crate: one [`Kernels`] per source below `kernels/`.

use crate::device::kernels::{KernelSet, Kernels};

// kernelc writes it, not rustfmt.
#[rustfmt::skip]
#[path = "../../kernels/generated/images.rs"]
mod images;

pub(crate) use images::*;

/// PTX of this crate, for its ops alone.
const fn shipped(name: &'static str, images: &'static [(KernelSet, &'static str)]) -> Kernels {
    // SAFETY: the sources' parameter structs are the ops' own, and an op checks every view before it
    // launches. The emulator, which bounds every access, runs all kernels in the tests.
    unsafe { Kernels::from_ptx(name, images) }
}

/// Every shipped PTX text as (source, set, text), for tests and tools.
pub fn shipped_ptx() -> impl Iterator<Item = (&'static str, KernelSet, &'static str)> {
    ALL.iter()
        .flat_map(|kernels| kernels.images().iter().map(|&(set, text)| (kernels.name(), set, text)))
}
