//! 4-bit products: the same bits as the dense product with an independently dequantized weight, for
//! every layout a checkpoint may have; bitsandbytes' own dequantization; batch and threads.

use crate::common::devices::{executors, on_all, shared_gpus};
use crate::common::{Golden, bits, in_pool};
use crate::products::support::nf4::*;
use crate::products::support::*;
use gradus::dtype::Float;
use gradus::ops::{Lora, Nf4Matmul, nf4_matmul};
use gradus::quant::{Absmax, Nf4View};
use gradus::{DType, Device, View, ViewMut, bf16, f16};

fn nf4_forward<T: Float>(
    m: usize,
    x: &[T],
    weight: &Weight,
    bias: Option<&[T]>,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    nf4_forward_on(&CPU, m, x, weight, bias, lora, adapter)
}

fn nf4_backward<T: Float>(
    m: usize,
    dy: &[T],
    weight: &Weight,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    nf4_backward_on(&CPU, m, dy, weight, lora, adapter)
}

/// Forward and backward against the dense product with the dequantized weight on the same device,
/// bit for bit.
fn check_against_dense<T: Float>(device: &Device, m: usize, weight: &Weight, what: &str) {
    let (n, k, r) = (weight.n, weight.k, 3);
    let (x, dy, bias) = (random::<T>(11, m * k), random::<T>(12, m * n), random::<T>(13, n));
    let adapters = [adapter::<T>(14, [n, k, r], 0.5), adapter(16, [n, k, r], 2.0)];
    let lora = adapters.each_ref().map(|a| a.view([n, k, r]));
    let index: Vec<i32> = (0..m).map(|i| (i % 3) as i32 - 1).collect();
    let w = weight.dense::<T>();
    let y = nf4_forward_on(device, m, &x, weight, Some(&bias), &lora, Some(&index));
    let want = forward_on(device, [m, n, k], &x, &w, Some(&bias), &lora, Some(&index));
    assert!(exact_bits(&y) == exact_bits(&want), "y: {what}");
    let dx = nf4_backward_on(device, m, &dy, weight, &lora, Some(&index));
    let want = backward_on(device, [m, n, k], &dy, &w, &lora, Some(&index));
    assert!(exact_bits(&dx) == exact_bits(&want), "dx: {what}");
}

/// Odd columns start rows inside a byte; K below, above and between block sizes lets blocks cross
/// rows; most of these end in a short block.
const SHAPES: [[usize; 2]; 9] =
    [[1, 1], [3, 5], [7, 33], [5, 64], [33, 63], [4, 130], [65, 97], [31, 515], [70, 1030]];

#[test]
fn every_layout_gives_the_bits_of_the_dense_product() {
    for shape in SHAPES {
        for blocksize in [32, 64, 128, 256, 512, 1024, 2048, 4096] {
            for nested in [false, true] {
                every_dtype(&CPU, shape, blocksize, nested);
            }
        }
    }
}

fn every_dtype(device: &Device, shape: [usize; 2], blocksize: usize, nested: bool) {
    let mut weight = Weight::random(1, shape, blocksize, nested);
    let what = format!("{device:?} {shape:?} blocks of {blocksize}, nested {nested}");
    check_against_dense::<f32>(device, 5, &weight, &what);
    check_against_dense::<bf16>(device, 5, &weight, &what);
    weight.dtype = DType::F32;
    check_against_dense::<f64>(device, 4, &weight, &what);
    weight.dtype = DType::F16;
    check_against_dense::<f16>(device, 3, &weight, &what);
}

#[test]
fn every_layout_gives_the_bits_of_the_dense_product_on_a_gpu() {
    for executor in shared_gpus() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            every_dtype(&executor.device, shape, 32 << (i % 8), i % 2 == 0);
            every_dtype(&executor.device, shape, 64, true);
        }
    }
}

/// A weight that was quantized from another dtype keeps that dtype's values: sums of f32 on every device, whose
/// bits are known.
#[test]
fn a_weight_of_another_dtype_keeps_its_values() {
    fn check<T: Float>(dtype: DType) {
        for (blocksize, k) in [(64, 130), (32, 96)] {
            let (m, n) = (9, 21);
            let mut weight = Weight::random(3, [n, k], blocksize, true);
            weight.dtype = dtype;
            let (x, dy, w) =
                (random::<T>(11, m * k), random::<T>(12, m * n), weight.dense::<f32>());
            let run = |device: &Device| {
                let y = nf4_forward_on(device, m, &x, &weight, None, &[], None);
                let dx = nf4_backward_on(device, m, &dy, &weight, &[], None);
                [exact_bits(&y), exact_bits(&dx)]
            };
            let want =
                |order| exact_bits(&forward_in_order(order, [m, n, k], &x, &w, None, &[], None));
            let chain = want(Order::Chain);
            let cpu = on_all(run, |name, cpu, gpu| {
                assert!(gpu[0] == chain && gpu[1] == cpu[1], "{name} {dtype:?}");
            });
            assert!(cpu[0] == want(Order::Lanes), "{dtype:?}");
            let one = nf4_forward_on(&CPU, 1, &x[..k], &weight, None, &[], None);
            assert_eq!(exact_bits(&one), cpu[0][..n], "{dtype:?}");
        }
    }
    check::<bf16>(DType::F32);
    check::<bf16>(DType::F16);
    check::<f16>(DType::F32);
    check::<f16>(DType::Bf16);
}

#[test]
fn many_rows_give_the_bits_of_the_dense_product() {
    for [n, k] in [[67, 333], [50, 320], [13, 4224]] {
        let mut weight = Weight::random(2, [n, k], 64, true);
        for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 33, 64, 65, 129, 300, 530] {
            if k < 1000 || m < 10 {
                check_against_dense::<bf16>(&CPU, m, &weight, &format!("{m} rows of {k}"));
            }
        }
        for dtype in [DType::F32, DType::F16] {
            weight.dtype = dtype;
            for m in [1, 5] {
                check_against_dense::<f32>(&CPU, m, &weight, &format!("{m} rows of {k} {dtype:?}"));
            }
        }
    }
}

/// One row's bits whatever stands beside it, on tensor cores too.
#[test]
fn a_row_has_the_same_bits_in_any_batch_on_a_gpu() {
    fn check<T: Float>(device: &Device, what: &str) {
        let (n, k, r, most) = (69, 83, 3, 100);
        let mut weight = Weight::random(7, [n, k], 64, true);
        weight.dtype = T::DTYPE;
        let w = weight.dense::<T>();
        let (x, dy) = (random::<T>(8, most * k), random::<T>(9, most * n));
        let adapters = [adapter::<T>(4, [n, k, r], 0.5), adapter(6, [n, k, r], -2.0)];
        let lora = adapters.each_ref().map(|a| a.view([n, k, r]));
        let index: Vec<i32> = (0..most).map(|i| (i * 7 % 3) as i32 - 1).collect();
        let run = |first: usize, m: usize| {
            let (x, dy) = (&x[first * k..][..m * k], &dy[first * n..][..m * n]);
            let index = Some(&index[first..][..m]);
            let y = nf4_forward_on(device, m, x, &weight, None, &lora, index);
            let dx = nf4_backward_on(device, m, dy, &weight, &lora, index);
            let dense = forward_on(device, [m, n, k], x, &w, None, &lora, index);
            assert_eq!(exact_bits(&y), exact_bits(&dense), "{what} {m}");
            (exact_bits(&y), exact_bits(&dx))
        };
        let (ys, dxs) = run(0, most);
        for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 65] {
            let first = most - m;
            let (y, dx) = run(first, m);
            assert!(y == ys[first * n..] && dx == dxs[first * k..], "{what}: {m} rows");
        }
    }
    for executor in shared_gpus() {
        check::<f32>(&executor.device, &executor.name);
        check::<bf16>(&executor.device, &executor.name);
        check::<f16>(&executor.device, &executor.name);
    }
}

/// The weight as the products see it: rows of the identity read it out, both ways alike.
fn read_out(weight: &Weight, what: &str) -> Vec<f64> {
    let (n, k) = (weight.n, weight.k);
    let identity = |size: usize| {
        let mut identity = vec![0f64; size * size];
        (0..size).for_each(|i| identity[i * size + i] = 1.0);
        identity
    };
    let read = |device: &Device| {
        let columns = nf4_forward_on(device, k, &identity(k), weight, None, &[], None);
        (columns, nf4_backward_on(device, n, &identity(n), weight, &[], None))
    };
    let (columns, rows) = on_all(read, |name, cpu, gpu| assert!(cpu == gpu, "{name}: {what}"));
    for row in 0..n {
        for column in 0..k {
            assert_eq!(rows[row * k + column], columns[column * n + row], "{what}");
        }
    }
    rows
}

#[test]
fn the_identity_reads_out_what_bitsandbytes_dequantizes() {
    for file in Golden::family("nf4") {
        let weight = Weight::golden(&file);
        if !weight.k.is_multiple_of(weight.blocksize) {
            continue;
        }
        let (got, want) = (read_out(&weight, &file.name), file.f64("dequantized"));
        assert_eq!(got, want, "{}", file.name);
    }
}

/// Where blocks cross rows (K is no multiple of the block size), bitsandbytes 0.50.2 on the CPU
/// dequantizes with the wrong maxima: it counts K / blocksize blocks to a row, rounded down, while
/// its own quantizer numbered the blocks of the flattened matrix. The original weight tells who
/// is right: nearest-code rounding is off by at most half the widest gap of the code book.
#[test]
fn blocks_that_cross_rows_follow_the_quantizer() {
    let mut seen = 0;
    for file in Golden::family("nf4") {
        let weight = Weight::golden(&file);
        if weight.k.is_multiple_of(weight.blocksize) || weight.nested.is_some() {
            continue;
        }
        seen += 1;
        let mut book = weight.code.clone();
        book.sort_by(f32::total_cmp);
        let gap = book.windows(2).map(|w| (w[1] - w[0]) as f64).fold(0.0, f64::max);
        let worst = |values: &[f64]| {
            let original = file.f64("weight");
            let off = |i: usize| {
                (values[i] - original[i]).abs() / weight.absmax[i / weight.blocksize] as f64
            };
            (0..values.len()).map(off).fold(0.0, f64::max)
        };
        // Rounding to bf16 adds at most 2^-8 of a value that is at most the maximum.
        let limit = gap / 2.0 + 2f64.powi(-8);
        let (ours, theirs) = (read_out(&weight, &file.name), file.f64("dequantized"));
        assert!(worst(&ours) <= limit, "{}: {} over {limit}", file.name, worst(&ours));
        assert!(worst(&theirs) > 2.0 * limit, "{}: bitsandbytes has been fixed", file.name);
    }
    assert!(seen > 0, "no golden file has blocks that cross rows");
}

#[test]
fn dx_is_the_adjoint_of_the_forward_pass() {
    let (m, n, k) = (9, 33, 75);
    let weight = Weight::random(3, [n, k], 64, true);
    let (x, dy) = (random::<f64>(4, m * k), random::<f64>(5, m * n));
    let adapter = adapter::<f64>(6, [n, k, 4], 0.25);
    let lora = [adapter.view([n, k, 4])];
    let y = nf4_forward(m, &x, &weight, None, &lora, None);
    let dx = nf4_backward(m, &dy, &weight, &lora, None);
    let (left, right) = (inner(&y, &dy), inner(&x, &dx));
    assert!((left - right).abs() < 1e-12 * left.abs(), "{left} {right}");
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_position() {
    let (n, k, most) = (70, 515, 300);
    let weight = Weight::random(7, [n, k], 64, true);
    let (x, dy) = (random::<f32>(8, most * k), random::<f32>(9, most * n));
    let ys: Vec<Vec<f32>> =
        x.chunks(k).map(|x| nf4_forward(1, x, &weight, None, &[], None)).collect();
    let dxs: Vec<Vec<f32>> =
        dy.chunks(n).map(|dy| nf4_backward(1, dy, &weight, &[], None)).collect();
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 65, 128, 256, 300] {
        for first in [0, (most - m) / 2, most - m] {
            let y = nf4_forward(m, &x[first * k..][..m * k], &weight, None, &[], None);
            assert!(bits(&y) == bits(&ys[first..][..m].concat()), "y of {m} rows from {first}");
            let dx = nf4_backward(m, &dy[first * n..][..m * n], &weight, &[], None);
            assert!(bits(&dx) == bits(&dxs[first..][..m].concat()), "dx of {m} rows from {first}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (n, k) = (300, 700);
    let weight = Weight::random(10, [n, k], 64, true);
    for m in [1, 40] {
        let (x, dy) = (random::<f32>(11, m * k), random::<f32>(12, m * n));
        let run = || {
            let y = nf4_forward(m, &x, &weight, None, &[], None);
            (bits(&y), bits(&nf4_backward(m, &dy, &weight, &[], None)))
        };
        let one = in_pool(1, run);
        for threads in [2, 4, 7] {
            assert!(in_pool(threads, run) == one, "{m} rows, {threads} threads");
        }
    }
}

/// Maxima and code book may have strides, and a view may be longer than it needs to be wide. Packed
/// codes lie side by side, for every op alike.
#[test]
fn strided_parts_and_outputs() {
    executors().iter().for_each(|executor| strided_parts(&executor.device));
}

fn strided_parts(device: &Device) {
    let (m, n, k) = (4, 6, 50);
    let weight = Weight::random(13, [n, k], 32, false);
    let x = random::<f32>(14, m * k);
    let want = nf4_forward_on(device, m, &x, &weight, None, &[], None);
    let absmax: Vec<f32> = weight.absmax.iter().flat_map(|&a| [a, f32::NAN, f32::NAN]).collect();
    let w = Nf4View {
        absmax: Absmax::F32(View::strided(&absmax, &[weight.absmax.len() as i64], &[3]).unwrap()),
        ..weight.view()
    };
    let mut y = vec![7.25f32; m * (n + 3)];
    let args = Nf4Matmul {
        x: View::rows_of(&x, k).unwrap(),
        w,
        bias: None,
        lora: &[],
        adapter: None,
        s: None,
        residual: None,
        y: ViewMut::strided(&mut y, &[m as i64, n as i64], &[n as i64 + 3, 1]).unwrap(),
    };
    nf4_matmul(device, args).unwrap();
    for (row, want) in y.chunks(n + 3).zip(want.chunks(n)) {
        assert_eq!((&row[..n], &row[n..]), (want, &[7.25; 3][..]));
    }
}
