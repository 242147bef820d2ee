//! Update statistics on the CPU.

use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::optim::sparsity_stats::{SparsityStats, UpdateSparsity};
use crate::ops::support::math;
use crate::view::View;

/// Rough scalar operations per element.
const WORK: usize = 6;
const LANES: usize = 8;

/// Counts, or the argument and flat index of the first value that is not finite.
pub(crate) fn sparsity_stats<T: Float>(
    mut a: SparsityStats<'_, T>,
) -> Result<(), (&'static str, usize)> {
    let (w0, w1, tol) = (a.w0, a.w1, a.tol);
    let (rows, columns) = (w0.extent(0), w0.extent(1));
    let parts = parallel::map(rows, columns * WORK, |i| count_row(w0.row(i), w1.row(i), tol));
    if let Some(i) = parts.iter().position(|row| !row.max_delta.is_finite()) {
        let in_row = |row: &[T]| row.iter().position(|x| !x.to_f64().is_finite());
        let first = |name, w: View<'_, T>| in_row(w.row(i)).map(|j| (name, i * columns + j));
        return Err(first("w0", w0).or(first("w1", w1)).unwrap_or(("w1", i * columns)));
    }
    let mut total = UpdateSparsity::default();
    for (i, row) in parts.iter().enumerate() {
        total.n += row.n;
        total.equal_exact += row.equal_exact;
        total.within_tol += row.within_tol;
        total.absorbed_bf16 += row.absorbed_bf16;
        total.max_delta = total.max_delta.max(row.max_delta);
        if let Some(nnz) = &mut a.row_nnz {
            nnz.set(i, (row.n - row.equal_exact) as i64);
        }
    }
    *a.stats = total;
    Ok(())
}

/// Counts of one row; `max_delta` is infinite if a value is not finite.
#[inline(always)]
fn count_row_body<T: Float>(w0: &[T], w1: &[T], tol: f64) -> UpdateSparsity {
    let mut lanes = Lanes::default();
    let ((old, old_rest), (new, new_rest)) = (w0.as_chunks::<LANES>(), w1.as_chunks::<LANES>());
    for (old, new) in old.iter().zip(new) {
        for l in 0..LANES {
            lanes.count(l, old[l], new[l], tol);
        }
    }
    for (l, (old, new)) in old_rest.iter().zip(new_rest).enumerate() {
        lanes.count(l, *old, *new, tol);
    }
    UpdateSparsity {
        n: w0.len() as u64,
        equal_exact: lanes.equal.iter().sum(),
        within_tol: lanes.within.iter().sum(),
        absorbed_bf16: lanes.absorbed.iter().sum(),
        max_delta: lanes.max_delta.iter().fold(0.0, |max, d| if *d > max { *d } else { max }),
    }
}

/// Counters of a row, per lane; 64 bits wide like the differences.
#[derive(Default)]
struct Lanes {
    equal: [u64; LANES],
    within: [u64; LANES],
    absorbed: [u64; LANES],
    max_delta: [f64; LANES],
}

impl Lanes {
    #[inline(always)]
    fn count<T: Float>(&mut self, l: usize, old: T, new: T, tol: f64) {
        let delta = (new.to_f64() - old.to_f64()).abs();
        let equal = delta == 0.0;
        self.equal[l] += equal as u64;
        self.within[l] += (delta <= tol) as u64;
        self.absorbed[l] += (!equal & math::same_bf16(old.to_f32(), new.to_f32())) as u64;
        // NaN counts as infinity.
        let size = if delta < f64::INFINITY { delta } else { f64::INFINITY };
        self.max_delta[l] = if size > self.max_delta[l] { size } else { self.max_delta[l] };
    }
}

math::dispatch_simd!(
    fn count_row<T: Float>(w0: &[T], w1: &[T], tol: f64) -> UpdateSparsity = count_row_body
);
