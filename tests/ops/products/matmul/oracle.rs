//! Matrix products: an f64 oracle with the componentwise bound, the order of every sum, gradients by
//! central differences and by adjoints, strides, threads, bad input.

use crate::common::devices::{executors, on_all};
use crate::common::{bits, check_gradient, in_pool};
use crate::products::support::*;
use gradus::dtype::Float;
use gradus::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, lora_grad, matmul, matmul_dw, matmul_dx,
};
use gradus::{DType, Device, View, ViewMut, bf16, f16};
use proptest::prelude::*;

/// Extents that are 1, prime, a power of two or one off, and beyond one panel, tile and block.
const LATTICE: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 33, 129],
    [2, 17, 3],
    [3, 5, 7],
    [5, 31, 128],
    [6, 32, 127],
    [7, 64, 256],
    [13, 1, 257],
    [31, 63, 65],
    [64, 16, 64],
    [65, 97, 130],
    [97, 100, 1],
    [128, 65, 383],
    [600, 35, 40],
];

/// Half a unit in the last place of `T` at `x`.
fn half_ulp<T: Float>(x: f64) -> f64 {
    let (bits, lowest) = match T::DTYPE {
        DType::Bf16 => (8, -126),
        DType::F16 => (11, -14),
        _ => (24, -126),
    };
    2f64.powi(x.abs().max(2f64.powi(lowest)).log2().floor() as i32 - bits)
}

/// Largest error of `forward` as a share of the bound (⌈K/16⌉ + ⌈r/16⌉ + 6)·2^-24·Σ|terms| + half an ulp, with
/// ⌈K/16⌉ + 5 more for the terms of the adapter.
fn share_of_bound<T: Float>(extents: [usize; 3], rank: usize) -> f64 {
    let [m, n, k] = extents;
    let (x, w) = (random::<T>(1, m * k), random::<T>(2, n * k));
    let bias = random::<T>(3, n);
    let adapter = adapter::<T>(4, [n, k, rank], 0.5);
    let lora = [adapter.view([n, k, rank])];
    let y = forward(extents, &x, &w, Some(&bias), &lora, None);
    let unit = 2f64.powi(-24);
    let mut worst = 0.0f64;
    for i in 0..m {
        let s: Vec<(f64, f64)> = (0..rank)
            .map(|q| dot(k, |p| x[i * k + p].to_f64(), |p| adapter.a[q * k + p].to_f64()))
            .collect();
        for j in 0..n {
            let (base, base_size) = dot(k, |p| x[i * k + p].to_f64(), |p| w[j * k + p].to_f64());
            let b = |q: usize| adapter.b[j * rank + q].to_f64();
            let (low, _) = dot(rank, |q| adapter.scale * s[q].0, b);
            let (low_size, _) = dot(rank, |q| adapter.scale * s[q].1, |q| b(q).abs());
            let want = base + low + bias[j].to_f64();
            let size = base_size + low_size + bias[j].to_f64().abs();
            // A chain of each lane, four additions of lanes, the bias, and one for products of errors. The
            // low-rank term passes through two of them, but only the adapter's part of the second.
            let (base, up) = (k.div_ceil(16), rank.div_ceil(16));
            let steps = (base + up + 6) as f64;
            let bound = steps * unit * (base_size + bias[j].to_f64().abs())
                + (base + 5 + up + 6) as f64 * unit * low_size
                + half_ulp::<T>(want.abs() + steps * unit * size);
            worst = worst.max((y[i * n + j].to_f64() - want).abs() / bound);
        }
    }
    worst
}

#[test]
fn matmul_is_within_the_componentwise_bound() {
    for extents in LATTICE {
        for rank in [1, 3, 16] {
            let f32_share = share_of_bound::<f32>(extents, rank);
            assert!(f32_share <= 1.0, "f32 {extents:?} rank {rank}: {f32_share}");
            let bf16_share = share_of_bound::<bf16>(extents, rank);
            assert!(bf16_share <= 1.0, "bf16 {extents:?} rank {rank}: {bf16_share}");
            let f16_share = share_of_bound::<f16>(extents, rank);
            assert!(f16_share <= 1.0, "f16 {extents:?} rank {rank}: {f16_share}");
        }
    }
}

/// The promise itself: chains of lanes and their tree written out in scalar code give the same bits.
fn check_lanes<T: Float>(extents: [usize; 3], rank: usize) {
    let [m, n, k] = extents;
    let (x, w, bias) = (random::<T>(1, m * k), random::<T>(2, n * k), random::<T>(3, n));
    let adapter = adapter::<T>(4, [n, k, rank], 0.3);
    let lora = [adapter.view([n, k, rank])];
    let y = forward_on(&CPU, extents, &x, &w, Some(&bias), &lora, None);
    let want = forward_in_order(Order::Lanes, extents, &x, &w, Some(&bias), &lora, None);
    assert!(exact_bits(&y) == exact_bits(&want), "{extents:?} {rank} {:?}", T::DTYPE);
}

#[test]
fn each_element_is_sixteen_chains_and_their_tree() {
    for extents in LATTICE {
        for rank in [5, 16] {
            check_lanes::<f32>(extents, rank);
            check_lanes::<bf16>(extents, rank);
            check_lanes::<f16>(extents, rank);
            check_lanes::<f64>(extents, rank);
        }
    }
    for m in [1, 3, 9] {
        check_lanes::<f32>([m, 40, 1500], 17);
        check_lanes::<bf16>([m, 40, 1504], 33);
    }
}

/// Row counts around tiles, bands and chunks.
const COUNTS: [usize; 20] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 33, 64, 65, 128, 256, 300, 520];

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_position() {
    any_batch_and_position::<f32>(523);
    any_batch_and_position::<f32>(48);
    any_batch_and_position::<bf16>(528);
    any_batch_and_position::<f16>(40);
    any_batch_and_position::<f64>(50);
}

fn any_batch_and_position<T: Float>(k: usize) {
    let (n, r, most) = (69, 3, 520);
    let (x, w) = (random::<T>(1, most * k), random::<T>(2, n * k));
    let dy = random::<T>(3, most * n);
    let adapters = [adapter::<T>(4, [n, k, r], 0.5), adapter(6, [n, k, r], -2.0)];
    let lora = adapters.each_ref().map(|a| a.view([n, k, r]));
    let index: Vec<i32> = (0..most).map(|i| (i * 7 % 3) as i32 - 1).collect();
    let alone = |i: usize| {
        let index = &index[i..=i];
        let y = forward_on(&CPU, [1, n, k], &x[i * k..][..k], &w, None, &lora, Some(index));
        (y, backward_on(&CPU, [1, n, k], &dy[i * n..][..n], &w, &lora, Some(index)))
    };
    let (ys, dxs): (Vec<_>, Vec<_>) = (0..most).map(alone).unzip();
    for m in COUNTS {
        for first in [0, (most - m) / 2, most - m] {
            let (x, dy) = (&x[first * k..][..m * k], &dy[first * n..][..m * n]);
            let index = &index[first..][..m];
            let y = forward_on(&CPU, [m, n, k], x, &w, None, &lora, Some(index));
            let what = format!("{m} rows from {first}, {k} {:?}", T::DTYPE);
            assert!(exact_bits(&y) == exact_bits(&ys[first..][..m].concat()), "y of {what}");
            let dx = backward_on(&CPU, [m, n, k], dy, &w, &lora, Some(index));
            assert!(exact_bits(&dx) == exact_bits(&dxs[first..][..m].concat()), "dx of {what}");
        }
    }
}

/// Every output of a layer's step: y, s, dx, dw, dbias, da, db.
fn layer_step([m, n, k]: [usize; 3], r: usize) -> Vec<Vec<u32>> {
    let (x, w, dy) = (random::<f32>(1, m * k), random(2, n * k), random::<f32>(3, m * n));
    let adapter = adapter::<f32>(4, [n, k, r], 0.5);
    let lora = [adapter.view([n, k, r])];
    let (mut y, mut s) = (vec![f32::NAN; m * n], vec![f32::NAN; m * r]);
    let args = Matmul {
        x: View::rows_of(&x, k).unwrap(),
        w: View::rows_of(&w, k).unwrap(),
        bias: None,
        lora: &lora,
        adapter: None,
        s: Some(ViewMut::rows_of(&mut s, r).unwrap()),
        residual: None,
        y: ViewMut::rows_of(&mut y, n).unwrap(),
    };
    matmul(&CPU, args).unwrap();
    let dx = backward([m, n, k], &dy, &w, &lora, None);
    let (dw, dbias) = weight_gradient([m, n, k], &dy, &x);
    let (da, db) = adapter_gradient([m, n, k], &x, &dy, &s, lora[0], None, 0);
    [y, s, dx, dw, dbias, da, db].iter().map(|out| bits(out)).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for extents in [[1, 700, 900], [67, 130, 300], [530, 70, 90]] {
        let one = in_pool(1, || layer_step(extents, 5));
        for threads in [2, 4, 7] {
            assert!(in_pool(threads, || layer_step(extents, 5)) == one, "{extents:?} {threads}");
        }
    }
}

/// (row, adapter) pairs of a small layer with two adapters, in f64.
struct Layer {
    x: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
    dy: Vec<f64>,
    adapters: [Adapter<f64>; 2],
    index: Vec<i32>,
}

const SMALL: [usize; 3] = [7, 5, 9];
const RANK: usize = 2;
const SMALL_LORA: [usize; 3] = [SMALL[1], SMALL[2], RANK];

fn layer() -> Layer {
    let [m, n, k] = SMALL;
    Layer {
        x: random(1, m * k),
        w: random(2, n * k),
        bias: random(3, n),
        dy: random(4, m * n),
        adapters: [adapter(5, SMALL_LORA, 0.5), adapter(7, SMALL_LORA, -1.5)],
        index: (0..m).map(|i| (i * 2 % 3) as i32 - 1).collect(),
    }
}

impl Layer {
    fn y(&self) -> Vec<f64> {
        let lora = self.adapters.each_ref().map(|a| a.view(SMALL_LORA));
        forward(SMALL, &self.x, &self.w, Some(&self.bias), &lora, Some(&self.index))
    }

    /// <y, dy> as a function of what `set` changes.
    fn loss(&self, set: impl Fn(&mut Layer, &[f64]), value: &[f64]) -> f64 {
        let mut changed = layer();
        set(&mut changed, value);
        inner(&changed.y(), &self.dy)
    }
}

#[test]
fn adapters_add_to_the_weight() {
    let ([m, n, k], layer) = (SMALL, layer());
    let y = layer.y();
    for i in 0..m {
        let adapter = usize::try_from(layer.index[i]).ok().map(|a| &layer.adapters[a]);
        for j in 0..n {
            let weight = |p: usize| {
                let low = adapter.map_or(0.0, |l| {
                    let pairs = (0..RANK).map(|q| l.b[j * RANK + q] * l.a[q * k + p]);
                    l.scale * pairs.sum::<f64>()
                });
                layer.w[j * k + p] + low
            };
            let (want, size) = dot(k, |p| layer.x[i * k + p], weight);
            let error = (y[i * n + j] - want - layer.bias[j]).abs();
            assert!(error <= 1e-14 * (1.0 + size), "({i}, {j}): {error}");
        }
    }
}

#[test]
fn dx_is_the_adjoint_of_the_forward_pass() {
    let layer = layer();
    let lora = layer.adapters.each_ref().map(|a| a.view(SMALL_LORA));
    let y = forward(SMALL, &layer.x, &layer.w, None, &lora, Some(&layer.index));
    let dx = backward(SMALL, &layer.dy, &layer.w, &lora, Some(&layer.index));
    let (left, right) = (inner(&y, &layer.dy), inner(&layer.x, &dx));
    assert!((left - right).abs() < 1e-12 * left.abs(), "{left} {right}");
}

#[test]
fn gradients_match_central_differences() {
    let (layer, [m, n, k], step) = (layer(), SMALL, 1e-4);
    let lora = layer.adapters.each_ref().map(|a| a.view(SMALL_LORA));
    let dx = backward(SMALL, &layer.dy, &layer.w, &lora, Some(&layer.index));
    let f = |v: &[f64]| layer.loss(|l, v| l.x = v.to_vec(), v);
    let worst = check_gradient(f, &layer.x, &dx, step);
    assert!(worst < 1e-8, "dx: {worst}");

    let wide = |g: Vec<f32>| g.into_iter().map(f64::from).collect::<Vec<_>>();
    let (dw, dbias) = weight_gradient(SMALL, &layer.dy, &layer.x);
    let f = |v: &[f64]| layer.loss(|l, v| l.w = v.to_vec(), v);
    let worst = check_gradient(f, &layer.w, &wide(dw), step);
    assert!(worst < 1e-6, "dw: {worst}");
    let f = |v: &[f64]| layer.loss(|l, v| l.bias = v.to_vec(), v);
    let worst = check_gradient(f, &layer.bias, &wide(dbias), step);
    assert!(worst < 1e-6, "dbias: {worst}");

    let mut s = vec![f32::NAN; m * RANK];
    let mut y = vec![0.0; m * n];
    let args = Matmul {
        x: View::rows_of(&layer.x, k).unwrap(),
        w: View::rows_of(&layer.w, k).unwrap(),
        bias: None,
        lora: &lora,
        adapter: Some((&layer.index).into()),
        s: Some(ViewMut::rows_of(&mut s, RANK).unwrap()),
        residual: None,
        y: ViewMut::rows_of(&mut y, n).unwrap(),
    };
    matmul(&CPU, args).unwrap();
    for (i, lora) in lora.into_iter().enumerate() {
        let (x, dy, index) = (&layer.x, &layer.dy, Some(layer.index.as_slice()));
        let (da, db) = adapter_gradient(SMALL, x, dy, &s, lora, index, i as i32);
        let f = |v: &[f64]| layer.loss(|l, v| l.adapters[i].a = v.to_vec(), v);
        let worst = check_gradient(f, &layer.adapters[i].a, &wide(da), step);
        assert!(worst < 1e-6, "da of {i}: {worst}");
        check_db(&layer, i, &s, &db);
    }
}

/// db against slopes of the loss, which is linear in b. S arrives rounded to f32, so db may be off
/// by half an ulp of each term, and by its own rounding.
fn check_db(layer: &Layer, adapter: usize, s: &[f32], db: &[f32]) {
    let [m, n, _] = SMALL;
    let f = |v: &[f64]| layer.loss(|l, v| l.adapters[adapter].b = v.to_vec(), v);
    for at in 0..db.len() {
        let mut b = layer.adapters[adapter].b.clone();
        b[at] += 0.5;
        let up = f(&b);
        b[at] -= 1.0;
        let slope = up - f(&b);
        let (j, q) = (at / RANK, at % RANK);
        let size: f64 = (0..m)
            .filter(|&i| layer.index[i] == adapter as i32)
            .map(|i| (layer.dy[i * n + j] * s[i * RANK + q] as f64).abs())
            .sum();
        let bound = 2f64.powi(-24) * (size + slope.abs()) + 1e-12;
        let error = (db[at] as f64 - slope).abs();
        assert!(size > 0.0 && error <= bound, "db of {adapter} at {at}: {error} over {bound}");
    }
}

#[test]
fn an_adapter_of_zeros_is_the_base_model_bit_for_bit() {
    let ([m, n, k], r) = ([37, 45, 130], 4);
    let (x, w) = (random::<f32>(1, m * k), random::<f32>(2, n * k));
    let mut fresh = adapter::<f32>(3, [n, k, r], 2.0);
    fresh.b.fill(0.0);
    let base = forward([m, n, k], &x, &w, None, &[], None);
    let adapted = forward([m, n, k], &x, &w, None, &[fresh.view([n, k, r])], None);
    assert_eq!(bits(&base), bits(&adapted));
}

/// Rows of -1 and rows of another adapter never touch an adapter: not even its NaN reaches them.
#[test]
fn rows_see_their_own_adapter_only() {
    let ([m, n, k], r) = ([29, 40, 70], 3);
    let (x, w, dy) = (random::<f32>(1, m * k), random::<f32>(2, n * k), random::<f32>(3, m * n));
    let mut broken = adapter::<f32>(4, [n, k, r], 1.0);
    broken.a.fill(f32::NAN);
    broken.b.fill(f32::INFINITY);
    let good = adapter::<f32>(6, [n, k, r], 0.7);
    let lora = [broken.view([n, k, r]), good.view([n, k, r])];
    let index: Vec<i32> = (0..m).map(|i| [1, -1, 0, 1, -1][i % 5]).collect();
    let y = forward([m, n, k], &x, &w, None, &lora, Some(&index));
    let dx = backward([m, n, k], &dy, &w, &lora, Some(&index));
    for i in 0..m {
        let (x, dy) = (&x[i * k..][..k], &dy[i * n..][..n]);
        let (y, dx) = (&y[i * n..][..n], &dx[i * k..][..k]);
        let own: &[Lora<'_, f32>] = match index[i] {
            -1 => &[],
            0 => {
                assert!(y.iter().chain(dx).all(|v| v.is_nan()), "row {i} hides its adapter's NaN");
                continue;
            }
            _ => &lora[1..],
        };
        assert_eq!(bits(y), bits(&forward([1, n, k], x, &w, None, own, None)), "y of row {i}");
        assert_eq!(bits(dx), bits(&backward([1, n, k], dy, &w, own, None)), "dx of row {i}");
    }
    let s = vec![0.5f32; m * r];
    let (da, db) = adapter_gradient([m, n, k], &x, &dy, &s, lora[1], Some(&index), 1);
    let rows: Vec<usize> = (0..m).filter(|&i| index[i] == 1).collect();
    let pick = |v: &[f32], width: usize| -> Vec<f32> {
        rows.iter().flat_map(|&i| v[i * width..][..width].to_vec()).collect()
    };
    let (x, dy, s) = (pick(&x, k), pick(&dy, n), pick(&s, r));
    let alone = adapter_gradient([rows.len(), n, k], &x, &dy, &s, lora[1], None, 0);
    assert_eq!((bits(&da), bits(&db)), (bits(&alone.0), bits(&alone.1)));
}

#[test]
fn gradients_are_added_to_what_is_there() {
    let ([m, n, k], r) = ([9, 34, 40], 3);
    let (x, w, dy) = (random::<bf16>(1, m * k), random(2, n * k), random::<bf16>(3, m * n));
    let old = random::<bf16>(4, m * k);
    let mut dx = old.clone();
    let args = MatmulDx {
        dy: View::rows_of(&dy, n).unwrap(),
        w: View::rows_of(&w, k).unwrap(),
        lora: &[],
        adapter: None,
        accumulate: true,
        dx: ViewMut::rows_of(&mut dx, k).unwrap(),
    };
    matmul_dx(&CPU, args).unwrap();
    for i in 0..m {
        for p in 0..k {
            let sum =
                (0..n).fold(0f32, |c, j| dy[i * n + j].to_f32().mul_add(w[j * k + p].to_f32(), c));
            let want = bf16::from_f32(old[i * k + p].to_f32() + sum);
            assert_eq!(dx[i * k + p], want, "({i}, {p})");
        }
    }
    let (first, _) = weight_gradient([m, n, k], &dy, &x);
    let (mut dw, old) = (vec![0.25f32; n * k], 0.25f32);
    let args = MatmulDw {
        dy: View::rows_of(&dy, n).unwrap(),
        x: View::rows_of(&x, k).unwrap(),
        dw: ViewMut::rows_of(&mut dw, k).unwrap(),
        dbias: None,
    };
    matmul_dw(&CPU, args).unwrap();
    assert!(dw.iter().zip(&first).all(|(dw, first)| *dw == old + first));

    let (s, adapter) = (random::<f32>(5, m * r), adapter::<bf16>(6, [n, k, r], 0.5));
    let lora = adapter.view([n, k, r]);
    let once = adapter_gradient([m, n, k], &x, &dy, &s, lora, None, 0);
    let (mut da, mut db) = once.clone();
    let args = LoraGrad {
        x: View::rows_of(&x, k).unwrap(),
        dy: View::rows_of(&dy, n).unwrap(),
        s: View::rows_of(&s, r).unwrap(),
        lora,
        adapter: None,
        index: 0,
        da: ViewMut::rows_of(&mut da, k).unwrap(),
        db: ViewMut::rows_of(&mut db, r).unwrap(),
    };
    lora_grad(&CPU, args).unwrap();
    assert!(da.iter().zip(&once.0).all(|(twice, once)| *twice == 2.0 * once));
    assert!(db.iter().zip(&once.1).all(|(twice, once)| *twice == 2.0 * once));
}

#[test]
fn old_gradients_are_added_last_on_every_executor() {
    let [m, n, k] = [9, 34, 40];
    let (dy, w, x) = (random::<f32>(3, m * n), random::<f32>(2, n * k), random::<f32>(1, m * k));
    let (old, adapter) = (random::<f32>(4, m * k), adapter::<f32>(6, [n, k, 3], 0.5));
    let run = |device: &Device| {
        let mut dx = old.clone();
        let args = MatmulDx {
            dy: View::rows_of(&dy, n).unwrap(),
            w: View::rows_of(&w, k).unwrap(),
            lora: &[adapter.view([n, k, 3])],
            adapter: None,
            accumulate: true,
            dx: ViewMut::rows_of(&mut dx, k).unwrap(),
        };
        matmul_dx(device, args).unwrap();
        let (mut dw, mut dbias) = (random::<f32>(7, n * k), random::<f32>(8, n));
        let args = MatmulDw {
            dy: View::rows_of(&dy, n).unwrap(),
            x: View::rows_of(&x, k).unwrap(),
            dw: ViewMut::rows_of(&mut dw, k).unwrap(),
            dbias: Some((&mut dbias).into()),
        };
        matmul_dw(device, args).unwrap();
        [bits(&dx), bits(&dw), bits(&dbias)]
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name}"));
}

const CANARY: f32 = 7.25;

/// `rows x cols` of `data` with `gap` canaries behind each row.
fn spread(data: &[f32], cols: usize, gap: usize) -> Vec<f32> {
    data.chunks(cols).flat_map(|row| row.iter().copied().chain([CANARY].repeat(gap))).collect()
}

#[test]
fn strided_operands_give_the_same_bits_and_nothing_else_is_written() {
    executors().iter().for_each(|executor| strided_operands(&executor.device));
}

fn strided_operands(device: &Device) {
    let [m, n, k] = [11, 37, 50];
    let (x, w) = (random::<f32>(1, m * k), random::<f32>(2, n * k));
    let (dy, bias) = (random::<f32>(3, m * n), random::<f32>(4, n));
    let (wide_x, wide_w, wide_dy) = (spread(&x, k, 3), spread(&w, k, 5), spread(&dy, n, 2));
    let wide_bias = spread(&bias, 1, 1);
    let shape = |a: usize, b: usize| [a as i64, b as i64];
    let view = |data, a: usize, b: usize, gap: usize| {
        View::strided(data, &shape(a, b), &shape(b + gap, 1)).unwrap()
    };
    let mut y = spread(&vec![f32::NAN; m * n], n, 4);
    let args = Matmul {
        x: view(&wide_x, m, k, 3),
        w: view(&wide_w, n, k, 5),
        bias: Some(View::strided(&wide_bias, &[n as i64], &[2]).unwrap()),
        lora: &[],
        adapter: None,
        s: None,
        residual: None,
        y: ViewMut::strided(&mut y, &shape(m, n), &shape(n + 4, 1)).unwrap(),
    };
    matmul(device, args).unwrap();
    let want = forward_on(device, [m, n, k], &x, &w, Some(&bias), &[], None);
    assert_eq!(y, spread(&want, n, 4));

    let mut dx = spread(&vec![f32::NAN; m * k], k, 4);
    let args = MatmulDx {
        dy: view(&wide_dy, m, n, 2),
        w: view(&wide_w, n, k, 5),
        lora: &[],
        adapter: None,
        accumulate: false,
        dx: ViewMut::strided(&mut dx, &shape(m, k), &shape(k + 4, 1)).unwrap(),
    };
    matmul_dx(device, args).unwrap();
    assert_eq!(dx, spread(&backward([m, n, k], &dy, &w, &[], None), k, 4));

    let mut dw = spread(&vec![0.0; n * k], k, 4);
    let args = MatmulDw {
        dy: view(&wide_dy, m, n, 2),
        x: view(&wide_x, m, k, 3),
        dw: ViewMut::strided(&mut dw, &shape(n, k), &shape(k + 4, 1)).unwrap(),
        dbias: None,
    };
    matmul_dw(device, args).unwrap();
    assert_eq!(dw, spread(&weight_gradient([m, n, k], &dy, &x).0, k, 4));
}

#[test]
fn no_rows_are_no_work() {
    assert!(forward::<f32>([0, 3, 4], &[], &[1.0; 12], None, &[], None).is_empty());
    assert!(backward::<f32>([0, 3, 4], &[], &[1.0; 12], &[], None).is_empty());
    let mut dw = [0.5f32; 12];
    let args = MatmulDw::<f32> {
        dy: View::new(&[], &[0, 3]).unwrap(),
        x: View::new(&[], &[0, 4]).unwrap(),
        dw: ViewMut::new(&mut dw, &[3, 4]).unwrap(),
        dbias: None,
    };
    matmul_dw(&CPU, args).unwrap();
    assert_eq!(dw, [0.5; 12]);
    assert_eq!(weight_gradient::<f32>([0, 3, 4], &[], &[]), (vec![0.0; 12], vec![0.0; 3]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Powers of two pass through a chain exactly; permuting rows of x or w permutes y.
    #[test]
    fn scaling_and_permuting_commute(
        m in 1..40usize, n in 1..70usize, k in 1..200usize, seed in 0..1000u64, turn in 0..70usize,
    ) {
        let (x, w) = (random::<f32>(seed, m * k), random::<f32>(seed + 1, n * k));
        let y = forward([m, n, k], &x, &w, None, &[], None);
        let eighth: Vec<f32> = x.iter().map(|x| x / 8.0).collect();
        let scaled = forward([m, n, k], &eighth, &w, None, &[], None);
        prop_assert!(scaled.iter().zip(&y).all(|(a, b)| *a == b / 8.0));

        let rotate = |data: &[f32], width: usize, by: usize| {
            let mut data = data.to_vec();
            data.rotate_left(by * width);
            data
        };
        let turned = forward([m, n, k], &rotate(&x, k, turn % m), &w, None, &[], None);
        prop_assert!(turned == rotate(&y, n, turn % m));
        let turned = forward([m, n, k], &x, &rotate(&w, k, turn % n), None, &[], None);
        prop_assert!(turned.chunks(n).zip(y.chunks(n)).all(|(a, b)| a == rotate(b, 1, turn % n)));
    }
}
