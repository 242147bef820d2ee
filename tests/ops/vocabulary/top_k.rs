//! The K likeliest tokens: against a stable sort, on every executor, with ties and values that are no
//! numbers.

use crate::common::devices::executors;
use crate::common::{normals, refused_with};
use gradus::dtype::Float;
use gradus::ops::{TopK, top_k};
use gradus::{Device, View, ViewMut, bf16, f16};

/// Rows of `vocab` logits inside rows of `vocab + 2`.
fn run<T: Float>(device: &Device, x: &[T], vocab: usize, k: usize) -> Vec<i32> {
    let rows = x.len() / (vocab + 2);
    let mut ids = vec![-7; rows * (k + 1)];
    let args = TopK {
        logits: View::rows_of(x, vocab + 2).unwrap(),
        vocab: vocab as i64,
        ids: ViewMut::strided(&mut ids, &[rows as i64, k as i64], &[k as i64 + 1, 1]).unwrap(),
    };
    top_k(device, args).unwrap();
    ids.chunks(k + 1)
        .flat_map(|row| {
            assert_eq!(row[k], -7, "guard");
            row[..k].to_vec()
        })
        .collect()
}

fn want<T: Float>(x: &[T], vocab: usize, k: usize) -> Vec<i32> {
    let of = |row: &[T]| {
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| row[b].to_f64().total_cmp(&row[a].to_f64()));
        let mut kept: Vec<i32> = order[..k].iter().map(|&v| v as i32).collect();
        kept.sort_unstable();
        kept
    };
    x.chunks(vocab + 2).flat_map(of).collect()
}

fn agree<T: Float>(gpu: bool) {
    let executors = executors();
    for (vocab, k) in [(1, 1), (5, 5), (255, 3), (256, 256), (257, 1), (1000, 64), (3000, 40)] {
        let mut x: Vec<T> =
            normals(vocab as u64, 3 * (vocab + 2), 2.0).into_iter().map(T::from_f64).collect();
        // The columns behind are larger than all others, and row 1 has few values.
        x.chunks_mut(vocab + 2).for_each(|row| row[vocab..].fill(T::from_f64(1e3)));
        let coarse = x[vocab + 2..2 * vocab + 2].iter().map(|v| v.to_f64().round());
        let coarse: Vec<T> = coarse.map(T::from_f64).collect();
        x[vocab + 2..2 * vocab + 2].copy_from_slice(&coarse);
        let want = want(&x, vocab, k);
        for executor in executors.iter().filter(|e| gpu || matches!(e.device, Device::Cpu)) {
            let got = run(&executor.device, &x, vocab, k);
            assert_eq!(got, want, "{} {} {vocab} {k}", executor.name, T::DTYPE.name());
        }
    }
}

#[test]
fn ids_are_those_of_a_stable_sort() {
    agree::<f32>(true);
    agree::<bf16>(true);
    agree::<f16>(true);
    agree::<f64>(false);
}

#[test]
fn order_is_total() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let x = [-inf, 0.0, -0.0, nan, inf, -nan, 1.0, -inf, 9.0, 9.0];
    for executor in executors() {
        for (k, want) in [
            (1, vec![3]),
            (2, vec![3, 4]),
            (4, vec![1, 3, 4, 6]),
            (6, vec![0, 1, 2, 3, 4, 6]),
            (8, (0..8).collect()),
        ] {
            assert_eq!(run(&executor.device, &x, 8, k), want, "{} {k}", executor.name);
        }
    }
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let (x, mut ids) = (vec![1f32; 12], vec![7; 12]);
    let mut run = |vocab: i64, shape: [i64; 2]| {
        let logits = View::rows_of(&x, 6).unwrap();
        let n = (shape[0] * shape[1]) as usize;
        let ids = ViewMut::new(&mut ids[..n], &shape).unwrap();
        top_k(&Device::Cpu, TopK { logits, vocab, ids })
    };
    refused_with(run(7, [2, 3]), "vocab", "1..=6");
    refused_with(run(0, [2, 3]), "vocab", "1..=6");
    refused_with(run(5, [2, 6]), "ids", "vocab = 5");
    refused_with(run(5, [2, 0]), "ids", "K from 1");
    refused_with(run(5, [3, 3]), "ids", "[2, 3]");
    assert!(ids.iter().all(|&id| id == 7));
}
