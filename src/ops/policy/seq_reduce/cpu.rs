//! Per-sequence reductions on the CPU: one sequence per item, f64, in token order.

use crate::device::parallel;
use crate::dtype::Real;
use crate::ops::policy::seq_reduce::{SeqBroadcast, SeqReduce, SeqReduction};
use crate::ops::policy::tokens::cpu::tokens;
use crate::ops::policy::tokens::is_action;
use crate::view::ViewMut;

/// Rough scalar operations per token.
const WORK: usize = 4;

pub(crate) fn seq_reduce<R: Real>(a: SeqReduce<'_, R>) {
    let start = match a.reduction {
        SeqReduction::Sum | SeqReduction::Mean => 0.0,
        SeqReduction::Max => f64::NEG_INFINITY,
        SeqReduction::Min => f64::INFINITY,
    };
    let sequences = a.cu_seqlens.extent(0) - 1;
    let mean_length = a.x.extent(0) / sequences.max(1) + 1;
    let reduced = parallel::map(sequences, mean_length * WORK, |i| {
        let mut state = (start, 0usize);
        for t in tokens(&a.cu_seqlens, i).filter(|&t| is_action(&a.mask, t)) {
            let x = a.x.at(t).to_f64();
            state = (combine(a.reduction, state.0, x), state.1 + 1);
        }
        state
    });
    let (mut y, mut count) = (a.y, a.count);
    for (i, &(value, n)) in reduced.iter().enumerate() {
        let mean = a.reduction == SeqReduction::Mean && n > 0;
        y.set(i, R::from_f64(if mean { value / n as f64 } else { value }));
        if let Some(count) = &mut count {
            count.set(i, n as i64);
        }
    }
}

fn combine(reduction: SeqReduction, state: f64, x: f64) -> f64 {
    match reduction {
        SeqReduction::Sum | SeqReduction::Mean => state + x,
        // f64::max and min drop a NaN; here it stays.
        _ if state.is_nan() || x.is_nan() => f64::NAN,
        SeqReduction::Max => state.max(x),
        SeqReduction::Min => state.min(x),
    }
}

pub(crate) fn seq_broadcast<R: Real>(a: SeqBroadcast<'_, R>) {
    let mut y: ViewMut<'_, R> = a.y;
    for i in 0..a.cu_seqlens.extent(0) - 1 {
        let used = |t: &usize| is_action(&a.mask, *t);
        let count = tokens(&a.cu_seqlens, i).filter(used).count();
        let x = a.x.at(i).to_f64();
        let value = if a.mean { x / count.max(1) as f64 } else { x };
        for t in tokens(&a.cu_seqlens, i) {
            y.set(t, R::from_f64(if used(&t) { value } else { 0.0 }));
        }
    }
}
