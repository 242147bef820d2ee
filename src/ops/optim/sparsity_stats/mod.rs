//! How much of a weight an update changed (Mukherjee et al. 2025, arXiv:2505.11711, §3), and the
//! update as a list of (index, value): lossless, for sending weights to a sampler.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::{Element, Float};
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

/// Arguments of [`delta_encode`]. `old` and `new` have one shape, of any rank, and are contiguous.
#[derive(Debug)]
pub struct DeltaEncode<'a, T> {
    /// What the receiver has.
    pub old: View<'a, T>,
    /// What the receiver shall have.
    pub new: View<'a, T>,
    /// `[capacity]` ascending flat indices of elements whose bits differ; contiguous.
    pub index: ViewMut<'a, i64>,
    /// `[capacity]` their new values; contiguous.
    pub value: ViewMut<'a, T>,
    /// How many there are.
    pub count: &'a mut usize,
}

/// Number of elements whose bits differ: the capacity that [`delta_encode`] needs.
///
/// # Errors
/// `InvalidArgument` for shapes that differ or views with gaps.
///
/// # Cost
/// Reads both operands once. On a GPU the call waits for the result.
pub fn delta_count<T: Element>(
    device: &Device,
    old: View<'_, T>,
    new: View<'_, T>,
) -> Result<usize> {
    let check = Check("delta_count");
    check_pair(check, device, &old, &new)?;
    match device {
        Device::Cpu => {
            alloc::or_out_of_memory(check.0, || cpu::changed(old, new).iter().map(Vec::len).sum())
        }
        Device::Gpu(gpu) => gpu::delta_count(gpu, old, new),
    }
}

/// `(index[j], value[j])` is the j-th `(i, new[i])` with `bits(new[i]) != bits(old[i])`. Comparing
/// bits tells -0 from +0 and keeps NaN payloads, so [`delta_apply`] restores `new` exactly.
///
/// # Errors
/// `InvalidArgument` for shapes that differ, views with gaps, or a capacity below the count; the
/// message says the count.
///
/// # Cost
/// Reads both operands once; writes 8 bytes and an element per change. On a GPU the call waits for
/// the count, then reads those stretches of 16,384 elements again in which something changed.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{DeltaApply, DeltaEncode, delta_apply, delta_encode}};
/// let (old, new) = (vec![1f32, 2.0, 0.0], vec![1f32, 2.5, -0.0]);
/// let (mut index, mut value, mut count) = (vec![0i64; 2], vec![0f32; 2], 0);
/// delta_encode(&Device::Cpu, DeltaEncode {
///     old: (&old).into(),
///     new: (&new).into(),
///     index: (&mut index).into(),
///     value: (&mut value).into(),
///     count: &mut count,
/// })?;
/// assert_eq!((&index[..], count), (&[1i64, 2][..], 2));
/// let mut target = old.clone();
/// let (index, value) = (index[..count].into(), value[..count].into());
/// delta_apply(&Device::Cpu, DeltaApply { index, value, target: (&mut target).into() })?;
/// assert!(target.iter().zip(&new).all(|(a, b)| a.to_bits() == b.to_bits()));
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn delta_encode<T: Element>(device: &Device, args: DeltaEncode<'_, T>) -> Result<()> {
    let check = Check("delta_encode");
    check_pair(check, device, &args.old, &args.new)?;
    check.rank(device, "index", &args.index, 1)?;
    let capacity = args.index.extent(0);
    check.shape(device, "value", &args.value, &[capacity])?;
    check.contiguous("index", &args.index)?;
    check.contiguous("value", &args.value)?;
    check.disjoint(("index", &args.index), ("old", &args.old))?;
    check.disjoint(("index", &args.index), ("new", &args.new))?;
    check.disjoint(("value", &args.value), ("old", &args.old))?;
    check.disjoint(("value", &args.value), ("new", &args.new))?;
    check.disjoint(("value", &args.value), ("index", &args.index))?;
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::delta_encode(args))?,
        Device::Gpu(gpu) => gpu::delta_encode(gpu, args)?,
    }
    .map_err(|count| {
        let got = format!("room for {capacity}");
        Error::invalid(check.0, "index", got, format!("room for the {count} changed elements"))
    })
}

/// Arguments of [`delta_apply`].
#[derive(Debug)]
pub struct DeltaApply<'a, T> {
    /// `[count]` strictly ascending flat indices.
    pub index: View<'a, i64>,
    /// `[count]` values.
    pub value: View<'a, T>,
    /// Weight of any shape, contiguous, updated.
    pub target: ViewMut<'a, T>,
}

/// `target[index[j]] = value[j]`.
///
/// # Errors
/// `InvalidArgument` for an index out of range or out of order, lengths that differ, or a target
/// with gaps; then nothing was written. Indices in device memory are not looked at before the launch:
/// those out of range are passed over, and of equal ones an arbitrary one counts.
///
/// # Cost
/// Reads 8 bytes and an element per change and writes an element.
pub fn delta_apply<T: Element>(device: &Device, args: DeltaApply<'_, T>) -> Result<()> {
    let check = Check("delta_apply");
    check.rank(device, "index", &args.index, 1)?;
    let count = args.index.extent(0);
    check.shape(device, "value", &args.value, &[count])?;
    check.rank(device, "target", &args.target, args.target.rank())?;
    check.contiguous("target", &args.target)?;
    check.disjoint(("target", &args.target), ("index", &args.index))?;
    check.disjoint(("target", &args.target), ("value", &args.value))?;
    let (mut before, numel) = (-1, args.target.numel());
    let known = if args.index.is_host() { count } else { 0 };
    for j in 0..known {
        let i = args.index.at(j);
        if i <= before || i >= numel {
            let got = format!("{i} at position {j}");
            let expected = format!("strictly ascending indices in 0..{numel}");
            return Err(Error::invalid(check.0, "index", got, expected));
        }
        before = i;
    }
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::delta_apply(args))?,
        Device::Gpu(gpu) => gpu::delta_apply(gpu, args)?,
    }
    Ok(())
}

fn check_pair<T: Element>(
    check: Check,
    device: &Device,
    old: &View<'_, T>,
    new: &View<'_, T>,
) -> Result<()> {
    let shape: Vec<usize> = old.shape().iter().map(|&n| n as usize).collect();
    check.shape(device, "old", old, &shape)?;
    check.shape(device, "new", new, &shape)?;
    check.contiguous("old", old)?;
    check.contiguous("new", new)
}
