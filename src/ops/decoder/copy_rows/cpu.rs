//! Rows gathered and scattered on the CPU.

use crate::alloc::{self, Gather};
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::copy_rows::CopyRows;
use crate::view::View;

pub(crate) fn copy_rows<T: Float>(mut a: CopyRows<'_, T>) {
    let (rows, d, count) = (a.rows(), a.x.extent(1), a.y.extent(0));
    let row_of =
        |table: &Option<View<'_, i32>>, i| table.as_ref().map_or(i as i64, |t| t.at(i) as i64);
    // To hand out all rows of y costs about as much as to copy this many elements.
    if rows * d < count {
        for i in 0..rows {
            if let Ok(to) = usize::try_from(row_of(&a.to_rows, i)) {
                copy(&a.x, row_of(&a.from_rows, i), a.y.row_mut(to));
            }
        }
        return;
    }
    let mut source = alloc::filled(None, count);
    for i in 0..rows {
        if let Ok(to) = usize::try_from(row_of(&a.to_rows, i)) {
            source[to] = Some(row_of(&a.from_rows, i));
        }
    }
    let named = a.y.into_rows().into_iter().zip(source);
    let named: Vec<_> = named.filter_map(|(y, from)| Some((y, from?))).sifted();
    parallel::for_each(named, d, |_, (y, from)| copy(&a.x, from, y));
}

/// Row `from` of `x`; zeros if it is -1.
fn copy<T: Float>(x: &View<'_, T>, from: i64, y: &mut [T]) {
    match usize::try_from(from) {
        Ok(from) => y.copy_from_slice(x.row(from)),
        Err(_) => y.fill(T::zeroed()),
    }
}
