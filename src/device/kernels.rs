//! PTX as a value: the crate's own, and that of ops outside of it.

use crate::device::packed::Packed;
use crate::error::{Error, Result};

/// What PTX is compiled for.
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

    /// The set's name in PTX.
    pub(super) fn target(self) -> &'static str {
        match self {
            KernelSet::Sm80 => "sm_80",
            KernelSet::Sm90a => "sm_90a",
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

/// The PTX of one CUDA source, once per [`KernelSet`] it was compiled for.
///
/// A GPU loads it at its first launch and keeps it until the GPU is dropped. Loading costs
/// milliseconds, a later launch nothing. All streams of a device share what was loaded.
///
/// Every kernel takes one parameter, a `#[repr(C)]` struct. `kernelc` compiles such a source without
/// a CUDA toolkit: `cargo run --release -p kernelc -- --dir my_op/kernels`.
///
/// # Example
/// ```
/// use gradus::device::{KernelSet, Kernels};
///
/// // Here the text is short enough to write down; an op says `include_str!("generated/halve.sm80.ptx")`.
/// const PTX: &str = "
///     .version 8.4
///     .target sm_80
///     .address_size 64
///     .visible .entry halve(.param .align 8 .b8 p[16]) { ret; }
/// ";
/// // SAFETY: the kernel reads and writes nothing.
/// static HALVE: Kernels = unsafe { Kernels::from_ptx("halve", &[(KernelSet::Sm80, PTX)]) };
/// assert_eq!(HALVE.kernels()?.collect::<Vec<_>>(), ["halve"]);
/// # Ok::<(), gradus::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    name: &'static str,
    images: Images,
}

#[derive(Clone, Copy, Debug)]
enum Images {
    Texts(&'static [(KernelSet, &'static str)]),
    /// The crate's own.
    Packed(&'static [Packed]),
}

impl Kernels {
    /// The kernels of these PTX texts. `name` is the op's in errors.
    ///
    /// The text lives as long as the program, because GPUs keep what they loaded: use
    /// `include_str!`, or [`String::leak`] for PTX that is compiled at run time. A GPU takes the text
    /// of its [own set](crate::device::Gpu::kernel_set). Where there is none, it takes
    /// [`KernelSet::Sm80`], which runs on every newer device.
    ///
    /// # Safety
    /// Whoever holds the value can start its kernels with any parameters: keep it private to the op.
    /// The op then promises for every launch that it makes:
    /// * The parameter struct is the one that the kernel was compiled for: the fields, their order
    ///   and their types. The size is checked, the rest cannot be.
    /// * Addresses in it come from the same [`LaunchArgs`](crate::device::LaunchArgs), and extents
    ///   and strides are those of the views. The kernel reads and writes nothing else.
    /// * A kernel that counts blocks with a [ticket](crate::device::Scratch::ticket) leaves it at 0.
    pub const unsafe fn from_ptx(
        name: &'static str,
        images: &'static [(KernelSet, &'static str)],
    ) -> Kernels {
        Kernels { name, images: Images::Texts(images) }
    }

    /// The kernels of compressed PTX.
    ///
    /// # Safety
    /// As for [`Kernels::from_ptx`].
    pub(super) const unsafe fn from_packed(
        name: &'static str,
        images: &'static [Packed],
    ) -> Kernels {
        Kernels { name, images: Images::Packed(images) }
    }

    /// The op's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The sets that there is PTX for.
    pub fn sets(&self) -> impl Iterator<Item = KernelSet> + use<> {
        let (texts, packed): (&[_], &[_]) = match self.images {
            Images::Texts(texts) => (texts, &[]),
            Images::Packed(packed) => (&[], packed),
        };
        texts.iter().map(|(set, _)| *set).chain(packed.iter().map(|packed| packed.set))
    }

    /// The PTX texts, one per set.
    ///
    /// # Errors
    /// `OutOfMemory` and `Format`: the crate's own PTX is compressed, and is unpacked where it was not yet.
    pub fn images(&self) -> Result<Vec<(KernelSet, &'static str)>> {
        self.sets().map(|set| self.ptx(set)).collect()
    }

    /// Names of the kernels in the first text.
    ///
    /// # Errors
    /// As of [`Kernels::images`].
    pub fn kernels(&self) -> Result<impl Iterator<Item = &'static str> + use<>> {
        let first = self.sets().next().map(|set| self.ptx(set)).transpose()?;
        Ok(entries(first.map_or("", |(_, text)| text)).map(|entry| entry.name))
    }

    /// The text for a device that runs `set`, and the set it was compiled for.
    pub(super) fn ptx(&self, set: KernelSet) -> Result<(KernelSet, &'static str)> {
        for of in [set, KernelSet::Sm80] {
            if let Some(text) = self.text(of)? {
                return Ok((of, text));
            }
        }
        Err(Error::Unsupported {
            op: self.name,
            reason: format!("there is no PTX of it for {}, and none for sm80", set.name()),
        })
    }

    /// The text that was compiled for exactly this set.
    fn text(&self, set: KernelSet) -> Result<Option<&'static str>> {
        match self.images {
            Images::Texts(texts) => {
                Ok(texts.iter().find(|(of, _)| *of == set).map(|(_, text)| *text))
            }
            Images::Packed(packed) => {
                packed.iter().find(|own| own.set == set).map(|own| own.text(self.name)).transpose()
            }
        }
    }
}

/// A kernel as PTX text declares it.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub name: &'static str,
    /// Bytes of the parameter struct; `None` if the kernel takes anything else.
    pub params: Option<usize>,
}

/// The kernels of a PTX text.
pub(super) fn entries(ptx: &'static str) -> impl Iterator<Item = Entry> {
    const ENTRY: &str = ".entry ";
    ptx.match_indices(ENTRY).filter_map(move |(at, _)| {
        let line = ptx[..at].rsplit('\n').next().unwrap_or("");
        if line.contains("//") {
            return None;
        }
        let (name, rest) = ptx[at + ENTRY.len()..].split_once('(')?;
        let (params, _) = rest.split_once(')')?;
        Some(Entry { name: name.trim(), params: struct_bytes(params) })
    })
}

/// The size of the only parameter: 16 in `.param .align 8 .b8 name[16]`.
fn struct_bytes(params: &str) -> Option<usize> {
    let (head, rest) = params.split_once('[')?;
    let (size, tail) = rest.split_once(']')?;
    let is_struct = head.contains(".b8 ") && !head.contains(',') && tail.trim().is_empty();
    is_struct.then(|| size.trim().parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_text() {
        let ptx = "
            // .entry comment(.param .align 8 .b8 p[8])
            .visible .entry one(\n\t.param .align 8 .b8 one_param_0[40]\n)\n{ ret; }
            .visible .entry scalars(.param .u64 a, .param .u32 b) { ret; }
            .visible .entry two(.param .align 8 .b8 a[8], .param .align 8 .b8 b[8]) { ret; }
            .entry none() { ret; }";
        let found: Vec<_> = entries(ptx).map(|entry| (entry.name, entry.params)).collect();
        let expected = [("one", Some(40)), ("scalars", None), ("two", None), ("none", None)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_set_that_is_missing_falls_to_sm80_or_is_an_error() {
        // SAFETY: never launched.
        let of = |images| unsafe { Kernels::from_ptx("op", images) };
        let (old, new) = ((KernelSet::Sm80, "old"), (KernelSet::Sm90a, "new"));
        let both: &'static [(KernelSet, &'static str)] = Box::leak(Box::new([old, new]));
        assert_eq!(of(both).ptx(KernelSet::Sm90a).unwrap(), new);
        assert_eq!(of(&both[..1]).ptx(KernelSet::Sm90a).unwrap(), old);
        let error = of(&both[1..]).ptx(KernelSet::Sm80).unwrap_err().to_string();
        assert!(error.contains("op") && error.contains("sm80"), "{error}");
    }
}
