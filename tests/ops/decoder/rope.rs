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

/// Queries and keys in one launch, and keys and values in a cache: the bits of one call for each.
fn stored<T: Float>([tokens, heads, kv_heads, d]: [usize; 4], gap: usize) {
    let (rows, width) = (9, kv_heads * d);
    let positions: Vec<i32> = (0..tokens).map(|t| (t * 5 % 11) as i32).collect();
    let places: Vec<i32> =
        (0..tokens).map(|t| if t % 4 == 2 { -1 } else { t as i32 + 1 }).collect();
    let (cos, sin) = tables(11, d);
    let (cos, sin) = (View::rows_of(&cos, d / 2).unwrap(), View::rows_of(&sin, d / 2).unwrap());
    let fused = (heads + kv_heads) * d + gap;
    let (x, v) = (random::<T>(1, tokens * fused), random::<T>(2, tokens * width));
    let held = random::<T>(3, rows * width);
    let part = |x: &mut [T], first: usize, heads: usize| {
        let (shape, strides) = ([tokens, heads, d].map(|n| n as i64), [fused as i64, d as i64, 1]);
        // SAFETY: queries and keys are different columns of x, which outlives both views.
        let x =
            unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().add(first), x.len() - first) };
        ViewMut::strided(x, &shape, &strides).unwrap()
    };
    for cached in [true, false] {
        let run = |device: &Device, together: bool| {
            let (mut x, mut keys, mut values) = (x.clone(), held.clone(), held.clone());
            let (q, k) = (part(&mut x, 0, heads), part(&mut x, heads * d, kv_heads));
            let (positions, rows) = ((&positions).into(), (&places).into());
            let v = View::rows_of(&v, width).unwrap();
            if together {
                let (keys, values) = (
                    ViewMut::rows_of(&mut keys, width).unwrap(),
                    ViewMut::rows_of(&mut values, width).unwrap(),
                );
                let cache = cached.then_some(CacheRows { v, rows, keys, values });
                rope_store(device, RopeStore { q, k, positions, cos, sin, cache }).unwrap();
            } else {
                rope(device, Rope { x: q, positions, cos, sin, inverse: false }).unwrap();
                rope(device, Rope { x: k, positions, cos, sin, inverse: false }).unwrap();
                let key_rows = View::strided(
                    &x[heads * d..],
                    &[tokens as i64, width as i64],
                    &[fused as i64, 1],
                );
                for (x, y) in [(key_rows.unwrap(), &mut keys), (v, &mut values)] {
                    let y = ViewMut::rows_of(y, width).unwrap();
                    let args = CopyRows { x, from_rows: None, to_rows: Some(rows), y };
                    if cached {
                        copy_rows(device, args).unwrap();
                    }
                }
            }
            (bits_of(&x), bits_of(&keys), bits_of(&values))
        };
        let want = run(&CPU, false);
        assert!(run(&CPU, true) == want);
        on_all(|device| run(device, true), |name, cpu, gpu| assert!(cpu == gpu, "{name}"));
        on_all(|device| run(device, false), |name, cpu, gpu| assert!(cpu == gpu, "{name}"));
    }
}

#[test]
fn rotating_and_storing_has_the_bits_of_one_call_for_each() {
    // Pieces of 16 bytes; heads that are none; rows that begin anywhere.
    stored::<bf16>([7, 4, 2, 64], 0);
    stored::<f32>([3, 2, 1, 10], 0);
    stored::<f16>([5, 3, 3, 32], 3);
    stored::<f64>([1, 1, 1, 4], 0);
}

#[test]
fn rotating_and_storing_refuses_bad_input() {
    let (cos, sin) = tables(4, 4);
    let run = |rows: &[i32], width: usize, apart: i64| {
        let (mut q, mut k, v) = (vec![7f32; 16], vec![7f32; 40], vec![1f32; 2 * width]);
        let (mut keys, mut values) = (vec![7f32; 3 * 8], vec![7f32; 3 * 8]);
        let args = RopeStore {
            q: ViewMut::new(&mut q, &[2, 2, 4]).unwrap(),
            k: ViewMut::strided(&mut k, &[2, 2, 4], &[20, apart, 1]).unwrap(),
            positions: View::new(&[0, 3], &[2]).unwrap(),
            cos: View::rows_of(&cos, 2).unwrap(),
            sin: View::rows_of(&sin, 2).unwrap(),
            cache: Some(CacheRows {
                v: View::rows_of(&v, width).unwrap(),
                rows: rows.into(),
                keys: ViewMut::rows_of(&mut keys, 8).unwrap(),
                values: ViewMut::rows_of(&mut values, 8).unwrap(),
            }),
        };
        let result = rope_store(&CPU, args);
        assert!(result.is_ok() || q.iter().chain(&k).chain(&keys).all(|&x| x == 7.0));
        result
    };
    run(&[2, 0], 8, 4).unwrap();
    refused_with(run(&[2, 0], 4, 4), "cache.v", "[2, 8]");
    refused_with(run(&[3, 0], 8, 4), "cache.rows", "0..3");
    refused_with(run(&[1, 1], 8, 4), "cache.rows", "distinct");
    refused_with(run(&[1], 8, 4), "cache.rows", "[2]");
    refused_with(run(&[2, 0], 8, 8), "k", "side by side");
}
