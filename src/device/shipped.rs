//! The PTX that is part of the crate: one [`Kernels`] per source below `kernels/`.

use crate::device::kernels::{KernelSet, Kernels};
use crate::device::packed::Packed;
use crate::error::Result;

// kernelc writes it, not rustfmt.
#[rustfmt::skip]
#[path = "../../kernels/generated/images.rs"]
mod images;

pub(crate) use images::*;

/// PTX of this crate, for its ops alone.
const fn shipped(name: &'static str, images: &'static [Packed]) -> Kernels {
    // SAFETY: the sources' parameter structs are the ops' own, and an op checks every view before it
    // launches. The emulator, which bounds every access, runs all kernels in the tests.
    unsafe { Kernels::from_packed(name, images) }
}

/// The sources that are shipped and the sets that each was compiled for; nothing is unpacked.
pub fn shipped_sources() -> impl Iterator<Item = (&'static str, KernelSet)> {
    ALL.iter().flat_map(|kernels| kernels.sets().map(|set| (kernels.name(), set)))
}

/// Every shipped PTX text as (source, set, text), for tests and tools.
///
/// # Errors
/// As of [`Kernels::images`]. 37 MB are unpacked, in a fifth of a second, and stay.
pub fn shipped_ptx() -> Result<Vec<(&'static str, KernelSet, &'static str)>> {
    let mut all = Vec::new();
    for kernels in ALL {
        all.extend(kernels.images()?.into_iter().map(|(set, text)| (kernels.name(), set, text)));
    }
    Ok(all)
}
