//! The kernels of the decoder's ops in the dtypes that no other test runs: f16, bf16 and f64 have the
//! bits of the CPU where the arithmetic is exact or in f64, and those of f32 rounded once where
//! it is in f32.

use crate::common::bits_of;
use crate::common::devices::{on_all, shared_gpus};
use crate::products::support::{Adapter, adapter_gradient, random, weight_gradient};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, ViewMut, bf16, f16};

fn rows_and_tables<T: Float>() {
    let (t, d, vocab) = (7, 10, 5);
    let ids: Vec<i32> = vec![3, 0, 3, 4, 1, 3, 0];
    let (table, dy, dlogp) = (random::<T>(1, vocab * d), random::<T>(2, t * d), [0.5f32; 7]);
    let run = |device: &Device| {
        let (mut y, mut dtable) = (vec![T::from_f64(f64::NAN); t * d], vec![0.25f32; vocab * d]);
        let args = Embedding {
            ids: (&ids).into(),
            table: View::rows_of(&table, d).unwrap(),
            y: ViewMut::rows_of(&mut y, d).unwrap(),
        };
        embedding(device, args).unwrap();
        let args = EmbeddingBwd {
            ids: (&ids).into(),
            dy: View::rows_of(&dy, d).unwrap(),
            dtable: ViewMut::rows_of(&mut dtable, d).unwrap(),
        };
        embedding_bwd(device, args).unwrap();
        let mut dhidden = y.clone();
        let args = ScoreScale {
            score: View::rows_of(&dy, d).unwrap(),
            dlogp: dlogp[..].into(),
            dhidden: ViewMut::rows_of(&mut dhidden, d).unwrap(),
        };
        score_scale(device, args).unwrap();
        (bits_of(&y), bits_of(&dtable), bits_of(&dhidden))
    };
    on_all(run, |name, cpu, gpu| assert_eq!(cpu, gpu, "{name} {}", T::DTYPE.name()));
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

/// The exponential may differ in f64's last bit: the results are equal or neighbours.
fn gates<T: Float>(unit: f64) {
    let (t, f) = (4, 33);
    let [gate, up, dy] = [5, 6, 7].map(|seed| random::<T>(seed, t * f));
    let run = |device: &Device| {
        let nan = vec![T::from_f64(f64::NAN); t * f];
        let (mut y, mut dgate, mut dup) = (nan.clone(), nan.clone(), nan);
        let rows = |x| View::rows_of(x, f).unwrap();
        let args =
            Swiglu { gate: rows(&gate), up: rows(&up), y: ViewMut::rows_of(&mut y, f).unwrap() };
        swiglu(device, args).unwrap();
        let args = SwigluBwd {
            gate: rows(&gate),
            up: rows(&up),
            dy: rows(&dy),
            dgate: ViewMut::rows_of(&mut dgate, f).unwrap(),
            dup: ViewMut::rows_of(&mut dup, f).unwrap(),
        };
        swiglu_bwd(device, args).unwrap();
        [y, dgate, dup].concat()
    };
    on_all(run, |name, cpu, gpu| {
        for (a, b) in cpu.iter().zip(gpu) {
            let (a, b) = (a.to_f64(), b.to_f64());
            assert!((a - b).abs() <= unit * a.abs(), "{name} {}: {a} and {b}", T::DTYPE.name());
        }
    });
}

/// Bounds are those of the product tests.
fn gradients<T: Float>() {
    let [m, n, k, r] = [37, 9, 70, 3];
    let (x, dy, s) = (random::<T>(8, m * k), random::<T>(9, m * n), random::<f32>(10, m * r));
    weight_gradient([m, n, k], &dy, &x);
    let adapter = Adapter { a: random::<T>(11, r * k), b: random::<T>(12, n * r), scale: 0.5 };
    let index: Vec<i32> = (0..m).map(|i| (i % 3) as i32 - 1).collect();
    adapter_gradient([m, n, k], &x, &dy, &s, adapter.view([n, k, r]), Some(&index), 0);
}

/// A width that is no multiple of 16 takes the kernels without tensor cores, which compute in f32.
fn attention_is_f32_rounded<T: Float>() {
    let (lens, heads, d) = ([3usize, 11], 2, 24);
    let t: usize = lens.iter().sum();
    let [q, dout] = [13, 14].map(|seed| random::<T>(seed, t * heads * d));
    let [k, v] = [15, 16].map(|seed| random::<T>(seed, t * d));
    fn run<U: Float>(device: &Device, x: [Vec<U>; 4], shape: [[i64; 3]; 2]) -> [Vec<U>; 3] {
        let [q, k, v, dout] = &x;
        let mut out = [q, k, v].map(|x| vec![U::from_f64(f64::NAN); x.len()]);
        let [dq, dk, dv] = &mut out;
        let args = AttentionBwd {
            q: View::new(q, &shape[0]).unwrap(),
            k: View::new(k, &shape[1]).unwrap(),
            v: View::new(v, &shape[1]).unwrap(),
            cu_seqlens: [0i64, 3, 14][..].into(),
            kv_start: [0i64, 3][..].into(),
            kv_len: [3i64, 11][..].into(),
            scale: 0.2,
            dout: View::new(dout, &shape[0]).unwrap(),
            dq: ViewMut::new(dq, &shape[0]).unwrap(),
            dk: ViewMut::new(dk, &shape[1]).unwrap(),
            dv: ViewMut::new(dv, &shape[1]).unwrap(),
        };
        attention_bwd(device, args).unwrap();
        out
    }
    let shape = [[t as i64, heads as i64, d as i64], [t as i64, 1, d as i64]];
    let narrow = [q, k, v, dout];
    let wide = narrow.each_ref().map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
    for executor in shared_gpus() {
        let got = run(&executor.device, narrow.clone(), shape);
        let want = run(&executor.device, wide.clone(), shape);
        for (got, want) in got.iter().zip(&want) {
            let want: Vec<T> = want.iter().map(|&x| T::from_f32(x)).collect();
            assert_eq!(bits_of(got), bits_of(&want), "{} {}", executor.name, T::DTYPE.name());
        }
    }
}

#[test]
fn f16_of_the_decoders_ops() {
    rows_and_tables::<f16>();
    rotations::<f16>();
    gates::<f16>(2f64.powi(-10));
    gradients::<f16>();
    attention_is_f32_rounded::<f16>();
}

#[test]
fn bf16_and_f64_of_the_decoders_ops() {
    rows_and_tables::<bf16>();
    rows_and_tables::<f64>();
    rotations::<bf16>();
    rotations::<f64>();
    gates::<bf16>(2f64.powi(-7));
    gates::<f64>(1e-14);
    gradients::<bf16>();
    gradients::<f64>();
    attention_is_f32_rounded::<bf16>();
}
