//! Several products of one input: on every executor the bits of each by itself, and of SwiGLU behind them.

use std::sync::Arc;

use crate::common::devices::{emulated, executors};
use crate::common::refused_with;
use crate::products::support::nf4::*;
use crate::products::support::*;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Float;
use gradus::ops::*;
use gradus::{Device, View, ViewMut, bf16, f16};

/// Inputs of maps of one x, with a bias and an adapter for the first and the last.
struct Maps<T> {
    x: Vec<T>,
    weights: Vec<Weight>,
    dense: Vec<Vec<T>>,
    bias: Vec<T>,
    adapters: Vec<Adapter<T>>,
    k: usize,
    columns: Vec<usize>,
}

const RANK: usize = 4;

impl<T: Float> Maps<T> {
    fn new(rows: usize, k: usize, columns: &[usize]) -> Maps<T> {
        let of = |(i, &n): (usize, &usize)| {
            let mut weight = Weight::random(31 + i as u64, [n, k], 64, i == 0);
            weight.dtype = T::DTYPE;
            if let Some((_, maxima, _, _, size)) = &mut weight.nested {
                // The kernels for few rows want a power of two.
                *size = 256;
                maxima.truncate((n * k).div_ceil(64 * 256));
            }
            weight
        };
        let weights: Vec<Weight> = columns.iter().enumerate().map(of).collect();
        Maps {
            x: random(8, rows * k),
            dense: weights.iter().map(Weight::dense).collect(),
            weights,
            bias: random(9, columns[0]),
            adapters: columns.iter().map(|&n| adapter(40, [n, k, RANK], 0.5)).collect(),
            k,
            columns: columns.to_vec(),
        }
    }

    fn bias(&self, i: usize) -> Option<View<'_, T>> {
        (i == 0).then(|| (&self.bias).into())
    }

    fn lora(&self, i: usize) -> Option<Lora<'_, T>> {
        let last = i + 1 == self.columns.len();
        (i == 0 || last).then(|| self.adapters[i].view([self.columns[i], self.k, RANK]))
    }

    fn rows(&self) -> usize {
        self.x.len() / self.k
    }

    fn outputs(&self) -> Outputs<T> {
        let nan = |n: usize| vec![T::from_f64(f64::NAN); self.rows() * n];
        Outputs {
            y: self.columns.iter().map(|&n| nan(n)).collect(),
            s: self.columns.iter().map(|_| vec![f32::NAN; self.rows() * RANK]).collect(),
            gated: nan(self.columns[0]),
        }
    }

    /// One launch, with dense weights or with 4-bit ones.
    fn together(&self, device: &Device, four: bool, gates: bool) -> Vec<u64> {
        let mut out = self.outputs();
        let x = View::rows_of(&self.x, self.k).unwrap();
        let n = self.columns[0];
        let gated = gates.then(|| ViewMut::rows_of(&mut out.gated, n).unwrap());
        let parts = out.y.iter_mut().zip(&mut out.s).enumerate();
        macro_rules! maps {
            ($weight:expr) => {
                parts
                    .map(|(i, (y, s))| FanMap {
                        w: $weight(i),
                        bias: self.bias(i),
                        lora: self.lora(i),
                        s: self.lora(i).map(|_| ViewMut::rows_of(s, RANK).unwrap()),
                        y: ViewMut::rows_of(y, self.columns[i]).unwrap(),
                    })
                    .collect()
            };
        }
        if four {
            let maps = maps!(|i: usize| self.weights[i].view());
            nf4_matmul_fan(device, Nf4MatmulFan { x, maps, gated }).unwrap();
        } else {
            let maps = maps!(|i: usize| View::rows_of(&self.dense[i], self.k).unwrap());
            matmul_fan(device, MatmulFan { x, maps, gated }).unwrap();
        }
        out.bits()
    }

    /// One after another.
    fn alone(&self, device: &Device, four: bool, gates: bool) -> Vec<u64> {
        let mut out = self.outputs();
        let x = View::rows_of(&self.x, self.k).unwrap();
        for (i, (y, s)) in out.y.iter_mut().zip(&mut out.s).enumerate() {
            let lora: Vec<Lora<'_, T>> = self.lora(i).into_iter().collect();
            let (bias, adapter, residual) = (self.bias(i), None, None);
            let s = self.lora(i).map(|_| ViewMut::rows_of(s, RANK).unwrap());
            let y = ViewMut::rows_of(y, self.columns[i]).unwrap();
            let lora = &lora[..];
            if four {
                let w = self.weights[i].view();
                nf4_matmul(device, Nf4Matmul { x, w, bias, lora, adapter, s, residual, y })
                    .unwrap();
            } else {
                let w = View::rows_of(&self.dense[i], self.k).unwrap();
                matmul(device, Matmul { x, w, bias, lora, adapter, s, residual, y }).unwrap();
            }
        }
        if gates {
            let n = self.columns[0];
            let (gate, up) = (&out.y[0][..], &out.y[1][..]);
            let (gate, up) = (View::rows_of(gate, n).unwrap(), View::rows_of(up, n).unwrap());
            let y = ViewMut::rows_of(&mut out.gated, n).unwrap();
            swiglu(device, Swiglu { gate, up, y }).unwrap();
        }
        out.bits()
    }
}

struct Outputs<T> {
    y: Vec<Vec<T>>,
    s: Vec<Vec<f32>>,
    gated: Vec<T>,
}

impl<T: Float> Outputs<T> {
    fn bits(&self) -> Vec<u64> {
        let all = self.y.iter().chain([&self.gated]).flat_map(|y| exact_bits(y));
        all.chain(self.s.iter().flat_map(|s| exact_bits(s))).collect()
    }
}

fn agree<T: Float>(device: &Device, rows: &[usize], k: usize, columns: &[usize], what: &str) {
    let gates = columns.len() == 2;
    for &m in rows {
        let maps = Maps::<T>::new(m, k, columns);
        for four in [false, true] {
            let (one, many) = (maps.alone(device, four, gates), maps.together(device, four, gates));
            assert!(one == many, "{what}: {m} x {columns:?} x {k}, 4 bits: {four}");
        }
    }
}

/// Every regime: up to 8 and 16 rows, tiles of 64 and 128, in clusters and not; columns that fill no tile.
#[test]
fn products_of_one_input_have_the_bits_they_have_alone() {
    for executor in executors() {
        let (device, what) = (&executor.device, &executor.name);
        agree::<bf16>(device, &[1, 9, 17, 65], 320, &[136, 40, 40], what);
        agree::<bf16>(device, &[2, 16, 40, 130], 320, &[264, 264], what);
        // Nothing is aligned, then another number of products, then what tensor cores do not multiply.
        agree::<bf16>(device, &[3, 20], 83, &[21, 21], what);
        agree::<f16>(device, &[5, 12, 70], 128, &[24, 24], what);
        agree::<f16>(device, &[1], 64, &[24], what);
        agree::<f16>(device, &[1, 17], 64, &[8, 24, 16, 40], what);
        agree::<f32>(device, &[3], 64, &[24, 24], what);
    }
}

/// Where a weight is written out first, only the first factors share a launch.
#[test]
fn products_of_many_rows_have_the_bits_they_have_alone() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        agree::<bf16>(&emulated(set, 1), &[520], 64, &[24, 24], &format!("{set:?}"));
    }
}

/// In any order of blocks the one that comes last gates.
#[test]
fn what_is_gated_does_not_depend_on_the_order_of_blocks() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for seed in 1..4 {
            agree::<bf16>(&emulated(set, seed), &[1, 40], 576, &[136, 136], &format!("{set:?}"));
        }
    }
}

fn launches(set: KernelSet, rows: usize, columns: &[usize]) -> Vec<String> {
    let driver = Arc::new(EmuDriver::new());
    let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
    let maps = Maps::<bf16>::new(rows, 64, columns);
    maps.together(&Device::Gpu(gpu), true, columns.len() == 2);
    driver.take_launches().into_iter().map(|(kernel, _)| kernel).collect()
}

#[test]
fn a_fan_is_two_launches() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        for columns in [&[72, 40, 40][..], &[72, 72]] {
            let want = ["matmul_fan_few8_bf16", "nf4_matmul_fan_few8_bf16"];
            assert_eq!(launches(set, 1, columns), want, "{set:?}");
            let want = ["matmul_fan_tile64_bf16", "nf4_matmul_fan_tile64_bf16"];
            assert_eq!(launches(set, 64, columns), want, "{set:?}");
        }
    }
}

#[test]
fn fans_refuse_what_does_not_fit() {
    let maps = Maps::<f32>::new(2, 64, &[8, 8]);
    let x = View::rows_of(&maps.x, 64).unwrap();
    let run = |columns: [usize; 2], gated: usize, s: bool| {
        let mut y = [vec![7f32; 2 * columns[0]], vec![7f32; 2 * columns[1]]];
        let (mut kept, mut out) = (vec![7f32; 8], vec![7f32; 2 * gated]);
        let mut kept = s.then(|| ViewMut::rows_of(&mut kept, 4).unwrap());
        let list = y.iter_mut().enumerate().map(|(i, y)| FanMap {
            w: View::rows_of(&maps.dense[i], 64).unwrap(),
            bias: None,
            lora: None,
            s: kept.take(),
            y: ViewMut::rows_of(y, columns[i]).unwrap(),
        });
        let gated = Some(ViewMut::rows_of(&mut out, gated).unwrap());
        let result = matmul_fan(&CPU, MatmulFan { x, maps: list.collect(), gated });
        assert!(y.iter().flatten().all(|&y| y == 7.0));
        result
    };
    refused_with(run([8, 4], 8, false), "maps[1].y", "[2, 8]");
    refused_with(run([8, 8], 4, false), "gated", "[2, 8]");
    refused_with(run([8, 8], 8, true), "maps[0].s", "adapter");
    let none = MatmulFan { x, maps: Vec::new(), gated: None };
    refused_with(matmul_fan(&CPU, none), "maps", "at least one");
    let mut y = vec![0f32; 16];
    let mut gated = vec![0f32; 16];
    let w = View::rows_of(&maps.dense[0], 64).unwrap();
    let y = ViewMut::rows_of(&mut y, 8).unwrap();
    let gated = Some(ViewMut::rows_of(&mut gated, 8).unwrap());
    let one = vec![FanMap { w, bias: None, lora: None, s: None, y }];
    refused_with(matmul_fan(&CPU, MatmulFan { x, maps: one, gated }), "gated", "two products");
}
