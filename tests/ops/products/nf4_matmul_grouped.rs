//! 4-bit products of the experts of a mixture: the bits of one product an expert, for every way the
//! router may have cut the rows.

use std::sync::Arc;

use crate::common::devices::{executors, shared_gpus};
use crate::products::support::nf4::*;
use crate::products::support::*;
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::{
    Nf4MatmulGrouped, Nf4MatmulGroupedDx, nf4_matmul_grouped, nf4_matmul_grouped_dx,
};
use gradus::quant::Nf4View;
use gradus::{DType, Device, Error, View, ViewMut, bf16, f16};

/// Row counts of experts: none, a few, more than a tile, and more experts than a warp has lanes.
fn cuts() -> Vec<Vec<usize>> {
    let many = (0..70).map(|e| if e % 9 == 4 { 3 + e } else { e % 2 }).collect();
    vec![vec![5], vec![0, 70, 3, 0, 129], vec![0, 0, 64], many, vec![0, 0, 0]]
}

fn offsets(counts: &[usize]) -> Vec<i64> {
    let mut offsets = vec![0];
    offsets.extend(counts.iter().scan(0, |sum, &c| {
        *sum += c as i64;
        Some(*sum)
    }));
    offsets
}

fn experts(count: usize, [n, k]: [usize; 2], dtype: DType) -> Vec<Weight> {
    let make = |e: usize| {
        let mut weight = Weight::random(100 + 7 * e as u64, [n, k], 64, e.is_multiple_of(2));
        weight.dtype = dtype;
        weight
    };
    (0..count).map(make).collect()
}

/// Both directions against one product an expert on the same device.
fn check<T: Float>(device: &Device, counts: &[usize], [n, k]: [usize; 2], what: &str) {
    let (m, offsets) = (counts.iter().sum::<usize>(), offsets(counts));
    let weights =
        experts(counts.len(), [n, k], if T::DTYPE == DType::F64 { DType::F32 } else { T::DTYPE });
    let w: Vec<Nf4View<'_>> = weights.iter().map(Weight::view).collect();
    let (x, dy) = (random::<T>(1, m * k), random::<T>(2, m * n));
    let (mut y, mut dx) = (vec![T::from_f64(f64::NAN); m * n], random::<T>(3, m * k));
    let old = dx.clone();
    let args = Nf4MatmulGrouped {
        x: View::new(&x, &[m as i64, k as i64]).unwrap(),
        offsets: (&offsets).into(),
        w: &w,
        y: ViewMut::new(&mut y, &[m as i64, n as i64]).unwrap(),
    };
    nf4_matmul_grouped(device, args).unwrap();
    for accumulate in [true, false] {
        dx.copy_from_slice(&old);
        let args = Nf4MatmulGroupedDx {
            dy: View::new(&dy, &[m as i64, n as i64]).unwrap(),
            offsets: (&offsets).into(),
            w: &w,
            accumulate,
            dx: ViewMut::new(&mut dx, &[m as i64, k as i64]).unwrap(),
        };
        nf4_matmul_grouped_dx(device, args).unwrap();
        for (e, &rows) in counts.iter().enumerate() {
            let (first, weight) = (offsets[e] as usize, &weights[e]);
            let (x, dy) = (&x[first * k..][..rows * k], &dy[first * n..][..rows * n]);
            let want = nf4_forward_on(device, rows, x, weight, None, &[], None);
            assert!(
                exact_bits(&y[first * n..][..rows * n]) == exact_bits(&want),
                "{what}: y of {e}"
            );
            let want = nf4_backward_on(device, rows, dy, weight, &[], None);
            let got = &dx[first * k..][..rows * k];
            if !accumulate {
                assert!(exact_bits(got) == exact_bits(&want), "{what}: dx of {e}");
                continue;
            }
            // The old value is added before the one rounding.
            let unit = if T::DTYPE == DType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let (old, want) = (old[first * k + at].to_f64(), want.to_f64());
                let bound = unit * (want.abs() + (old + want).abs());
                assert!((got.to_f64() - old - want).abs() <= bound, "{what}: dx of {e}");
            }
        }
    }
}

#[test]
fn every_cut_gives_the_bits_of_one_product_an_expert() {
    for executor in executors() {
        for counts in cuts() {
            check::<bf16>(&executor.device, &counts, [40, 192], &executor.name);
        }
        check::<f16>(&executor.device, &[3, 66, 0, 9], [130, 100], &executor.name);
        check::<f32>(&executor.device, &[3, 0, 9], [20, 70], &executor.name);
        check::<f64>(&executor.device, &[3, 0, 9], [20, 70], &executor.name);
    }
}

/// Offsets where the router left them: one launch, and nothing waits for them.
#[test]
fn offsets_may_lie_in_device_memory() {
    let counts = [0, 70, 3, 0, 129];
    let ([n, k], m) = ([40, 192], 202);
    let weights = experts(5, [n, k], DType::Bf16);
    let w: Vec<Nf4View<'_>> = weights.iter().map(Weight::view).collect();
    let x = random::<bf16>(1, m * k);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
        let device = Device::Gpu(gpu.clone());
        let run = |offsets: View<'_, i64>| {
            // Rows that no expert has keep what they hold.
            let mut y = DeviceBuffer::from_host(&gpu, &vec![bf16::ZERO; m * n]).unwrap();
            let args = Nf4MatmulGrouped {
                x: View::new(&x, &[m as i64, k as i64]).unwrap(),
                offsets,
                w: &w,
                y: y.view_mut(&[m as i64, n as i64]).unwrap(),
            };
            nf4_matmul_grouped(&device, args).unwrap();
            exact_bits(&y.to_host().unwrap())
        };
        let offsets = offsets(&counts);
        let there = DeviceBuffer::from_host(&gpu, &offsets).unwrap();
        let want = run((&offsets).into());
        driver.take_launches();
        assert!(run(there.view(&[6]).unwrap()) == want, "{set:?}");
        assert_eq!(driver.take_launches().len(), 1);
        // Whatever they hold, the kernel stays in bounds; clamped, these experts share no row.
        let (low, high) = (i64::MIN, i64::MAX);
        for bad in [[0, 70, high, high, 5, 3], [9, 8, 7, 6, 5, 4], [low, -1, low, 1 << 40, high, 9]]
        {
            let there = DeviceBuffer::from_host(&gpu, &bad).unwrap();
            run(there.view(&[6]).unwrap());
        }
    }
}

#[test]
fn bad_input_is_refused() {
    let weights = experts(2, [4, 64], DType::F32);
    let other = experts(1, [4, 128], DType::F32);
    let (x, mut y) = (vec![0f32; 3 * 64], vec![7f32; 3 * 4]);
    let mut refused = |offsets: &[i64], w: &[Nf4View<'_>], rows: i64, argument: &str| {
        for device in std::iter::once(&Device::Cpu).chain(shared_gpus().iter().map(|g| &g.device)) {
            let args = Nf4MatmulGrouped {
                x: View::new(&x, &[3, 64]).unwrap(),
                offsets: offsets.into(),
                w,
                y: ViewMut::new(&mut y[..4 * rows as usize], &[rows, 4]).unwrap(),
            };
            match nf4_matmul_grouped(device, args) {
                Err(Error::InvalidArgument { arg: got, .. }) => assert_eq!(got, argument),
                got => panic!("{argument}: {got:?}"),
            }
        }
    };
    let w = [weights[0].view(), weights[1].view()];
    refused(&[0, 3], &[], 3, "w");
    refused(&[0, 1, 3], &[w[0], other[0].view()], 3, "w");
    refused(&[0, 3], &w, 3, "offsets");
    refused(&[0, 2, 1], &w, 3, "offsets");
    refused(&[0, 1, 2], &w, 3, "offsets");
    refused(&[1, 1, 3], &w, 3, "offsets");
    refused(&[0, 1, 3], &w, 2, "y");
    assert!(y.iter().all(|&y| y == 7.0), "nothing was written");
    // f32 goes expert by expert, which needs the offsets on the host.
    for executor in shared_gpus() {
        let Device::Gpu(gpu) = &executor.device else { continue };
        let there = DeviceBuffer::from_host(gpu, &[0i64, 1, 3]).unwrap();
        let args = Nf4MatmulGrouped {
            x: View::new(&x, &[3, 64]).unwrap(),
            offsets: there.view(&[3]).unwrap(),
            w: &w,
            y: ViewMut::new(&mut y, &[3, 4]).unwrap(),
        };
        let error = nf4_matmul_grouped(&executor.device, args).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    }
}
