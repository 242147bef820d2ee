//! Products on tensor cores: one order of sums in every regime, the componentwise bound with the sums
//! of real tensor cores, and what the kernels cost by the emulator's counters.

use std::sync::Arc;

use crate::common::devices::{emulated, shared_gpus};
use crate::products::support::nf4::*;
use crate::products::support::*;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::{DType, Device, bf16, f16};
use gradus_emu::{Counters, Numerics, Options};

const SETS: [KernelSet; 2] = [KernelSet::Sm80, KernelSet::Sm90a];

/// The emulator with the sums of the devices that a kernel set is for.
fn truncating(set: KernelSet) -> Device {
    let numerics = match set {
        KernelSet::Sm80 => Numerics::Ampere,
        KernelSet::Sm90a => Numerics::Hopper,
    };
    let driver = EmuDriver::new().with_options(Options { numerics, ..Options::default() });
    let gpu = Gpu::new(Arc::new(driver)).unwrap().with_kernel_set(set).unwrap();
    Device::Gpu(Arc::new(gpu))
}

/// Both kernel sets with the sums of their devices, and the CUDA device where there is one.
fn machines() -> Vec<(String, Device)> {
    let emulated = SETS.map(|set| (format!("{set:?}"), truncating(set)));
    let real = shared_gpus().iter().filter(|executor| executor.name == "cuda");
    let real = real.map(|executor| (executor.name.clone(), executor.device.clone()));
    emulated.into_iter().chain(real).collect()
}

fn weight(seed: u64, shape: [usize; 2], nested: bool, dtype: DType) -> Weight {
    let mut weight = Weight::random(seed, shape, 64, nested);
    if let Some((_, maxima, _, _, size)) = &mut weight.nested {
        // bitsandbytes' size: the kernels that are fast want a power of two.
        *size = 256;
        maxima.truncate((shape[0] * shape[1]).div_ceil(64 * 256));
    }
    weight.dtype = dtype;
    weight
}

/// A row's bits for every number of rows, forward and dX, 4-bit and dense.
fn regimes<T: Float>(device: &Device, shape: [usize; 2], nested: bool, rows: &[usize], what: &str) {
    let ([n, k], r) = (shape, 8);
    let most = *rows.iter().max().unwrap();
    let weight = weight(31, shape, nested, T::DTYPE);
    let w = weight.dense::<T>();
    let (x, dy, bias) = (random::<T>(8, most * k), random::<T>(9, most * n), random::<T>(10, n));
    let adapters = [adapter::<T>(4, [n, k, r], 0.5), adapter(6, [n, k, r], -2.0)];
    let lora = adapters.each_ref().map(|a| a.view([n, k, r]));
    let index: Vec<i32> = (0..most).map(|i| (i * 7 % 3) as i32 - 1).collect();
    let run = |m: usize| {
        let first = most - m;
        let (x, dy, index) = (&x[first * k..], &dy[first * n..], Some(&index[first..]));
        let y = nf4_forward_on(device, m, x, &weight, Some(&bias), &lora, index);
        let dx = nf4_backward_on(device, m, dy, &weight, &lora, index);
        let dense = forward_on(device, [m, n, k], x, &w, Some(&bias), &lora, index);
        assert!(exact_bits(&y) == exact_bits(&dense), "{what}: y of {m} rows");
        let dense = backward_on(device, [m, n, k], dy, &w, &lora, index);
        assert!(exact_bits(&dx) == exact_bits(&dense), "{what}: dx of {m} rows");
        (exact_bits(&y), exact_bits(&dx))
    };
    let (ys, dxs) = run(most);
    for &m in rows.iter().filter(|&&m| m < most) {
        let (y, dx) = run(m);
        assert!(y == ys[(most - m) * n..], "{what}: y of {m} rows");
        assert!(dx == dxs[(most - m) * k..], "{what}: dx of {m} rows");
    }
}

#[test]
fn a_row_has_the_same_bits_for_every_number_of_rows() {
    let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 65, 128, 256, 300];
    for (what, device) in machines() {
        // 5 chunks of 128 steps, the last of 64: a cluster.
        regimes::<bf16>(&device, [72, 576], true, &rows, &what);
    }
}

#[test]
fn regimes_agree_for_other_shapes_and_dtypes() {
    let rows = [1, 9, 17, 66];
    for (what, device) in machines() {
        for (shape, nested) in [
            ([300, 64], false),
            ([33, 1088], true),
            ([130, 256], true),
            // No whole blocks a row, so element by element.
            ([40, 83], true),
        ] {
            regimes::<bf16>(&device, shape, nested, &rows, &format!("{what} {shape:?}"));
        }
        regimes::<f16>(&device, [72, 640], true, &rows, &format!("{what} f16"));
    }
}

/// From 512 rows on the weight is written out first, and multiplied as a dense one.
#[test]
fn a_weight_that_is_written_out_gives_the_bits_of_one_that_is_expanded() {
    let rows = [70, 511, 513];
    for (what, device) in machines() {
        regimes::<bf16>(&device, [24, 192], true, &rows, &what);
        // No whole blocks a row.
        regimes::<f16>(&device, [17, 83], false, &rows, &what);
    }
    for set in SETS {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
        let (device, weight) = (Device::Gpu(gpu), weight(31, [40, 64], true, DType::Bf16));
        let written_out = |m: usize| {
            let (x, dy) = (random::<bf16>(8, m * 64), random::<bf16>(9, m * 40));
            nf4_forward_on(&device, m, &x, &weight, None, &[], None);
            nf4_backward_on(&device, m, &dy, &weight, &[], None);
            let launches = driver.take_launches();
            launches.iter().map(|(kernel, _)| kernel.clone()).collect::<Vec<_>>()
        };
        let (tile, dx) = ("tile128_bf16", "dx_tile128_bf16");
        let named = |kernels: [&str; 2]| kernels.map(|k| format!("nf4_matmul_{k}")).to_vec();
        assert_eq!(written_out(511), named([tile, dx]), "{set:?}");
        let copy = "nf4_dequantize_bf16".to_string();
        let dense = [tile, dx].map(|k| format!("matmul_{k}"));
        assert_eq!(
            written_out(512),
            [copy.clone(), dense[0].clone(), copy, dense[1].clone()],
            "{set:?}"
        );
    }
}

/// |C − C₆₄| ≤ (5L/4 + 10)·2⁻²⁴·(|A||B|) + half an ulp of bf16, L the steps of a chunk, with the sums of
/// real tensor cores as well; derived in docs/NUMERICS.md.
#[test]
fn results_are_within_the_componentwise_bound() {
    let (m, [n, k]) = (70, [40, 704]);
    let exact = SETS.map(|set| (format!("{set:?}, exact sums"), emulated(set, 0)));
    for (what, device) in exact.into_iter().chain(machines()) {
        let weight = weight(5, [n, k], true, DType::Bf16);
        let (x, dy) = (random::<bf16>(1, m * k), random::<bf16>(2, m * n));
        for rows in [3, 12, 40, m] {
            let y = nf4_forward_on(&device, rows, &x[..rows * k], &weight, None, &[], None);
            for at in 0..rows * n {
                let (i, j) = (at / n, at % n);
                let (exact, size) = dot(k, |p| x[i * k + p].to_f64(), |p| weight.element(j, p));
                within(y[at], exact, size, k, &what);
            }
        }
        let dx = nf4_backward_on(&device, m, &dy, &weight, &[], None);
        for at in 0..m * k {
            let (i, p) = (at / k, at % k);
            let (exact, size) = dot(n, |j| dy[i * n + j].to_f64(), |j| weight.element(j, p));
            within(dx[at], exact, size, n, &what);
        }
    }
}

fn within(got: bf16, exact: f64, size: f64, depth: usize, what: &str) {
    let chunk = (64 * depth.div_ceil(512)).min(depth) as f64;
    let bound = (1.25 * chunk + 10.0) * 2f64.powi(-24) * size + 2f64.powi(-8) * exact.abs();
    assert!((got.to_f64() - exact).abs() <= bound, "{what}: {got} for {exact}, bound {bound}");
}

/// Adapters of every rank, in every regime, against f64. S has the error of a product itself.
#[test]
fn adapters_of_every_rank_are_within_the_bound() {
    let [n, k] = [40, 192];
    for (what, device) in machines() {
        for (r, m) in [(1, 2), (8, 70), (16, 12), (20, 40), (64, 3), (100, 66), (128, 20)] {
            let weight = weight(5, [n, k], true, DType::Bf16);
            let (x, dy) = (random::<bf16>(1, m * k), random::<bf16>(2, m * n));
            let adapters = [adapter::<bf16>(4, [n, k, r], 0.5), adapter(6, [n, k, r], -2.0)];
            let lora = adapters.each_ref().map(|a| a.view([n, k, r]));
            let index: Vec<i32> = (0..m).map(|i| (i * 7 % 3) as i32 - 1).collect();
            let y = nf4_forward_on(&device, m, &x, &weight, None, &lora, Some(&index));
            let dx = nf4_backward_on(&device, m, &dy, &weight, &lora, Some(&index));
            // (exact sum, sum of absolute values) of one product and of the adapter's two.
            let both = |(base, size): (f64, f64), low: &dyn Fn(usize) -> (f64, f64), scale: f64| {
                let (sum, all) = (0..r).map(low).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
                (base + scale * sum, size + scale.abs() * all)
            };
            let bound = |exact: f64, size: f64, depth: usize| {
                let sums = 2.5 * depth.min(64) as f64 + 3.75 * r as f64 + 22.0;
                sums * 2f64.powi(-24) * size + 2f64.powi(-8) * exact.abs()
            };
            for i in 0..m {
                let taken = usize::try_from(index[i]).ok().map(|g| &adapters[g]);
                for j in 0..n {
                    let base = dot(k, |p| x[i * k + p].to_f64(), |p| weight.element(j, p));
                    let (exact, size) = taken.map_or(base, |a| {
                        let low = |q: usize| {
                            let s = dot(k, |p| x[i * k + p].to_f64(), |p| a.a[q * k + p].to_f64());
                            let b = a.b[j * r + q].to_f64();
                            (s.0 * b, s.1 * b.abs())
                        };
                        both(base, &low, a.scale)
                    });
                    let got = y[i * n + j].to_f64();
                    assert!(
                        (got - exact).abs() <= bound(exact, size, k),
                        "{what} y, r {r}: {got} {exact}"
                    );
                }
                for p in 0..k {
                    let base = dot(n, |j| dy[i * n + j].to_f64(), |j| weight.element(j, p));
                    let (exact, size) = taken.map_or(base, |a| {
                        let low = |q: usize| {
                            let s = dot(n, |j| dy[i * n + j].to_f64(), |j| a.b[j * r + q].to_f64());
                            let b = a.a[q * k + p].to_f64();
                            (s.0 * b, s.1 * b.abs())
                        };
                        both(base, &low, a.scale)
                    });
                    let got = dx[i * k + p].to_f64();
                    assert!(
                        (got - exact).abs() <= bound(exact, size, n),
                        "{what} dx, r {r}: {got} {exact}"
                    );
                }
            }
        }
    }
}

/// Packed bytes at an odd address, maxima with gaps, rows of X with gaps: the slower ways in give the
/// same bits.
#[test]
fn layouts_change_no_bit() {
    use gradus::ops::{Nf4Matmul, nf4_matmul};
    use gradus::quant::Absmax;
    use gradus::{View, ViewMut};
    let (n, k) = (40, 576);
    let weight = weight(9, [n, k], false, DType::Bf16);
    let mut odd = vec![0u8; 1 + weight.packed.len()];
    odd[1..].copy_from_slice(&weight.packed);
    let spread: Vec<f32> = weight.absmax.iter().flat_map(|&x| [x, f32::NAN]).collect();
    for executor in shared_gpus() {
        for m in [2, 12, 30, 80] {
            let x = random::<bf16>(3, m * k);
            let want = nf4_forward_on(&executor.device, m, &x, &weight, None, &[], None);
            let mut gaps = vec![bf16::from_f32(f32::NAN); m * (k + 3)];
            for i in 0..m {
                gaps[i * (k + 3)..][..k].copy_from_slice(&x[i * k..][..k]);
            }
            let mut y = vec![bf16::ZERO; m * n];
            let mut w = weight.view();
            w.packed = (&odd[1..]).into();
            let blocks = weight.absmax.len() as i64;
            w.absmax = Absmax::F32(View::strided(&spread, &[blocks], &[2]).unwrap());
            let args = Nf4Matmul {
                x: View::strided(&gaps, &[m as i64, k as i64], &[k as i64 + 3, 1]).unwrap(),
                w,
                bias: None,
                lora: &[],
                adapter: None,
                s: None,
                residual: None,
                y: ViewMut::new(&mut y, &[m as i64, n as i64]).unwrap(),
            };
            nf4_matmul(&executor.device, args).unwrap();
            assert!(exact_bits(&y) == exact_bits(&want), "{} {m}", executor.name);
        }
    }
}

// ---- what they cost ---------------------------------------------------------------------------

/// Counters of the product of `m` rows with a double-quantized weight.
fn counted(set: KernelSet, m: usize, [n, k]: [usize; 2], backward: bool) -> Counters {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
    let device = Device::Gpu(Arc::new(gpu));
    let weight = weight(1, [n, k], true, DType::Bf16);
    if backward {
        nf4_backward_on(&device, m, &random::<bf16>(2, m * n), &weight, &[], None);
    } else {
        nf4_forward_on(&device, m, &random::<bf16>(2, m * k), &weight, None, &[], None);
    }
    let launches = driver.take_launches();
    assert_eq!(launches.len(), 1);
    launches[0].1.clone()
}

/// Bytes that have to move: codes, maxima, X and Y once.
fn least(m: usize, [n, k]: [usize; 2]) -> f64 {
    let weight = (n * k) as f64 * (0.5 + 1.0 / 64.0 + 4.0 / 16384.0);
    weight + (2 * m * (n + k)) as f64
}

/// Lane instructions a weight, set-up and tail included: at a depth of 4,096 a warp has 512 steps of
/// 32 rows to spread 450 to 550 instructions a lane over.
#[test]
fn few_rows_stay_within_their_budget() {
    for set in SETS {
        for (m, k, budget) in
            [(1, 4096, 3.8), (8, 4096, 3.9), (16, 4096, 4.25), (8, 14336, 3.45), (16, 14336, 3.7)]
        {
            let shape = [256, k];
            let c = counted(set, m, shape, false);
            let weights = (shape[0] * shape[1]) as f64;
            let lanes = c.lane_instructions.iter().sum::<u64>() as f64 / weights;
            let bytes = c.cold_bytes() as f64 / least(m, shape);
            let banks = c.shared_wavefronts as f64 / c.shared_wavefronts_ideal as f64;
            let what =
                format!("{set:?} {m} x {k}: {lanes:.3} instructions a weight, bytes {bytes:.4}");
            eprintln!("{what}");
            assert!(lanes <= budget, "{what}");
            assert!(bytes <= 1.03, "{what}");
            assert!(banks <= 1.0, "{what}: wavefronts {banks}");
            assert_eq!(c.mma as usize, shape[0] / 16 * shape[1] / 16 * m.div_ceil(8));
            assert_eq!(c.local_accesses, 0);
        }
    }
}

/// Warp instructions for 2,048 products, set-up and tail included: at a depth of 1,024 half of them.
#[test]
fn tiles_stay_within_their_budget() {
    let (m, shape) = (256, [256, 1024]);
    for (set, budgets) in SETS.into_iter().zip([[10.7, 16.2], [10.5, 11.3]]) {
        for (backward, budget) in [false, true].into_iter().zip(budgets) {
            let c = counted(set, m, shape, backward);
            let macs = m * shape[0] * shape[1];
            let each = c.instructions() as f64 / (macs / 2048) as f64;
            let banks = c.shared_wavefronts as f64 / c.shared_wavefronts_ideal as f64;
            let bytes = c.cold_bytes() as f64 / least(m, shape);
            let what = format!("{set:?} dx {backward}: {each:.2} instructions, bytes {bytes:.3}");
            eprintln!("{what}, wavefronts {banks:.3}");
            assert!(each <= budget && bytes <= 1.01, "{what}");
            assert!(banks <= 1.01, "{what}: wavefronts {banks}");
            assert_eq!(c.mma_macs as usize, macs);
            assert_eq!(c.local_accesses, 0);
        }
    }
}
