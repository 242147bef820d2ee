//! Rotary embedding: f64 oracle, gradient, invariances, bad input, every dtype.

use crate::common::devices::{executors, on_all};
use crate::common::{
    bits, bits_of, check_gradient, f32s, normals, refused_with, same_on_any_pool, ulps_f32,
};
use crate::products::support::random;
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, ViewMut, bf16, f16};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

/// Tables for `positions` rows with the frequencies 10000^(-2i/D).
fn tables(positions: usize, d: usize) -> (Vec<f32>, Vec<f32>) {
    let angle = |n: usize| {
        let (p, i) = (n / (d / 2), n % (d / 2));
        p as f64 * 10000f64.powf(-2.0 * i as f64 / d as f64)
    };
    let table = |f: fn(f64) -> f64| (0..positions * d / 2).map(|n| f(angle(n)) as f32).collect();
    (table(f64::cos), table(f64::sin))
}

fn rotate<T: gradus::dtype::Float>(
    x: &[T],
    shape: [i64; 3],
    positions: &[i32],
    table_rows: usize,
    inverse: bool,
) -> Vec<T> {
    let d = shape[2] as usize;
    let (cos, sin) = tables(table_rows, d);
    let run = |device: &Device| {
        let mut y = x.to_vec();
        let args = Rope {
            x: ViewMut::new(&mut y, &shape).unwrap(),
            positions: positions.into(),
            cos: View::rows_of(&cos, d / 2).unwrap(),
            sin: View::rows_of(&sin, d / 2).unwrap(),
            inverse,
        };
        rope(device, args).unwrap();
        y
    };
    on_all(run, |name, cpu, gpu| assert_eq!(bits_of(cpu), bits_of(gpu), "{name}"))
}

#[test]
fn rope_is_the_rotation_rounded_once() {
    let (t, h, d) = (5, 3, 10);
    let x = f32s(&normals(1, t * h * d, 2.0));
    let positions = [0, 7, 3, 7, 11];
    let y = rotate(&x, [5, 3, 10], &positions, 12, false);
    let (cos, sin) = tables(12, d);
    for (n, &got) in y.iter().enumerate() {
        let (token, i) = (n / (h * d), n % d);
        let row = positions[token] as usize * d / 2 + i % (d / 2);
        let (c, s) = (cos[row] as f64, sin[row] as f64);
        let partner = if i < d / 2 { x[n + d / 2] } else { x[n - d / 2] } as f64;
        let sign = if i < d / 2 { -1.0 } else { 1.0 };
        let want = x[n] as f64 * c + sign * partner * s;
        assert!(ulps_f32(got, want, want) <= 0.500_001, "{n}: {got} against {want}");
    }
    assert_eq!(&y[..h * d], &x[..h * d], "position 0 is the identity");
}

#[test]
fn rope_gradient_is_the_inverse_rotation() {
    let (t, h, d) = (4, 2, 8);
    let (x, g) = (normals(2, t * h * d, 1.0), normals(3, t * h * d, 1.0));
    let shape = [t as i64, h as i64, d as i64];
    let positions = [5, 0, 9, 2];
    let back = rotate(&g, shape, &positions, 10, true);
    let f = |x: &[f64]| {
        let y = rotate(x, shape, &positions, 10, false);
        y.iter().zip(&g).map(|(y, g)| y * g).sum::<f64>()
    };
    let worst = check_gradient(f, &x, &back, 1e-4);
    assert!(worst < 1e-8, "{worst}");
}

#[test]
fn rope_touches_only_its_part_of_a_fused_row() {
    executors().iter().for_each(|executor| touches_only_its_part(&executor.device));
}

fn touches_only_its_part(device: &Device) {
    // Rows of 20: two heads of query, then 12 elements that must stay.
    let data = f32s(&normals(4, 60, 1.0));
    let mut fused = data.clone();
    let (cos, sin) = tables(9, 4);
    let args = Rope {
        x: ViewMut::strided(&mut fused, &[3, 2, 4], &[20, 4, 1]).unwrap(),
        positions: View::new(&[8, 1, 2], &[3]).unwrap(),
        cos: View::rows_of(&cos, 2).unwrap(),
        sin: View::rows_of(&sin, 2).unwrap(),
        inverse: false,
    };
    rope(device, args).unwrap();
    let picked: Vec<f32> = data.chunks(20).flat_map(|row| row[..8].to_vec()).collect();
    let alone = rotate(&picked, [3, 2, 4], &[8, 1, 2], 9, false);
    for (row, (fused, data)) in fused.chunks(20).zip(data.chunks(20)).enumerate() {
        assert_eq!(bits(&fused[..8]), bits(&alone[row * 8..][..8]));
        assert_eq!(bits(&fused[8..]), bits(&data[8..]));
    }
}

#[test]
fn rope_does_not_depend_on_batch_or_threads() {
    let (t, h, d) = (300, 4, 32);
    let x = f32s(&normals(5, t * h * d, 1.0));
    let positions: Vec<i32> = (0..t as i32).map(|i| i * 7 % 40).collect();
    let all =
        same_on_any_pool(|| rotate(&x, [t as i64, h as i64, d as i64], &positions, 40, false));
    for i in [0, 17, 299] {
        let row = &x[i * h * d..][..h * d];
        let alone = rotate(row, [1, 4, 32], &positions[i..=i], 40, false);
        assert_eq!(bits(&alone), bits(&all[i * h * d..][..h * d]));
    }
}

proptest! {
    #[test]
    fn rope_keeps_norms_and_depends_on_distance(
        seed in 0u64..1000, p in 0i32..50, distance in 0i32..20, shift in 0i32..30,
    ) {
        let (x, y) = (normals(seed, 16, 1.0), normals(seed + 7919, 16, 1.0));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let turn = |x: &[f64], p: i32| rotate(x, [1, 1, 16], &[p], 100, false);
        let turned = turn(&x, p);
        // The tables are f32: c² + s² = 1 within 2^-23.
        prop_assert!((dot(&turned, &turned) / dot(&x, &x) - 1.0).abs() < 2e-7);
        let back = rotate(&turned, [1, 1, 16], &[p], 100, true);
        for (a, b) in back.iter().zip(&x) {
            prop_assert!((a - b).abs() <= 2e-7 * b.abs().max(1e-300) , "{} {}", a, b);
        }
        let here = dot(&turn(&x, p), &turn(&y, p + distance));
        let there = dot(&turn(&x, p + shift), &turn(&y, p + distance + shift));
        let size = (dot(&x, &x) * dot(&y, &y)).sqrt();
        prop_assert!((here - there).abs() <= 1e-6 * size, "{} {}", here, there);
    }
}

#[test]
fn rope_refuses_bad_input_and_writes_nothing() {
    let (cos, sin) = tables(4, 8);
    let table = || View::rows_of(&cos, 4).unwrap();
    let run =
        |shape: &[i64], strides: &[i64], positions: &[i32], c: View<'_, f32>, s: View<'_, f32>| {
            let mut x = vec![1f32; 64];
            let args = Rope {
                x: ViewMut::strided(&mut x, shape, strides).unwrap(),
                positions: positions.into(),
                cos: c,
                sin: s,
                inverse: false,
            };
            let result = rope(&CPU, args);
            assert!(result.is_ok() || x.iter().all(|&x| x == 1.0));
            result
        };
    let (shape, strides) = ([2, 2, 8], [16, 8, 1]);
    run(&shape, &strides, &[0, 3], table(), table()).unwrap();
    refused_with(run(&[4, 8], &[8, 1], &[0, 3], table(), table()), "x", "rank 3");
    refused_with(run(&[2, 2, 7], &[16, 8, 1], &[0, 3], table(), table()), "x", "even");
    refused_with(run(&[2, 2, 0], &[16, 8, 1], &[0, 3], table(), table()), "x", "even");
    refused_with(run(&[2, 2, 8], &[1, 2, 4], &[0, 3], table(), table()), "x", "contiguous");
    refused_with(run(&shape, &strides, &[0], table(), table()), "positions", "[2]");
    refused_with(run(&shape, &strides, &[0, 4], table(), table()), "positions", "4 at index 1");
    refused_with(run(&shape, &strides, &[-1, 0], table(), table()), "positions", "0..4");
    let narrow = View::new(&cos, &[4, 3]).unwrap();
    refused_with(run(&shape, &strides, &[0, 3], narrow, table()), "cos", "[4, 4]");
    let short = View::new(&sin, &[3, 4]).unwrap();
    refused_with(run(&shape, &strides, &[0, 3], table(), short), "sin", "[4, 4]");
}

fn rotations<T: Float>() {
    let (t, heads, d) = (5, 3, 8);
    let (x, table) = (random::<T>(3, t * heads * d), random::<f32>(4, 9 * d));
    let positions = [0i32, 8, 3, 3, 1];
    let run = |device: &Device| {
        let mut x = x.clone();
        let args = Rope {
            x: ViewMut::new(&mut x, &[t as i64, heads as i64, d as i64]).unwrap(),
            positions: positions[..].into(),
            cos: View::new(&table, &[9, d as i64 / 2]).unwrap(),
            sin: View::new(&table[9 * d / 2..], &[9, d as i64 / 2]).unwrap(),
            inverse: false,
        };
        rope(device, args).unwrap();
        bits_of(&x)
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {}", T::DTYPE.name()));
}

#[test]
fn rope_in_other_dtypes_has_the_bits_of_the_cpu() {
    rotations::<f16>();
    rotations::<bf16>();
    rotations::<f64>();
}
