//! The PTX that is part of the crate, and which of it a device runs.

use crate::error::{Error, Result};

/// The PTX of one `kernels/<op>.cu`.
struct Image {
    op: &'static str,
    sm80: &'static str,
    sm90a: &'static str,
}

macro_rules! images {
    ($($op:literal),* $(,)?) => {
        &[$(Image {
            op: $op,
            sm80: include_str!(concat!("../../kernels/ptx/", $op, ".sm80.ptx")),
            sm90a: include_str!(concat!("../../kernels/ptx/", $op, ".sm90a.ptx")),
        }),*]
    };
}

/// One line per source, in the order of the alphabet.
static IMAGES: &[Image] = images! {
    "adamw",
    "attention",
    "attention_bwd",
    "attention_mma",
    "attention_mma_bwd",
    "convert",
    "copy_rows",
    "delta",
    "embedding",
    "gae",
    "gather_k",
    "grad_norm",
    "group_advantage",
    "group_loss",
    "lerp",
    "linear_logprob",
    "logprob",
    "lora_grad",
    "matmul",
    "nf4_dequantize",
    "nf4_matmul",
    "nf4_matmul_grouped",
    "nf4_quantize",
    "offpolicy_weight",
    "pair_loss",
    "policy_loss",
    "quantile",
    "rmsnorm",
    "rope",
    "sample",
    "seq_reduce",
    "sparsity_stats",
    "swiglu",
    "value_loss",
    "vocab_kl",
};

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
    let image = IMAGES.iter().find(|image| image.op == op).ok_or_else(|| Error::Unsupported {
        op,
        reason: "there is no kernel for it".to_string(),
    })?;
    Ok(match set {
        KernelSet::Sm80 => image.sm80,
        KernelSet::Sm90a => image.sm90a,
    })
}

/// Every shipped PTX text as (op, set, text), for tests and tools.
pub fn shipped_ptx() -> impl Iterator<Item = (&'static str, KernelSet, &'static str)> {
    IMAGES.iter().flat_map(|image| {
        [(image.op, KernelSet::Sm80, image.sm80), (image.op, KernelSet::Sm90a, image.sm90a)]
    })
}

/// Names of the kernels in PTX text.
pub(crate) fn kernel_names(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(|line| {
        let (_, rest) = line.split_once(".entry ")?;
        Some(rest.trim().trim_end_matches('('))
    })
}
