//! Rows of logits: what their tests share.

mod gather_k;
mod linear_logprob;
mod logprob;
mod sample;
mod top_k;
mod vocab_kl;

use crate::common::normals;
use gradus::device::KernelSet;
use gradus::dtype::Float;
use gradus::ops::LogitTransform;

pub const SETS: [KernelSet; 2] = [KernelSet::Sm80, KernelSet::Sm90a];

pub const PLAIN: LogitTransform =
    LogitTransform { temperature: 1.0, scale: 1.0, softcap: f64::INFINITY };

pub const TRANSFORMS: [LogitTransform; 4] = [
    PLAIN,
    LogitTransform { temperature: 0.7, ..PLAIN },
    LogitTransform { temperature: 1.3, scale: -0.5, ..PLAIN },
    LogitTransform { temperature: 0.9, scale: 1.5, softcap: 8.0 },
];

pub fn values<T: Float>(seed: u64, n: usize, scale: f64) -> Vec<T> {
    normals(seed, n, scale).into_iter().map(T::from_f64).collect()
}

pub fn wide<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

pub fn upstream(n: usize) -> Vec<f32> {
    normals(9, n, 1.0).iter().map(|&g| g as f32).collect()
}
