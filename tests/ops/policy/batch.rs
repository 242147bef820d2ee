//! Packed batches with empty, single-token, fully masked and long sequences.

use crate::common::normals;
use gradus::dtype::Real;

/// Offsets of sequences with the given lengths.
pub fn offsets(lengths: &[usize]) -> Vec<i64> {
    let mut at = 0;
    let ends = lengths.iter().map(|&n| {
        at += n as i64;
        at
    });
    std::iter::once(0).chain(ends).collect()
}

/// A packed batch; the third sequence with tokens is masked whole.
pub struct Batch {
    pub cu: Vec<i64>,
    pub mask: Vec<u8>,
    pub columns: Vec<Vec<f64>>,
    pub per_sequence: Vec<Vec<f64>>,
}

impl Batch {
    pub fn new(seed: u64, lengths: &[usize]) -> Batch {
        let cu = offsets(lengths);
        let n = cu[lengths.len()] as usize;
        let mut mask: Vec<u8> =
            (0..n).map(|i| !(i * 7 + seed as usize).is_multiple_of(5) as u8).collect();
        if lengths.len() > 3 {
            mask[cu[2] as usize..cu[3] as usize].fill(0);
        }
        let logp: Vec<f64> = normals(seed, n, 0.7).iter().map(|x| -0.1 - x.abs()).collect();
        let near = |k: u64| -> Vec<f64> {
            normals(seed + k, n, 0.2).iter().zip(&logp).map(|(e, l)| l + e).collect()
        };
        let columns =
            vec![logp.clone(), near(1), near(2), near(3), near(4), normals(seed + 5, n, 1.0)];
        let b = lengths.len();
        Batch { cu, mask, columns, per_sequence: vec![normals(seed + 6, b, 1.0), vec![0.37; b]] }
    }

    pub fn typed<R: Real>(&self, i: usize) -> Vec<R> {
        self.columns[i].iter().map(|&x| R::from_f64(x)).collect()
    }
}

pub const LATTICE: [&[usize]; 7] =
    [&[], &[0], &[1], &[3, 0, 4, 1], &[127, 128, 129, 0, 31], &[1000, 1, 257, 64, 65], &[5003]];

/// How far two executors may be apart: a few rounding errors of the element type.
pub fn bound<R: Real>() -> f64 {
    if size_of::<R>() == 4 { 3e-7 } else { 1e-11 }
}
