//! How much of a weight an update changed (Mukherjee et al. 2025, arXiv:2505.11711, §3).

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::view::{View, ViewMut};

/// Arguments of [`sparsity_stats`].
#[derive(Debug)]
pub struct SparsityStats<'a, T> {
    /// `[N, K]` weight before.
    pub w0: View<'a, T>,
    /// `[N, K]` weight after.
    pub w1: View<'a, T>,
    /// |Δ| <= tol counts as unchanged in [`UpdateSparsity::within_tol`]; finite, >= 0. The paper
    /// uses 1e-5 on bf16.
    pub tol: f64,
    /// `[N]` elements of each row with w0 != w1, if wanted.
    pub row_nnz: Option<ViewMut<'a, i64>>,
    /// The result.
    pub stats: &'a mut UpdateSparsity,
}

/// Counts of [`sparsity_stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UpdateSparsity {
    /// Elements.
    pub n: u64,
    /// Elements with w0 == w1.
    pub equal_exact: u64,
    /// Elements with |w1 − w0| <= tol, the difference in f64.
    pub within_tol: u64,
    /// Elements with w0 != w1 that round to the same bf16.
    pub absorbed_bf16: u64,
    /// max |w1 − w0|.
    pub max_delta: f64,
}

impl UpdateSparsity {
    /// within_tol / n: the paper's sparsity. 1 for an empty weight.
    pub fn sparsity(&self) -> f64 {
        if self.n == 0 { 1.0 } else { self.within_tol as f64 / self.n as f64 }
    }
}

/// Counts of Δ = w1 − w0: exact zeros, |Δ| <= tol, changes that bf16 absorbs, max |Δ|, and non-zeros
/// per row.
///
/// For |w| < 2⁻⁹ a change of one bf16 unit is below 1e-5, above it never: `within_tol` at 1e-5 and
/// `equal_exact` answer different questions, so both are given.
///
/// # Errors
/// `NonFinite` for NaN or infinity in a weight, or a difference beyond f64; `InvalidArgument` for
/// shapes that differ, strided columns or a bad `tol`. On an error a `row_nnz` in device memory holds
/// counts of no meaning; one in host memory is untouched.
///
/// # Cost
/// Reads both weights once, about 6 flops per element. On a GPU the call waits for the result.
///
/// # Example
/// ```
/// use gradus::{Device, View, ops::{SparsityStats, UpdateSparsity, sparsity_stats}};
/// let (w0, w1) = ([1f32, 2.0, 3.0, 4.0], [1f32, 2.000001, 3.0, 5.0]);
/// let mut stats = UpdateSparsity::default();
/// let (w0, w1) = (View::rows_of(&w0, 2)?, View::rows_of(&w1, 2)?);
/// sparsity_stats(&Device::Cpu, SparsityStats { w0, w1, tol: 1e-5, row_nnz: None, stats: &mut stats })?;
/// assert_eq!((stats.equal_exact, stats.within_tol, stats.absorbed_bf16), (2, 3, 1));
/// assert_eq!((stats.sparsity(), stats.max_delta), (0.75, 1.0));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn sparsity_stats<T: Float>(device: &Device, args: SparsityStats<'_, T>) -> Result<()> {
    let check = Check("sparsity_stats");
    check.rank(device, "w0", &args.w0, 2)?;
    let (rows, columns) = (args.w0.extent(0), args.w0.extent(1));
    check.shape(device, "w1", &args.w1, &[rows, columns])?;
    check.non_negative("tol", args.tol)?;
    check.opt_shape(device, "row_nnz", &args.row_nnz, &[rows])?;
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::sparsity_stats(args))?,
        Device::Gpu(gpu) => gpu::sparsity_stats(gpu, args)?,
    }
    .map_err(|(arg, index)| Error::NonFinite { op: check.0, arg: arg.to_string(), index })
}
