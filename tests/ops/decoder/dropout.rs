//! Dropout: masks from the Random123 generator by hand, the same on every executor and in every batch.

use crate::common::devices::executors;
use crate::common::{bits_of, refused_with, same_on_any_pool};
use crate::decoder::values;
use gradus::dtype::Float;
use gradus::ops::{Dropout, dropout};
use gradus::rng::philox;
use gradus::{Device, View, ViewMut, bf16, f16};

/// Rows of `k` elements inside rows of `k + 3`.
struct Case {
    k: usize,
    streams: Vec<i32>,
    positions: Vec<i32>,
    p: f64,
    scale: f64,
    key: u64,
    accumulate: bool,
}

impl Case {
    fn new(k: usize, p: f64, accumulate: bool) -> Case {
        let (streams, positions) = (vec![3, 3, 3, 0, -1], vec![0, 1, 2, 1, i32::MAX]);
        Case { k, streams, positions, p, scale: 2.5, key: 0x0123_4567_89ab_cdef, accumulate }
    }

    fn x<T: Float>(&self) -> Vec<T> {
        values(5, self.streams.len() * (self.k + 3))
    }

    fn run<T: Float>(&self, device: &Device) -> Vec<T> {
        let (rows, wide) = (self.streams.len(), self.k + 3);
        let (x, mut y) = (self.x::<T>(), values::<T>(6, rows * wide));
        let (shape, strides) = ([rows as i64, self.k as i64], [wide as i64, 1]);
        let args = Dropout {
            x: View::strided(&x, &shape, &strides).unwrap(),
            streams: (&self.streams).into(),
            positions: (&self.positions).into(),
            p: self.p,
            scale: self.scale,
            key: self.key,
            accumulate: self.accumulate,
            y: ViewMut::strided(&mut y, &shape, &strides).unwrap(),
        };
        dropout(device, args).unwrap();
        y
    }

    fn kept(&self, i: usize, j: usize) -> bool {
        let key = [self.key as u32, (self.key >> 32) as u32];
        let counter = [(j / 4) as u32, self.positions[i] as u32, self.streams[i] as u32, 0];
        philox(counter, key)[j % 4] as f64 >= (self.p * 4_294_967_296.0).floor()
    }

    /// What the op should write, from its formula.
    fn want<T: Float>(&self) -> Vec<T> {
        let (x, mut y, wide) =
            (self.x::<T>(), values::<T>(6, self.streams.len() * (self.k + 3)), self.k + 3);
        for i in 0..self.streams.len() {
            for j in 0..self.k {
                let at = i * wide + j;
                let before = if self.accumulate { y[at].to_f64() } else { 0.0 };
                let factor = self.scale / (1.0 - self.p);
                let kept = if self.kept(i, j) { factor * x[at].to_f64() } else { 0.0 };
                y[at] = T::from_f64(before + kept);
            }
        }
        y
    }
}

fn agree<T: Float>() {
    for executor in executors() {
        for (k, p) in [(0, 0.5), (1, 0.5), (3, 0.9), (4, 0.0), (514, 0.1), (1030, 0.999)] {
            for accumulate in [false, true] {
                let case = Case::new(k, p, accumulate);
                let (got, want) = (case.run::<T>(&executor.device), case.want::<T>());
                let at = format!("{} {} {k} {p} {accumulate}", executor.name, T::DTYPE.name());
                assert!(bits_of(&got) == bits_of(&want), "{at}");
            }
        }
    }
}

#[test]
fn every_executor_has_the_masks_of_the_formula() {
    agree::<f32>();
    agree::<bf16>();
    agree::<f16>();
    agree::<f64>();
}

/// A row has its mask alone, in another order and under any number of threads; and another key, stream or
/// position has another one.
#[test]
fn a_row_has_its_mask_wherever_it_stands() {
    let all = Case::new(64, 0.5, false);
    let together = same_on_any_pool(|| all.run::<f32>(&Device::Cpu));
    let row = |y: &[f32], i: usize| y[i * 67..i * 67 + 64].to_vec();
    let zeros = |y: Vec<f32>| y.iter().map(|&y| y == 0.0).collect::<Vec<bool>>();
    for i in 0..all.streams.len() {
        let [streams, positions] = [&all.streams, &all.positions].map(|column| vec![column[i]]);
        let alone = Case { streams, positions, ..Case::new(64, 0.5, false) };
        let mask = zeros(row(&alone.run::<f32>(&Device::Cpu), 0));
        assert_eq!(mask, zeros(row(&together, i)), "{i}");
        let rekeyed = Case { key: all.key + 1, ..Case::new(64, 0.5, false) };
        assert_ne!(mask, zeros(row(&rekeyed.run::<f32>(&Device::Cpu), i)), "{i}");
        for other in (0..all.streams.len()).filter(|&other| other != i) {
            assert_ne!(mask, zeros(row(&together, other)), "{i} {other}");
        }
    }
}

/// What is dropped is 0, whatever stood there; what stays keeps its NaN.
#[test]
fn a_dropped_nan_is_gone() {
    let x = vec![f32::NAN; 400];
    for executor in executors() {
        let mut y = vec![7f32; 400];
        let args = Dropout {
            x: View::rows_of(&x, 400).unwrap(),
            streams: (&[0][..]).into(),
            positions: (&[0][..]).into(),
            p: 0.25,
            scale: 1.0,
            key: 1,
            accumulate: false,
            y: ViewMut::rows_of(&mut y, 400).unwrap(),
        };
        dropout(&executor.device, args).unwrap();
        let dropped = y.iter().filter(|&&y| y == 0.0).count();
        assert_eq!(dropped + y.iter().filter(|y| y.is_nan()).count(), 400);
        // 100 ± 5 standard deviations of 8.7.
        assert!((57..143).contains(&dropped), "{}: {dropped}", executor.name);
    }
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let (x, mut y) = (vec![1f32; 8], vec![7f32; 8]);
    let mut run = |x: &[f32], columns: usize, rows: [usize; 2], p: f64, scale: f64| {
        let [streams, positions] = rows.map(|n| vec![0; n]);
        let args = Dropout {
            x: View::rows_of(x, columns).unwrap(),
            streams: (&streams).into(),
            positions: (&positions).into(),
            p,
            scale,
            key: 0,
            accumulate: false,
            y: ViewMut::rows_of(&mut y, 4).unwrap(),
        };
        dropout(&Device::Cpu, args)
    };
    refused_with(run(&x, 2, [4, 4], 0.5, 1.0), "y", "[4, 2]");
    refused_with(run(&x, 4, [3, 2], 0.5, 1.0), "streams", "[2]");
    refused_with(run(&x, 4, [2, 3], 0.5, 1.0), "positions", "[2]");
    refused_with(run(&x, 4, [2, 2], 1.0, 1.0), "p", "0 <= p < 1");
    refused_with(run(&x, 4, [2, 2], -0.1, 1.0), "p", "0 <= p < 1");
    refused_with(run(&x, 4, [2, 2], f64::NAN, 1.0), "p", "0 <= p < 1");
    refused_with(run(&x, 4, [2, 2], 0.5, f64::INFINITY), "scale", "finite");
    assert!(y.iter().all(|&y| y == 7.0));
}
