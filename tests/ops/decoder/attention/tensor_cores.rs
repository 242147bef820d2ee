//! Attention in bf16 and f16: the f64 oracle within the documented bound component by component, and
//! a query row's bits in every way of computing it.

use std::sync::Arc;

use super::layout::{Layout, Oracle, check_chunks, forward};
use crate::common::devices::{Executor, executors};
use crate::common::{bits, bits_of, normals};
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::{DType, Float};
use gradus::ops::{Attention, KvRows, attention};
use gradus::{Device, View, ViewMut, bf16, f16};
use gradus_emu::{Counters, Numerics, Options};

const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Unit roundoff of the dtype.
fn unit<T: Float>() -> f64 {
    if T::DTYPE == DType::Bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
}

fn narrowed<T: Float>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

fn widened<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn layouts() -> Vec<Layout> {
    vec![
        Layout::packed(&[1, 0, 7, 40, 2], 4, 2, 64),
        Layout::packed(&[150, 3], 2, 1, 16),
        Layout::with_keys(&[1, 1, 1], &[130, 1, 64], 8, 2, 128),
        Layout::with_keys(&[5, 0, 3, 0], &[70, 4, 3, 0], 66, 1, 96),
        Layout::with_keys(&[9, 2], &[77, 65], 3, 3, 112),
        Layout::packed(&[20, 9], 5, 1, 32),
        Layout::with_prefixes(
            &[70, 3, 9],
            &[70, 66, 72],
            &[[0, 0], [0, 63], [0, 63]],
            0,
            [4, 2, 64],
        ),
    ]
}

fn check_bound<T: Float>(name: &str, device: &Device) -> f64 {
    let mut worst = 0.0f64;
    for (n, l) in layouts().iter().enumerate() {
        let [q, k, v] = l.random(100 * n as u64).map(|x| narrowed::<T>(&x));
        let (o, lse) = forward(device, l, [&q, &k, &v]);
        let [q, k, v] = [&q, &k, &v].map(|x| widened(x));
        for (b, t, seen) in l.each() {
            for h in 0..l.heads {
                let row = Oracle::of(l, [&q, &k], (b, t, h), seen);
                let eps = (1.25 * l.d as f64 + 5.0) * U * row.size;
                let got = lse[t * l.heads + h] as f64;
                let bound = eps + U * (24.0 + row.lse.abs());
                assert!((got - row.lse).abs() <= bound, "{name} {n}: lse {got} for {}", row.lse);
                let sums = (120.0 + seen as f64 / 64.0) * U;
                for c in 0..l.d {
                    let v = |j: usize| l.k_row(&v, l.key_row(b, j), h)[c];
                    let sum = |f: &dyn Fn(usize) -> f64| (0..seen).map(|j| row.p[j] * f(j)).sum();
                    let (want, size): (f64, f64) = (sum(&v), sum(&|j| v(j).abs()));
                    let most = (0..seen).fold(0.0f64, |m, j| m.max(v(j).abs()));
                    let tail = seen as f64 * most * 2f64.powi(-54);
                    let bound =
                        (2.0 * eps + unit::<T>() + sums) * size + unit::<T>() * want.abs() + tail;
                    let error = (l.q_row(&o, t, h)[c].to_f64() - want).abs();
                    assert!(
                        error <= bound,
                        "{name} layout {n} token {t} head {h}: {error} > {bound}"
                    );
                    worst = worst.max(error / bound);
                }
            }
        }
    }
    worst
}

/// All executors, and the emulator with the truncated sums of real tensor cores.
fn with_truncation() -> Vec<Executor> {
    let cut = [Numerics::Ampere, Numerics::Hopper].map(|numerics| {
        let driver = EmuDriver::new().with_options(Options { numerics, ..Options::default() });
        let device = Device::Gpu(Arc::new(Gpu::new(Arc::new(driver)).unwrap()));
        Executor { name: format!("emu {numerics:?}"), device }
    });
    executors().into_iter().chain(cut).collect()
}

#[test]
fn attention_in_halves_is_within_its_documented_bound() {
    for executor in with_truncation() {
        let worst = check_bound::<bf16>(&executor.name, &executor.device);
        assert!(worst > 0.05, "{}: a bound that nothing comes near: {worst}", executor.name);
        let worst = check_bound::<f16>(&executor.name, &executor.device);
        assert!(worst > 0.05, "{}: a bound that nothing comes near: {worst}", executor.name);
    }
}

/// Keys of five sequences, and rows of their slots in a cache.
const CACHE: ([usize; 5], usize) = ([3, 0, 21, 75, 1], 80);

#[test]
fn attention_in_halves_has_the_same_bits_in_training_prefill_and_decoding() {
    for executor in executors() {
        check_chunks::<bf16>(&executor.device, [4, 2, 64], CACHE, &[1, 7, 64]);
        check_chunks::<bf16>(&executor.device, [17, 1, 16], CACHE, &[1, 7, 64]);
        check_chunks::<f16>(&executor.device, [3, 1, 80], CACHE, &[1, 7, 64]);
    }
}

/// Infinite and NaN values of later keys do not reach the rows that do not see them, though they share
/// a tile.
fn check_hidden<T: Float>(name: &str, device: &Device) {
    let l = Layout::packed(&[90, 30], 2, 1, 64);
    let [q, mut k, mut v] = l.random(5).map(|x| narrowed::<T>(&x));
    let (before, _) = forward(device, &l, [&q, &k, &v]);
    for (key, bad) in [(80, f64::INFINITY), (81, f64::NAN), (85, f64::NEG_INFINITY), (119, 1.0)] {
        v[key * 64 + 3] = T::from_f64(bad);
        k[key * 64] = T::from_f64(f64::NAN);
    }
    let (after, _) = forward(device, &l, [&q, &k, &v]);
    let (from, to) = (80 * 128, 90 * 128);
    assert_eq!(bits_of(&before[..from]), bits_of(&after[..from]), "{name}");
    assert!(after[from..to].iter().all(|x| x.to_f64().is_nan()), "{name}: visible from there on");
    assert_eq!(bits_of(&before[to..119 * 128]), bits_of(&after[to..119 * 128]), "{name}");
    // A finite key with an infinite value: one column of the rows that see it.
    let [q, k, mut v] = l.random(5).map(|x| narrowed::<T>(&x));
    v[70 * 64 + 9] = T::from_f64(f64::INFINITY);
    let (after, _) = forward(device, &l, [&q, &k, &v]);
    for (i, (b, a)) in before.iter().zip(&after).enumerate() {
        let (token, c) = (i / 128, i % 64);
        if (70..90).contains(&token) && c == 9 {
            assert_eq!(a.to_f64(), f64::INFINITY, "{name} token {token}");
        } else {
            assert_eq!(b.to_f64().to_bits(), a.to_f64().to_bits(), "{name} token {token} {c}");
        }
    }
}

#[test]
fn attention_in_halves_never_reads_hidden_keys() {
    for executor in executors() {
        check_hidden::<bf16>(&executor.name, &executor.device);
        check_hidden::<f16>(&executor.name, &executor.device);
    }
}

/// Rows of a fused projection, begun anywhere and with any stride, give the bits of packed rows; what
/// lies around the outputs is left alone.
#[test]
fn attention_in_halves_reads_fused_rows_and_keeps_guards() {
    for executor in executors() {
        for (shift, gap) in [(0, 0), (1, 0), (8, 3), (8, 8)] {
            check_fused(&executor.device, shift, gap);
        }
    }
}

fn check_fused(device: &Device, shift: usize, gap: usize) {
    let (t, heads, kv_heads, d) = (19, 4, 2, 48);
    let l = Layout::packed(&[12, 7], heads, kv_heads, d);
    let width = (heads + 2 * kv_heads) * d + gap;
    let fused = narrowed::<bf16>(&normals(8, shift + t * width, 1.0));
    let part = |from: usize, n: usize| -> Vec<bf16> {
        let rows = fused[shift..].chunks(width);
        rows.flat_map(|row| row[from * d..(from + n) * d].to_vec()).collect()
    };
    let (q, k, v) = (part(0, 4), part(4, 2), part(6, 2));
    let (want, want_lse) = forward(device, &l, [&q, &k, &v]);
    let [cu, start, len] = l.offsets();
    let view = |from: usize, n: i64| {
        let strides = [width as i64, d as i64, 1];
        View::strided(&fused[shift + from * d..], &[t as i64, n, d as i64], &strides).unwrap()
    };
    let (head, row) = (d + gap, heads * (d + gap) + gap);
    let mut buffer = vec![bf16::from_f32(-5.0); shift + t * row];
    let mut lse = vec![-5f32; t * 5];
    let args = Attention {
        q: view(0, 4),
        k: view(4, 2),
        v: view(6, 2),
        cu_seqlens: (&cu).into(),
        kv_rows: KvRows::From((&start).into()),
        kv_len: (&len).into(),
        scale: l.scale(),
        o: ViewMut::strided(&mut buffer[shift..], &l.q_shape(), &[row as i64, head as i64, 1])
            .unwrap(),
        lse: Some(ViewMut::strided(&mut lse, &[19, 4], &[5, 1]).unwrap()),
    };
    attention(device, args).unwrap();
    let guard = |x: &[bf16]| x.iter().all(|x| x.to_f32() == -5.0);
    assert!(guard(&buffer[..shift]));
    for (i, rows) in buffer[shift..].chunks(row).enumerate() {
        for h in 0..heads {
            let got = &rows[h * head..][..head];
            assert_eq!(bits_of(&got[..d]), bits_of(&want[(i * heads + h) * d..][..d]));
            assert!(guard(&got[d..]));
        }
        assert!(guard(&rows[heads * head..]));
        assert_eq!(bits(&lse[i * 5..i * 5 + 4]), bits(&want_lse[i * 4..i * 4 + 4]));
        assert_eq!(lse[i * 5 + 4], -5.0);
    }
}

/// Counters of the forward pass, with every operand on the device.
fn counted<T: Float>(set: KernelSet, l: &Layout) -> Counters {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    let [q, k, v] = l.random(1).map(|x| narrowed::<T>(&x));
    forward(&Device::Gpu(Arc::new(gpu)), l, [&q, &k, &v]);
    let launches = driver.take_launches();
    assert_eq!(launches.len(), 1);
    launches[0].1.clone()
}

/// Products that the forward pass needs: for every warp of 16 rows and every block of 64 keys that one
/// of them sees, two products m16n8k16 for each 8 keys and 16 columns.
fn products(l: &Layout, width: usize) -> usize {
    let group = l.heads / l.kv_heads;
    let blocks = |(&queries, &keys): (&usize, &usize)| -> usize {
        let last = |row: usize| (row + 15).min(queries * group - 1) / group;
        (0..queries * group)
            .step_by(16)
            .map(|row| (keys - queries + last(row) + 1).div_ceil(64))
            .sum()
    };
    l.kv_heads * width * l.queries.iter().zip(&l.keys).map(blocks).sum::<usize>()
}

#[test]
fn attention_in_halves_counts_what_it_should() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for (l, width) in [
            (Layout::packed(&[150, 0, 3], 4, 2, 64), 64),
            (Layout::with_keys(&[1, 1], &[200, 7], 8, 2, 128), 128),
            (Layout::with_keys(&[40], &[90], 3, 1, 80), 96),
        ] {
            let c = counted::<bf16>(set, &l);
            assert_eq!(c.mma as usize, products(&l, width));
            assert_eq!(c.local_accesses, 0);
            let ratio = c.shared_wavefronts as f64 / c.shared_wavefronts_ideal as f64;
            // 12 chunks of a row do not fill two phases of 8 lanes.
            assert!(ratio <= if width == 96 { 1.1 } else { 1.0 }, "wavefronts {ratio}");
        }
    }
}
