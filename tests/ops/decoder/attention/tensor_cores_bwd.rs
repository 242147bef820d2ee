//! Gradients of attention in bf16 and f16: f64 within the documented bound component by component,
//! one sequence's bits in any batch, and what the kernels count.

use std::sync::Arc;

use super::layout::{GradientSizes, Layout, backward};
use crate::common::devices::{Executor, executors, gpu_of, shared_gpus};
use crate::common::{bits_of, normals};
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::{DType, Float};
use gradus::ops::{AttentionBwd, attention_bwd};
use gradus::{Device, View, ViewMut, bf16, f16};
use gradus_emu::{Counters, Numerics, Options};

const U: f64 = 1.0 / (1u64 << 24) as f64;

fn narrowed<T: Float>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

fn widened<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// q, k, v and dout; gradients of f16 models are small.
fn operands<T: Float>(l: &Layout, seed: u64, size: f64) -> [Vec<T>; 4] {
    let [q, k, v] = l.random(seed).map(|x| narrowed(&x));
    [q, k, v, narrowed(&normals(seed + 3, l.q_len(), size))]
}

fn run<T: Float>(device: &Device, l: &Layout, x: &[Vec<T>; 4]) -> [Vec<T>; 3] {
    let [q, k, v, dout] = x;
    backward(device, l, [q, k, v, dout])
}

fn layouts() -> Vec<Layout> {
    vec![
        Layout::packed(&[1, 0, 7, 40, 2], 4, 2, 64),
        Layout::packed(&[100, 3], 2, 1, 16),
        Layout::with_keys(&[1, 1, 1], &[70, 1, 33], 8, 2, 128),
        Layout::with_keys(&[9, 2], &[77, 65], 3, 3, 80),
        Layout::with_prefixes(
            &[70, 3, 9],
            &[70, 66, 72],
            &[[0, 0], [0, 63], [0, 63]],
            0,
            [4, 2, 64],
        ),
        Layout::with_prefixes(&[7, 2], &[9, 140], &[[2, 9], [0, 133]], 140, [2, 1, 128]),
    ]
}

fn check_bound<T: Float>(name: &str, device: &Device) -> f64 {
    let (unit, half) = match T::DTYPE {
        DType::Bf16 => (1.0 / 256.0, false),
        _ => (1.0 / 2048.0, true),
    };
    let mut worst = 0.0f64;
    for (n, l) in layouts().iter().enumerate() {
        let x = operands::<T>(l, 100 * n as u64, if half { 1e-3 } else { 1.0 });
        let got = run(device, l, &x).map(|g| widened(&g));
        let x = [&x[0], &x[1], &x[2], &x[3]].map(|x| widened(x));
        let want = run(&Device::Cpu, l, &x);
        let sizes = GradientSizes::of(l, [&x[0], &x[1], &x[2], &x[3]]);
        let eps = (1.25 * l.d as f64 + 5.0) * U * sizes.score;
        let most = |x: &[f64]| x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // Terms of a sum of dq, and of dk and dv.
        let terms = [l.rows as f64, (l.tokens() * l.heads) as f64, (l.tokens() * l.heads) as f64];
        let small = [sizes.ds * most(&x[1]), sizes.ds * most(&x[0]), most(&x[3])];
        for which in 0..3 {
            let factor = 4.0 * eps + unit + (1.25 * l.d as f64 + 160.0 + terms[which] / 32.0) * U;
            let tail = match half {
                true => terms[which] * 2f64.powi(-39) * small[which] + 2f64.powi(-25),
                false => 0.0,
            };
            for (i, want) in want[which].iter().enumerate() {
                let error = (got[which][i] - want).abs();
                let bound = factor * sizes.sizes[which][i] + unit * want.abs() + tail;
                assert!(
                    error <= bound,
                    "{name} layout {n} gradient {which} [{i}]: {error} > {bound}"
                );
                worst = worst.max(error / bound);
            }
        }
    }
    worst
}

#[test]
fn attention_gradients_in_halves_are_within_their_documented_bound() {
    let cut = [Numerics::Ampere, Numerics::Hopper].map(|numerics| {
        let driver = EmuDriver::new().with_options(Options { numerics, ..Options::default() });
        let device = Device::Gpu(Arc::new(Gpu::new(Arc::new(driver)).unwrap()));
        Executor { name: format!("emu {numerics:?}"), device }
    });
    for executor in executors().into_iter().chain(cut) {
        let worst = check_bound::<bf16>(&executor.name, &executor.device);
        assert!(worst > 0.05, "{}: a bound that nothing comes near: {worst}", executor.name);
        let worst = check_bound::<f16>(&executor.name, &executor.device);
        assert!(worst > 0.05, "{}: a bound that nothing comes near: {worst}", executor.name);
    }
}

/// Sequences whose keys lie in any order between rows of NaN have the gradients they have alone; rows
/// of no sequence get 0.
fn check_alone<T: Float>(device: &Device, (heads, kv_heads, d): (usize, usize, usize)) {
    let mut l = Layout::with_keys(&[40, 0, 3, 70], &[50, 2, 30, 70], heads, kv_heads, d);
    (l.start, l.rows) = (vec![77, 75, 129, 3], 161);
    let mut x = operands::<T>(&l, d as u64, 1.0);
    let (wq, wk) = (heads * d, kv_heads * d);
    let used = |row: usize| (0..4).any(|b| row >= l.start[b] && row < l.start[b] + l.keys[b]);
    for row in (0..l.rows).filter(|&row| !used(row)) {
        x[1][row * wk..(row + 1) * wk].fill(T::from_f64(f64::NAN));
        x[2][row * wk..(row + 1) * wk].fill(T::from_f64(f64::NAN));
    }
    let all = run(device, &l, &x);
    assert!(all.iter().flatten().all(|x| x.to_f64().is_finite()));
    for row in 0..l.rows {
        let zero = all[1][row * wk..(row + 1) * wk].iter().all(|x| x.to_f64() == 0.0);
        assert_eq!(zero, !used(row) || (75..77).contains(&row), "row {row}");
    }
    for b in [0, 2, 3] {
        let alone = Layout::with_keys(&[l.queries[b]], &[l.keys[b]], heads, kv_heads, d);
        let first: usize = l.queries[..b].iter().sum();
        let queries = first * wq..(first + l.queries[b]) * wq;
        let keys = l.start[b] * wk..(l.start[b] + l.keys[b]) * wk;
        let part = [0, 1, 2, 3]
            .map(|i| x[i][if i % 3 == 0 { queries.clone() } else { keys.clone() }].to_vec());
        let [dq, dk, dv] = run(device, &alone, &part);
        assert_eq!(bits_of(&dq), bits_of(&all[0][queries]), "dq of {b}");
        assert_eq!(bits_of(&dk), bits_of(&all[1][keys.clone()]), "dk of {b}");
        assert_eq!(bits_of(&dv), bits_of(&all[2][keys]), "dv of {b}");
    }
}

#[test]
fn attention_gradients_in_halves_are_those_of_the_sequence_alone() {
    for executor in executors() {
        check_alone::<bf16>(&executor.device, (2, 2, 64));
        check_alone::<f16>(&executor.device, (3, 1, 112));
    }
}

/// Operands and results begun anywhere, with any stride.
#[test]
fn attention_gradients_in_halves_of_strided_rows_keep_guards() {
    for executor in executors() {
        for (shift, gap) in [(0, 0), (1, 0), (8, 3), (8, 8)] {
            check_strided(&executor.device, shift, gap);
        }
    }
}

fn check_strided(device: &Device, shift: usize, gap: usize) {
    let l = Layout::packed(&[12, 7], 4, 2, 48);
    let (t, d) = (19, l.d);
    let x = operands::<bf16>(&l, 5, 1.0);
    let want = run(device, &l, &x);
    let width = |heads: usize| heads * (d + gap) + gap;
    let spread = |x: &[bf16], heads: usize| -> Vec<bf16> {
        let mut out = vec![bf16::from_f32(-5.0); shift + t * width(heads)];
        for (i, row) in x.chunks(d).enumerate() {
            let at = shift + i / heads * width(heads) + i % heads * (d + gap);
            out[at..at + d].copy_from_slice(row);
        }
        out
    };
    let strides = |heads: usize| [width(heads) as i64, (d + gap) as i64, 1];
    let wide =
        [(0, 4), (1, 2), (2, 2), (3, 4)].map(|(i, heads): (usize, usize)| spread(&x[i], heads));
    let view = |i: usize, heads: usize, shape: [i64; 3]| {
        View::strided(&wide[i][shift..], &shape, &strides(heads)).unwrap()
    };
    let (cu, len) = ([0i64, 12, 19], [12i64, 7]);
    let empty = |heads: usize| vec![bf16::from_f32(-5.0); shift + t * width(heads)];
    let (mut dq, mut dk, mut dv) = (empty(4), empty(2), empty(2));
    let args = AttentionBwd {
        q: view(0, 4, l.q_shape()),
        k: view(1, 2, l.k_shape()),
        v: view(2, 2, l.k_shape()),
        cu_seqlens: View::new(&cu, &[3]).unwrap(),
        kv_start: View::new(&cu, &[2]).unwrap(),
        kv_len: View::new(&len, &[2]).unwrap(),
        prefix: None,
        scale: l.scale(),
        dout: view(3, 4, l.q_shape()),
        dq: ViewMut::strided(&mut dq[shift..], &l.q_shape(), &strides(4)).unwrap(),
        dk: ViewMut::strided(&mut dk[shift..], &l.k_shape(), &strides(2)).unwrap(),
        dv: ViewMut::strided(&mut dv[shift..], &l.k_shape(), &strides(2)).unwrap(),
    };
    attention_bwd(device, args).unwrap();
    for (got, want, heads) in [(dq, &want[0], 4), (dk, &want[1], 2), (dv, &want[2], 2)] {
        assert_eq!(bits_of(&got), bits_of(&spread(want, heads)), "shift {shift} gap {gap}");
    }
}

/// Whatever tables on the device hold, nothing is read or written out of bounds.
#[test]
fn gradients_never_trust_tables_on_the_device() {
    for executor in shared_gpus() {
        let gpu = gpu_of(&executor.device);
        let l = Layout { rows: 70, ..Layout::with_keys(&[1, 1], &[7, 8], 4, 2, 16) };
        let [q, k, v, dout] =
            operands::<bf16>(&l, 1, 1.0).map(|x| DeviceBuffer::from_host(gpu, &x).unwrap());
        let upload = |x: &[i64]| DeviceBuffer::from_host(gpu, x).unwrap();
        let bad = [i64::MIN, -1, 3, 69, 70, 1 << 40, i64::MAX];
        for (i, &x) in bad.iter().enumerate() {
            let y = bad[(i * 3 + 1) % bad.len()];
            for (cu, start, len) in [
                ([0, 1, 2], [x, y], [7, 8]),
                ([0, 1, 2], [0, 8], [y, x]),
                ([0, x, 2], [0, y], [x, 8]),
            ] {
                let (cu, start, len) = (upload(&cu), upload(&start), upload(&len));
                let zeros = |n: usize| DeviceBuffer::<bf16>::new(gpu, n).unwrap();
                let (mut dq, mut dk, mut dv) =
                    (zeros(l.q_len()), zeros(l.k_len()), zeros(l.k_len()));
                let args = AttentionBwd {
                    q: q.view(&l.q_shape()).unwrap(),
                    k: k.view(&l.k_shape()).unwrap(),
                    v: v.view(&l.k_shape()).unwrap(),
                    cu_seqlens: cu.view(&[3]).unwrap(),
                    kv_start: start.view(&[2]).unwrap(),
                    kv_len: len.view(&[2]).unwrap(),
                    prefix: None,
                    scale: 0.25,
                    dout: dout.view(&l.q_shape()).unwrap(),
                    dq: dq.view_mut(&l.q_shape()).unwrap(),
                    dk: dk.view_mut(&l.k_shape()).unwrap(),
                    dv: dv.view_mut(&l.k_shape()).unwrap(),
                };
                attention_bwd(&executor.device, args).unwrap();
            }
        }
    }
}

/// Counters of both launches.
fn counted(set: KernelSet, l: &Layout) -> Vec<Counters> {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    run(&Device::Gpu(Arc::new(gpu)), l, &operands::<bf16>(l, 1, 1.0));
    driver.take_launches().into_iter().map(|(_, counters)| counters).collect()
}

/// Products of the two launches for one sequence: 16 rows of queries against 32 keys take
/// 5/4·D (scores and dp twice, dq), 16 keys against `part` queries part/32·D.
fn products(l: &Layout, part: usize) -> [usize; 2] {
    let (queries, keys, group) = (l.queries[0], l.keys[0], l.heads / l.kv_heads);
    let hidden = keys - queries;
    let dq: usize = (0..queries * group)
        .step_by(16)
        .map(|row| (hidden + (row + 15).min(queries * group - 1) / group + 1).div_ceil(32))
        .sum();
    let last = |query: usize| (query + part).min(queries) - 1;
    let dkv: usize = (0..keys)
        .step_by(16)
        .map(|key| (0..queries).step_by(part).filter(|&q| key <= hidden + last(q)).count())
        .sum();
    [l.kv_heads * dq * l.d * 5 / 4, l.heads * dkv * l.d * part / 32]
}

#[test]
fn attention_gradients_in_halves_count_what_they_should() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for (l, part) in [
            (Layout::packed(&[75], 4, 2, 64), 32),
            (Layout::with_keys(&[40], &[90], 3, 1, 96), 32),
            (Layout::with_keys(&[20], &[50], 2, 1, 128), 16),
        ] {
            let counters = counted(set, &l);
            let want = products(&l, part);
            for (c, want) in counters.iter().zip(want) {
                assert_eq!(c.mma as usize, want, "D = {}", l.d);
                assert_eq!(c.local_accesses, 0);
                let ratio = c.shared_wavefronts as f64 / c.shared_wavefronts_ideal as f64;
                eprintln!("D = {}: wavefronts {ratio:.4}", l.d);
                // 12 chunks of a row do not fill two phases of 8 lanes.
                assert!(ratio <= if l.d == 96 { 1.1 } else { 1.0 }, "wavefronts {ratio}");
            }
        }
    }
}
