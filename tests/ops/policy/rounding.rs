//! The f32 form of an op beside its f64 form.

use crate::common::devices::{close, shared_gpus};
use crate::common::normals;
use gradus::Device;
use gradus::dtype::Real;

/// Two roundings of f32.
pub const ROUNDED: f64 = 1.2e-7;

/// Values that f32 holds exactly, in `R`.
pub fn values<R: Real>(seed: u64, n: usize, scale: f64) -> Vec<R> {
    normals(seed, n, scale).iter().map(|&x| R::from_f64(x as f32 as f64)).collect()
}

pub fn nan<R: Real>(n: usize) -> Vec<R> {
    vec![R::from_f64(f64::NAN); n]
}

pub fn wide<R: Real>(columns: &[&[R]]) -> Vec<f64> {
    columns.iter().flat_map(|column| column.iter().map(|x| x.to_f64())).collect()
}

/// Holds the f32 form on every GPU, and on the CPU, against the f64 form on the CPU.
pub fn rounds_once(
    what: &str,
    narrow: impl Fn(&Device) -> Vec<f64>,
    exact: impl Fn(&Device) -> Vec<f64>,
) {
    let want = exact(&Device::Cpu);
    assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|&x| x != 0.0), "{what}");
    close(&format!("{what} on the CPU"), &want, &narrow(&Device::Cpu), ROUNDED, 1e-3);
    for executor in shared_gpus() {
        let name = format!("{what} on {}", executor.name);
        close(&name, &want, &narrow(&executor.device), ROUNDED, 1e-3);
    }
}
