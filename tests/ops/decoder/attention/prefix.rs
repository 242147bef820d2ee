//! Keys that sequences share: the bits of the forward pass are those of sequences that lie whole, the
//! gradients are sums of theirs in one order.

use std::sync::Arc;

use super::layout::{Layout, backward, forward};
use crate::common::devices::{executors, gpu_of, shared_gpus};
use crate::common::{bits, bits_of, normals, same_on_any_pool};
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::{AttentionBwd, Prefix, attention_bwd};
use gradus::{Device, bf16, f16};

/// Four samples of a prompt of `p` tokens and two of another, the first of each whole; and the same
/// sequences all whole.
fn twice(p: usize, shape: [usize; 3]) -> [Layout; 2] {
    let other = p + 1;
    let more = [5, 1, 33, 0, 7, 40];
    let keys: Vec<usize> =
        more.iter().enumerate().map(|(b, n)| n + if b < 4 { p } else { other }).collect();
    let mut queries = more.to_vec();
    (queries[0], queries[4]) = (keys[0], keys[4]);
    let second: usize = queries[..4].iter().sum();
    let prefix = [[0, 0], [0, p], [0, p], [0, p], [0, 0], [second, other]];
    let [heads, kv_heads, d] = shape;
    [
        Layout::with_prefixes(&queries, &keys, &prefix, 0, shape),
        Layout::packed(&keys, heads, kv_heads, d),
    ]
}

/// For each token of the whole sequences its token of the shared ones, and whether it is there for the
/// first time.
fn tokens(shared: &Layout, whole: &Layout) -> Vec<(usize, bool)> {
    let mut tokens = Vec::new();
    for (b, &keys) in whole.keys.iter().enumerate() {
        let prefix = shared.prefix[b][1];
        tokens.extend((0..keys).map(|j| (shared.key_row(b, j), j >= prefix)));
    }
    tokens
}

fn spread<T: Copy>(x: &[T], tokens: &[(usize, bool)], width: usize) -> Vec<T> {
    tokens.iter().flat_map(|&(t, _)| x[t * width..(t + 1) * width].to_vec()).collect()
}

fn narrowed<T: Float>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x)).collect()
}

fn check_forward<T: Float>(device: &Device, p: usize, shape: [usize; 3]) {
    let [shared, whole] = twice(p, shape);
    let tokens = tokens(&shared, &whole);
    let (wide, narrow) = (shape[0] * shape[2], shape[1] * shape[2]);
    let [q, k, v] = shared.random(p as u64).map(|x| narrowed::<T>(&x));
    let (o, lse) = forward(device, &shared, [&q, &k, &v]);
    let [q, k, v] =
        [(&q, wide), (&k, narrow), (&v, narrow)].map(|(x, width)| spread(x, &tokens, width));
    let (want, want_lse) = forward(device, &whole, [&q, &k, &v]);
    assert_eq!(bits_of(&spread(&o, &tokens, wide)), bits_of(&want), "P = {p} {shape:?}");
    assert_eq!(bits(&spread(&lse, &tokens, shape[0])), bits(&want_lse), "P = {p} {shape:?}");
}

#[test]
fn a_shared_prefix_gives_the_bits_of_whole_sequences() {
    for executor in executors() {
        for p in [1, 31, 64, 100] {
            check_forward::<f32>(&executor.device, p, [4, 2, 16]);
            check_forward::<f32>(&executor.device, p, [2, 2, 10]);
            check_forward::<bf16>(&executor.device, p, [4, 2, 64]);
            check_forward::<f16>(&executor.device, p, [3, 1, 80]);
        }
    }
}

/// dq of each token, and dk and dv of the whole sequences summed over the samples, when each shared
/// token's dout is given once.
fn check_backward(device: &Device, shape: [usize; 3]) {
    let [shared, whole] = twice(37, shape);
    let tokens = tokens(&shared, &whole);
    let (wide, narrow) = (shape[0] * shape[2], shape[1] * shape[2]);
    let ([q, k, v], dout) = (shared.random(5), normals(8, shared.q_len(), 1.0));
    let got = backward(device, &shared, [&q, &k, &v, &dout]);
    let spread = |x: &[f64], width: usize| spread(x, &tokens, width);
    let mut once = spread(&dout, wide);
    for (row, (_, first)) in once.chunks_mut(wide).zip(&tokens) {
        if !first {
            row.fill(0.0);
        }
    }
    let parts = [spread(&q, wide), spread(&k, narrow), spread(&v, narrow)];
    let all = backward(device, &whole, [&parts[0], &parts[1], &parts[2], &once]);
    for (which, ((got, all), width)) in got.iter().zip(&all).zip([wide, narrow, narrow]).enumerate()
    {
        let mut want = vec![0.0; got.len()];
        for (&(t, _), row) in tokens.iter().zip(all.chunks(width)) {
            want[t * width..(t + 1) * width].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let error = (got - want).abs();
            assert!(error <= 1e-13 * (1.0 + want.abs()), "gradient {which} [{i}]: {got} {want}");
        }
    }
}

#[test]
fn gradients_of_a_shared_prefix_are_the_sum_over_its_sequences() {
    for executor in executors() {
        check_backward(&executor.device, [4, 2, 16]);
        check_backward(&executor.device, [3, 1, 5]);
    }
}

/// Sequences that share nothing have the same bits with the columns of a prefix and without.
fn check_empty_prefix<T: Float>(device: &Device, shape: [usize; 3]) {
    let [heads, kv_heads, d] = shape;
    let plain = Layout::packed(&[40, 0, 3, 70], heads, kv_heads, d);
    let empty = Layout { prefix: vec![[0, 0], [9, 0], [113, 0], [2, 0]], ..plain.clone() };
    let [q, k, v] = plain.random(3).map(|x| narrowed::<T>(&x));
    let dout = narrowed::<T>(&normals(4, plain.q_len(), 1.0));
    let run = |l: &Layout| {
        let (o, lse) = forward(device, l, [&q, &k, &v]);
        (bits_of(&o), bits(&lse), backward(device, l, [&q, &k, &v, &dout]).map(|x| bits_of(&x)))
    };
    assert_eq!(run(&plain), run(&empty));
}

#[test]
fn an_empty_prefix_changes_no_bit() {
    for executor in executors() {
        check_empty_prefix::<f32>(&executor.device, [4, 2, 24]);
        check_empty_prefix::<bf16>(&executor.device, [2, 1, 64]);
        check_empty_prefix::<f16>(&executor.device, [3, 3, 112]);
    }
}

#[test]
fn gradients_of_a_shared_prefix_do_not_depend_on_threads() {
    let [shared, _] = twice(64, [8, 4, 48]);
    let [q, k, v] = shared.random(3).map(|x| narrowed::<f32>(&x));
    let dout = narrowed::<f32>(&normals(4, shared.q_len(), 1.0));
    let all = same_on_any_pool(|| backward(&Device::Cpu, &shared, [&q, &k, &v, &dout]).concat());
    assert!(all.iter().all(|x| x.is_finite()), "every output is written");
}

/// Whatever prefixes on the device say, nothing is read or written out of bounds.
#[test]
fn prefixes_on_the_device_are_never_trusted() {
    for executor in shared_gpus() {
        check_untrusted::<f32>(&executor.device);
        check_untrusted::<bf16>(&executor.device);
    }
}

fn check_untrusted<T: Float>(device: &Device) {
    let gpu = gpu_of(device);
    let l = Layout { rows: 70, ..Layout::with_keys(&[1, 1], &[7, 8], 4, 2, 16) };
    let dout = normals(9, l.q_len(), 1.0);
    let [q, k, v] = l.random(1);
    let [q, k, v, dout] =
        [q, k, v, dout].map(|x| DeviceBuffer::from_host(gpu, &narrowed::<T>(&x)).unwrap());
    let upload = |x: &[i64]| DeviceBuffer::from_host(gpu, x).unwrap();
    let bad = [i64::MIN, -1, 3, 69, 70, 71, 1 << 40, i64::MAX];
    let (cu, start) = (upload(&[0, 1, 2]), upload(&[0, 7]));
    for (i, &x) in bad.iter().enumerate() {
        for &y in &bad[i..] {
            for (at, shared, len) in [
                ([x, y], [2, 2], [7, 8]),
                ([0, 0], [x, y], [7, 8]),
                ([x, 0], [y, 3], [7, 8]),
                ([0, 7], [3, x], [y, 8]),
            ] {
                let (at, shared, len) = (upload(&at), upload(&shared), upload(&len));
                let zeros = |n: usize| DeviceBuffer::<T>::new(gpu, n).unwrap();
                let (mut dq, mut dk, mut dv) =
                    (zeros(l.q_len()), zeros(l.k_len()), zeros(l.k_len()));
                let args = AttentionBwd {
                    q: q.view(&l.q_shape()).unwrap(),
                    k: k.view(&l.k_shape()).unwrap(),
                    v: v.view(&l.k_shape()).unwrap(),
                    cu_seqlens: cu.view(&[3]).unwrap(),
                    kv_start: start.view(&[2]).unwrap(),
                    kv_len: len.view(&[2]).unwrap(),
                    prefix: Some(Prefix {
                        start: at.view(&[2]).unwrap(),
                        len: shared.view(&[2]).unwrap(),
                    }),
                    scale: 0.25,
                    dout: dout.view(&l.q_shape()).unwrap(),
                    dq: dq.view_mut(&l.q_shape()).unwrap(),
                    dk: dk.view_mut(&l.k_shape()).unwrap(),
                    dv: dv.view_mut(&l.k_shape()).unwrap(),
                };
                attention_bwd(device, args).unwrap();
            }
        }
    }
}

/// Products on tensor cores of the forward pass, of dq and of dk and dv, as the emulator counts them.
fn counted(set: KernelSet, l: &Layout) -> Vec<usize> {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    let device = Device::Gpu(Arc::new(gpu));
    let [q, k, v] = l.random(1).map(|x| narrowed::<bf16>(&x));
    forward(&device, l, [&q, &k, &v]);
    backward(&device, l, [&q, &k, &v, &q]);
    driver.take_launches().into_iter().map(|(_, counters)| counters.mma as usize).collect()
}

/// The same, from what the kernels say of themselves, for D up to 96: a warp has 16 rows of queries and
/// takes keys in blocks of 64 for D products, or of 32 for 5/4·D; or it has 16 rows of keys and takes
/// the queries of each of their sequences in blocks of 32 for D.
fn products(l: &Layout) -> Vec<usize> {
    let (group, d) = (l.heads / l.kv_heads, l.d);
    let [mut o, mut dq, mut dkv] = [0; 3];
    for (b, (&queries, &keys)) in l.queries.iter().zip(&l.keys).enumerate() {
        let hidden = keys - queries;
        for row in (0..queries * group).step_by(16) {
            let seen = hidden + (row + 15).min(queries * group - 1) / group + 1;
            o += l.kv_heads * d * seen.div_ceil(64);
            dq += l.kv_heads * d * seen.div_ceil(32) * 5 / 4;
        }
        // Warps whose rows hold keys of the sequence, and the first of these.
        let mut first = std::collections::BTreeMap::new();
        for key in 0..keys {
            let behind = l.prefix.get(b).is_some_and(|prefix| key >= prefix[1]);
            first.entry((behind, l.key_row(b, key) / 16)).or_insert(key);
        }
        for key in first.values() {
            let last = |query: usize| (query + 32).min(queries) - 1;
            let blocks = (0..queries).step_by(32).filter(|&query| *key <= hidden + last(query));
            dkv += l.heads * d * blocks.count();
        }
    }
    vec![o, dq, dkv]
}

#[test]
fn a_shared_prefix_is_multiplied_once() {
    // A prompt of 128 tokens with eight samples of 16.
    let mut prefix = [[0, 128]; 8];
    prefix[0] = [0, 0];
    let queries = [144, 16, 16, 16, 16, 16, 16, 16];
    let shared = Layout::with_prefixes(&queries, &[144; 8], &prefix, 0, [4, 2, 64]);
    let whole = Layout::packed(&[144; 8], 4, 2, 64);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let [ours, theirs] = [&shared, &whole].map(|l| counted(set, l));
        assert_eq!((&ours, &theirs), (&products(&shared), &products(&whole)));
        println!("o, dq, dk and dv: {ours:?} products of {theirs:?}");
        assert!(ours.iter().zip(&theirs).all(|(a, b)| 2 * a <= *b), "{ours:?} {theirs:?}");
    }
}
