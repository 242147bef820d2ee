//! What else a decoder computes.

mod attention;
mod convert;
mod copy_rows;
mod dropout;
mod embedding;
mod rmsnorm;
mod rope;
mod swiglu;

use crate::common::normals;
use gradus::dtype::Float;

pub fn values<T: Float>(seed: u64, n: usize) -> Vec<T> {
    normals(seed, n, 1.0).into_iter().map(T::from_f64).collect()
}
