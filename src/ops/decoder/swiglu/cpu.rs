//! SwiGLU on the CPU: one row per item, each element in f64 and rounded once.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::decoder::swiglu::{Swiglu, SwigluBwd};
use crate::ops::support::math::{dispatch_simd, sigmoid};

/// Rough scalar operations per element.
const WORK: usize = 16;

pub(crate) fn swiglu<T: Float>(a: Swiglu<'_, T>) {
    let (gate, up) = (a.gate, a.up);
    let width = gate.extent(1);
    parallel::for_each(a.y.into_rows(), width * WORK, |i, y| gated(gate.row(i), up.row(i), y));
}

pub(crate) fn swiglu_bwd<T: Float>(a: SwigluBwd<'_, T>) {
    let (gate, up, dy) = (a.gate, a.up, a.dy);
    let width = gate.extent(1);
    let rows: Vec<_> = a.dgate.into_rows().into_iter().zip(a.dup.into_rows()).gathered();
    parallel::for_each(rows, width * WORK, |i, (dgate, dup)| {
        gated_bwd(gate.row(i), up.row(i), dy.row(i), dgate, dup);
    });
}

dispatch_simd! {
    fn gated<T: Float>(gate: &[T], up: &[T], y: &mut [T]) = gated_body
}

#[inline(always)]
fn gated_body<T: Float>(gate: &[T], up: &[T], y: &mut [T]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        let g = gate.to_f64();
        *y = T::from_f64(g * sigmoid(g) * up.to_f64());
    }
}

dispatch_simd! {
    fn gated_bwd<T: Float>(gate: &[T], up: &[T], dy: &[T], dgate: &mut [T], dup: &mut [T]) = gated_bwd_body
}

/// silu'(g) = σ·(1 + g·(1 − σ)).
#[inline(always)]
fn gated_bwd_body<T: Float>(gate: &[T], up: &[T], dy: &[T], dgate: &mut [T], dup: &mut [T]) {
    for ((((gate, up), dy), dgate), dup) in gate.iter().zip(up).zip(dy).zip(dgate).zip(dup) {
        let (g, dy) = (gate.to_f64(), dy.to_f64());
        let s = sigmoid(g);
        *dgate = T::from_f64(dy * up.to_f64() * s * g.mul_add(1.0 - s, 1.0));
        *dup = T::from_f64(dy * g * s);
    }
}
