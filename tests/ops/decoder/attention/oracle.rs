//! Attention: f64 oracle within the documented bound, gradients, and the promise that a query
//! row's bits do not depend on how it is computed.

use super::layout::{GradientSizes, Layout, Oracle, backward, check_chunks, forward};
use crate::common::devices::executors;
use crate::common::{bits, check_gradient, f32s, f64s, max_rel, normals, same_on_any_pool};
use gradus::ops::{Attention, KvRows, attention};
use gradus::{Device, View, ViewMut, bf16};

const CPU: Device = Device::Cpu;
const U: f64 = 1.0 / (1u64 << 24) as f64;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Layouts of all the paths: padded and whole `D`, grouped heads, one and several tiles, blocks
/// and lanes, more keys than queries, empty sequences.
fn layouts() -> Vec<Layout> {
    vec![
        Layout::packed(&[1, 0, 7, 40, 2], 4, 2, 16),
        Layout::packed(&[150, 3], 2, 1, 32),
        Layout::packed(&[17, 33], 6, 2, 5),
        Layout::packed(&[70], 1, 1, 64),
        Layout::packed(&[20, 9], 4, 4, 40),
        Layout::with_keys(&[1, 1, 1], &[24, 1, 200], 8, 2, 16),
        Layout::with_keys(&[5, 0, 3, 0], &[70, 4, 3, 0], 40, 1, 128),
        group([4, 2, 16]),
        // Keys of nobody else: all of one sequence, some of the other, between rows of no sequence.
        Layout::with_prefixes(&[3, 2], &[9, 70], &[[2, 9], [0, 33]], 40, [2, 1, 20]),
    ]
}

/// Samples of two prompts: the first of each lies whole, the others behind it share 37 and 70 keys; one
/// has no query.
fn group(shape: [usize; 3]) -> Layout {
    let prefix = [[0, 0], [0, 37], [0, 37], [0, 37], [0, 0], [75, 70]];
    Layout::with_prefixes(&[42, 3, 0, 30, 80, 1], &[42, 40, 37, 67, 80, 71], &prefix, 0, shape)
}

#[test]
fn attention_is_within_its_documented_bound() {
    executors().iter().for_each(|executor| check_is_within_its_documented_bound(&executor.device));
}

fn check_is_within_its_documented_bound(device: &Device) {
    let mut worst = 0.0f64;
    for (n, l) in layouts().iter().enumerate() {
        let [q, k, v] = l.random(100 * n as u64).map(|x| f32s(&x));
        let (o, lse) = forward(device, l, [&q, &k, &v]);
        let [q, k, v] = [q, k, v].map(|x| f64s(&x));
        let (o64, _) = forward(device, l, [&q, &k, &v]);
        for (b, t, seen) in l.each() {
            for h in 0..l.heads {
                let Oracle { p, lse: want_lse, size } = Oracle::of(l, [&q, &k], (b, t, h), seen);
                let eps = (l.d as f64 / 16.0 + 8.0) * U * size;
                let got_lse = lse[t * l.heads + h] as f64;
                let bound = eps + 2.0 * U * (1.0 + want_lse.abs());
                assert!((got_lse - want_lse).abs() <= bound, "{n}: {got_lse} {want_lse}");
                let values = |c: usize| (0..seen).map(move |j| (j, c));
                for c in 0..l.d {
                    let v = |j: usize| l.k_row(&v, l.key_row(b, j), h)[c];
                    let want: f64 = values(c).map(|(j, _)| p[j] * v(j)).sum();
                    let size: f64 = values(c).map(|(j, _)| p[j] * v(j).abs()).sum();
                    let sums = match device {
                        Device::Cpu => 40.0 + seen as f64 / 64.0,
                        _ => 56.0 + seen as f64 / 32.0,
                    };
                    let bound = (2.0 * eps + sums * U) * size;
                    let error = (l.q_row(&o, t, h)[c] as f64 - want).abs();
                    assert!(error <= bound, "layout {n} token {t} head {h}: {error} > {bound}");
                    worst = worst.max(error / bound);
                    let error = (l.q_row(&o64, t, h)[c] - want).abs();
                    assert!(error <= 1e-13 * size, "f64: {error}");
                }
            }
        }
    }
    assert!(worst > 1e-4, "a bound that nothing comes near: {worst}");
}

#[test]
fn attention_gradients_match_central_differences() {
    executors()
        .iter()
        .for_each(|executor| check_gradients_match_central_differences(&executor.device));
}

fn check_gradients_match_central_differences(device: &Device) {
    for l in [
        Layout::packed(&[4, 0, 3], 4, 2, 5),
        Layout::with_keys(&[2, 1], &[5, 3], 2, 1, 16),
        Layout::packed(&[36], 1, 1, 2),
        Layout::with_prefixes(&[3, 2, 1], &[3, 4, 4], &[[0, 0], [0, 2], [0, 3]], 0, [4, 2, 5]),
        Layout::with_prefixes(&[3, 1], &[5, 4], &[[1, 5], [0, 3]], 6, [2, 1, 16]),
    ] {
        let [q, k, v] = l.random(7);
        let dout = normals(11, l.q_len(), 1.0);
        let [dq, dk, dv] = backward(device, &l, [&q, &k, &v, &dout]);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&forward(device, &l, [q, k, v]).0, &dout);
        let worst = check_gradient(|x| loss(x, &k, &v), &q, &dq, 1e-5);
        assert!(worst < 1e-6, "dq: {worst}");
        let worst = check_gradient(|x| loss(&q, x, &v), &k, &dk, 1e-5);
        assert!(worst < 1e-6, "dk: {worst}");
        let worst = check_gradient(|x| loss(&q, &k, x), &v, &dv, 1e-5);
        assert!(worst < 1e-6, "dv: {worst}");
    }
}

#[test]
fn attention_gradients_in_f32_are_within_their_bound() {
    executors()
        .iter()
        .for_each(|executor| check_gradients_in_f32_are_within_their_bound(&executor.device));
}

fn check_gradients_in_f32_are_within_their_bound(device: &Device) {
    for (n, l) in layouts().iter().enumerate() {
        let [q, k, v] = l.random(100 * n as u64).map(|x| f32s(&x));
        let dout = f32s(&normals(9, l.q_len(), 1.0));
        let got = backward(device, l, [&q, &k, &v, &dout]);
        let [q, k, v, dout] = [q, k, v, dout].map(|x| f64s(&x));
        let want = backward(device, l, [&q, &k, &v, &dout]);
        let GradientSizes { sizes, score, .. } = GradientSizes::of(l, [&q, &k, &v, &dout]);
        let eps = (l.d as f64 / 16.0 + 8.0) * U * score;
        let terms = (l.rows + l.tokens() * l.heads) as f64 / 32.0;
        // A probability is off by 2·eps + 4·u, dp and delta by one dot product more, and the sums
        // by half a block and one rounding for each block.
        let factor = 4.0 * eps + (60.0 + l.d as f64 / 16.0 + terms) * U;
        for (which, ((got, want), size)) in got.iter().zip(&want).zip(&sizes).enumerate() {
            for i in 0..want.len() {
                let error = (got[i] as f64 - want[i]).abs();
                assert!(error <= factor * size[i], "layout {n} gradient {which} [{i}]: {error}");
            }
        }
    }
}

/// Every way of computing a sequence that the ops allow gives the bits of the whole sequence in a
/// batch: chunks of any size against a cache whose other rows are NaN, down to one token at a
/// time, on any number of threads.
#[test]
fn attention_rows_have_the_same_bits_in_training_prefill_and_decoding() {
    for executor in executors() {
        for shape in [[4, 2, 16], [2, 2, 5], [3, 1, 24], [8, 2, 64], [33, 1, 32]] {
            let cache = ([3, 0, 21, 135, 1], 140);
            check_chunks::<f32>(&executor.device, shape, cache, &[1, 2, 7, 16, 64, 200]);
        }
    }
}

#[test]
fn attention_does_not_depend_on_threads_or_neighbors() {
    let device = &CPU;
    let l = Layout::packed(&[90, 5, 0, 40, 1, 64], 8, 4, 48);
    let [q, k, v] = l.random(3).map(|x| f32s(&x));
    let dout = f32s(&normals(4, l.q_len(), 1.0));
    let all = same_on_any_pool(|| {
        let (o, lse) = forward(device, &l, [&q, &k, &v]);
        [vec![o, lse], backward(device, &l, [&q, &k, &v, &dout]).into()].concat().concat()
    });
    assert!(all.iter().all(|x| x.is_finite()), "every output is written");
    let (o, lse) = forward(device, &l, [&q, &k, &v]);
    let grads = backward(device, &l, [&q, &k, &v, &dout]);
    for b in 0..l.queries.len() {
        let (from, n) = (l.start[b], l.queries[b]);
        let part = Layout::packed(&[n], 8, 4, 48);
        let cut = |x: &[f32], w: usize| x[from * w..(from + n) * w].to_vec();
        let (q, k, v) = (cut(&q, 384), cut(&k, 192), cut(&v, 192));
        let (alone, alone_lse) = forward(device, &part, [&q, &k, &v]);
        assert_eq!(bits(&alone), bits(&cut(&o, 384)));
        assert_eq!(bits(&alone_lse), bits(&cut(&lse, 8)));
        let alone = backward(device, &part, [&q, &k, &v, &cut(&dout, 384)]);
        for ((alone, all), width) in alone.iter().zip(&grads).zip([384, 192, 192]) {
            assert_eq!(bits(alone), bits(&cut(all, width)));
        }
    }
}

#[test]
fn attention_never_reads_hidden_keys() {
    executors().iter().for_each(|executor| check_never_reads_hidden_keys(&executor.device));
}

fn check_never_reads_hidden_keys(device: &Device) {
    let l = Layout::packed(&[30], 2, 1, 16);
    let [q, mut k, mut v] = l.random(5).map(|x| f32s(&x));
    let (before, _) = forward(device, &l, [&q, &k, &v]);
    k[20 * 16..].fill(f32::NAN);
    v[20 * 16..].fill(f32::INFINITY);
    let (after, _) = forward(device, &l, [&q, &k, &v]);
    assert_eq!(bits(&before[..20 * 32]), bits(&after[..20 * 32]));
    assert!(after[20 * 32..].iter().all(|x| x.is_nan()), "a NaN key is not hidden from later rows");
}

#[test]
fn attention_with_equal_keys_is_the_running_mean() {
    executors()
        .iter()
        .for_each(|executor| check_with_equal_keys_is_the_running_mean(&executor.device));
}

fn check_with_equal_keys_is_the_running_mean(device: &Device) {
    let l = Layout::packed(&[8], 1, 1, 1);
    let v: Vec<f64> = (0..8).map(|j| j as f64).collect();
    let (o, lse) = forward(device, &l, [&normals(1, 8, 1.0), &[0.0; 8], &v]);
    for i in 0..8 {
        assert!((o[i] - i as f64 / 2.0).abs() < 1e-15 * 8.0);
        assert_eq!(lse[i], ((i + 1) as f64).ln() as f32);
    }
}

#[test]
fn attention_in_bf16_is_the_f32_result_rounded() {
    executors()
        .iter()
        .for_each(|executor| check_in_bf16_is_the_f32_result_rounded(&executor.device));
}

fn check_in_bf16_is_the_f32_result_rounded(device: &Device) {
    let l = Layout::packed(&[9, 20], 2, 1, 24);
    let [q, k, v] =
        l.random(6).map(|x| x.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<bf16>>());
    let (o, lse) = forward(device, &l, [&q, &k, &v]);
    let wide = [&q, &k, &v].map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
    let (want, want_lse) = forward(device, &l, [&wide[0], &wide[1], &wide[2]]);
    let (o, want) = (o.iter().map(|x| x.to_f64()).collect::<Vec<_>>(), f64s(&want));
    assert!(max_rel(&o, &want, 1e-30) <= (1.0 + 1e-4) / 256.0);
    assert_eq!(bits(&lse), bits(&want_lse));
}

#[test]
fn attention_reads_fused_rows_and_keeps_guards() {
    executors()
        .iter()
        .for_each(|executor| check_reads_fused_rows_and_keeps_guards(&executor.device));
}

fn check_reads_fused_rows_and_keeps_guards(device: &Device) {
    let (t, heads, kv_heads, d) = (19, 4, 2, 16);
    let l = Layout::packed(&[12, 7], heads, kv_heads, d);
    let width = (heads + 2 * kv_heads) * d;
    let fused = f32s(&normals(8, t * width, 1.0));
    let part = |from: usize, n: usize| -> Vec<f32> {
        fused.chunks(width).flat_map(|row| row[from * d..(from + n) * d].to_vec()).collect()
    };
    let (q, k, v) = (part(0, 4), part(4, 2), part(6, 2));
    let (want, _) = forward(device, &l, [&q, &k, &v]);
    let [cu, start, len] = l.offsets();
    let view = |from: usize, n: i64| {
        View::strided(&fused[from * d..], &[19, n, 16], &[width as i64, 16, 1]).unwrap()
    };
    let mut buffer = vec![-5f32; 2 + t * 80];
    let mut lse = vec![-5f32; t * 5];
    let args = Attention {
        q: view(0, 4),
        k: view(4, 2),
        v: view(6, 2),
        cu_seqlens: (&cu).into(),
        kv_rows: KvRows::From((&start).into()),
        kv_len: (&len).into(),
        scale: l.scale(),
        o: ViewMut::strided(&mut buffer[2..], &[19, 4, 16], &[80, 20, 1]).unwrap(),
        lse: Some(ViewMut::strided(&mut lse, &[19, 4], &[5, 1]).unwrap()),
    };
    attention(device, args).unwrap();
    assert_eq!(buffer[..2], [-5.0, -5.0]);
    for (row, want) in buffer[2..].chunks(20).zip(want.chunks(16)) {
        assert_eq!(bits(&row[..16]), bits(want));
        assert_eq!(row[16..], [-5.0; 4], "guard");
    }
    assert!(lse.chunks(5).all(|row| row[..4].iter().all(|&x| x != -5.0) && row[4] == -5.0));
}

#[test]
fn attention_sequences_may_share_keys_and_gradients_clear_unused_rows() {
    executors().iter().for_each(|executor| {
        check_sequences_may_share_keys_and_gradients_clear_unused_rows(&executor.device)
    });
}

fn check_sequences_may_share_keys_and_gradients_clear_unused_rows(device: &Device) {
    // Two continuations of one prefix of four keys: rows 2..6, each with its own last query.
    let mut l = Layout::with_keys(&[1, 2], &[4, 4], 2, 1, 16);
    (l.start, l.rows) = (vec![2, 2], 9);
    let [q, k, v] = l.random(12).map(|x| f32s(&x));
    let (both, _) = forward(device, &l, [&q, &k, &v]);
    let mut one = Layout::with_keys(&[2], &[4], 2, 1, 16);
    (one.start, one.rows) = (vec![2], 9);
    let (alone, _) = forward(device, &one, [&q[32..], &k, &v]);
    assert_eq!(bits(&both[32..]), bits(&alone));
    let [_, dk, dv] = backward(device, &one, [&q[32..], &k, &v, &q[..64]]);
    for x in [dk, dv] {
        assert!(x[..32].iter().chain(&x[96..]).all(|&x| x == 0.0));
        assert!(x[32..96].iter().all(|&x| x != 0.0));
    }
    let empty = Layout::packed(&[], 2, 1, 16);
    assert!(forward::<f32>(device, &empty, [&[], &[], &[]]).0.is_empty());
    let unused = Layout { rows: 3, ..empty };
    let [_, dk, _] = backward::<f32>(device, &unused, [&[], &[1.0; 48], &[1.0; 48], &[]]);
    assert_eq!(dk, [0.0; 48]);
}
