//! An update of a weight as a list of (index, value): lossless, for sending weights to a sampler.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::alloc;
use crate::check::Check;
use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::view::{View, ViewMut};

/// Arguments of [`delta_encode`]. `old_value` and `new_value` have one shape, of any rank, and are contiguous.
#[derive(Debug)]
pub struct DeltaEncode<'a, T> {
    /// What the receiver has.
    pub old_value: View<'a, T>,
    /// What the receiver shall have.
    pub new_value: View<'a, T>,
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
///
/// # Example
/// ```
/// use gradus::{Device, ops::delta_count};
/// let (old, new) = (vec![1f32, 2.0, 0.0], vec![1f32, 2.5, -0.0]);
/// assert_eq!(delta_count(&Device::Cpu, (&old).into(), (&new).into())?, 2);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn delta_count<T: Element>(
    device: &Device,
    old_value: View<'_, T>,
    new_value: View<'_, T>,
) -> Result<usize> {
    let check = Check("delta_count");
    check_pair(check, device, &old_value, &new_value)?;
    match device {
        Device::Cpu => alloc::or_out_of_memory(check.0, || {
            cpu::changed(old_value, new_value).iter().map(Vec::len).sum()
        }),
        Device::Gpu(gpu) => gpu::delta_count(gpu, old_value, new_value),
    }
}

/// `(index[j], value[j])` is the j-th `(i, new_value[i])` with `bits(new_value[i]) != bits(old_value[i])`. Comparing
/// bits tells -0 from +0 and keeps NaN payloads, so [`delta_apply`] restores `new_value` exactly.
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
///     old_value: (&old).into(),
///     new_value: (&new).into(),
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
    check_pair(check, device, &args.old_value, &args.new_value)?;
    check.rank(device, "index", &args.index, 1)?;
    let capacity = args.index.extent(0);
    check.shape(device, "value", &args.value, &[capacity])?;
    check.contiguous("index", &args.index)?;
    check.contiguous("value", &args.value)?;
    check.disjoint(("index", &args.index), ("old_value", &args.old_value))?;
    check.disjoint(("index", &args.index), ("new_value", &args.new_value))?;
    check.disjoint(("value", &args.value), ("old_value", &args.old_value))?;
    check.disjoint(("value", &args.value), ("new_value", &args.new_value))?;
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
///
/// # Example
/// ```
/// use gradus::{Device, ops::{DeltaApply, delta_apply}};
/// let (index, value, mut target) = (vec![0i64, 2], vec![5f32, 7.0], vec![1f32, 2.0, 3.0]);
/// let args = DeltaApply {
///     index: (&index).into(),
///     value: (&value).into(),
///     target: (&mut target).into(),
/// };
/// delta_apply(&Device::Cpu, args)?;
/// assert_eq!(target, [5.0, 2.0, 7.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
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
        Device::Cpu => alloc::or_out_of_memory(check.0, || cpu::delta_apply(args)),
        Device::Gpu(gpu) => gpu::delta_apply(gpu, args),
    }
}

fn check_pair<T: Element>(
    check: Check,
    device: &Device,
    old: &View<'_, T>,
    new: &View<'_, T>,
) -> Result<()> {
    let shape: Vec<usize> = old.shape().iter().map(|&n| n as usize).collect();
    check.shape(device, "old_value", old, &shape)?;
    check.shape(device, "new_value", new, &shape)?;
    check.contiguous("old_value", old)?;
    check.contiguous("new_value", new)
}
