//! Deltas on the CPU.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Element;
use crate::ops::optim::delta::{DeltaApply, DeltaEncode};
use crate::view::View;

/// Elements per item of work.
const CHUNK: usize = 4096;

/// Flat indices of elements whose bits differ, per chunk.
pub(crate) fn changed<T: Element>(old: View<'_, T>, new: View<'_, T>) -> Vec<Vec<usize>> {
    let (old, new) = (old.as_slice().unwrap_or(&[]), new.as_slice().unwrap_or(&[]));
    parallel::map(old.len().div_ceil(CHUNK), CHUNK, |chunk| {
        let part = chunk * CHUNK..old.len().min((chunk + 1) * CHUNK);
        let differs = |i: &usize| bytemuck::bytes_of(&old[*i]) != bytemuck::bytes_of(&new[*i]);
        part.filter(differs).sifted()
    })
}

/// Encodes, or returns the number of changes if there is no room for them.
pub(crate) fn delta_encode<T: Element>(a: DeltaEncode<'_, T>) -> Result<(), usize> {
    let (mut index, mut value) = (a.index, a.value);
    let changes = changed(a.old_value, a.new_value);
    let count = changes.iter().map(Vec::len).sum();
    if count > index.extent(0) {
        return Err(count);
    }
    let new = a.new_value.as_slice().unwrap_or(&[]);
    for (j, &i) in changes.iter().flatten().enumerate() {
        index.set(j, i as i64);
        value.set(j, new[i]);
    }
    *a.count = count;
    Ok(())
}

pub(crate) fn delta_apply<T: Element>(a: DeltaApply<'_, T>) {
    let mut target = a.target;
    let target = target.as_mut_slice().unwrap_or(&mut []);
    for j in 0..a.index.extent(0) {
        target[a.index.at(j) as usize] = a.value.at(j);
    }
}
