//! What products and the norm's gradient add last: a residual gives the bits of an addition
//! afterwards, and in 16 bits saves a rounding.

use crate::common::bits_of;
use crate::common::devices::executors;
use crate::products::support::*;
use gradus::dtype::Float;
use gradus::ops::{Matmul, Nf4Matmul, matmul, nf4_matmul};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::view::{Dims, Location};
use gradus::{DType, Device, View, ViewMut, bf16, f16};

/// Rows with `GAP` elements behind each.
const GAP: usize = 3;

/// A layer with two adapters and a bias, and what is added to it.
struct Layer<T> {
    extents: [usize; 3],
    x: Vec<T>,
    w: Vec<T>,
    bias: Vec<T>,
    adapters: [Adapter<T>; 2],
    index: Vec<i32>,
    residual: Vec<T>,
}

const RANK: usize = 3;

impl<T: Float> Layer<T> {
    fn new([m, n, k]: [usize; 3]) -> Layer<T> {
        Layer {
            extents: [m, n, k],
            x: random(1, m * k),
            w: random(2, n * k),
            bias: random(3, n),
            adapters: [adapter(4, [n, k, RANK], 0.5), adapter(6, [n, k, RANK], -1.5)],
            index: (0..m).map(|i| (i * 2 % 3) as i32 - 1).collect(),
            residual: random(8, m * (n + GAP)),
        }
    }

    /// The same values, which f32 holds exactly.
    fn widened(&self) -> Layer<f32> {
        let wide = |v: &[T]| v.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let adapter = |a: &Adapter<T>| Adapter { a: wide(&a.a), b: wide(&a.b), scale: a.scale };
        Layer {
            extents: self.extents,
            x: wide(&self.x),
            w: wide(&self.w),
            bias: wide(&self.bias),
            adapters: self.adapters.each_ref().map(adapter),
            index: self.index.clone(),
            residual: wide(&self.residual),
        }
    }

    fn residual(&self, i: usize, j: usize) -> T {
        self.residual[i * (self.extents[1] + GAP) + j]
    }

    fn residual_view(&self) -> View<'_, T> {
        let [m, n, _] = self.extents;
        View::strided(&self.residual, &[m as i64, n as i64], &[(n + GAP) as i64, 1]).unwrap()
    }

    /// The product, 4-bit if there is a 4-bit weight, with or without the residual.
    fn y(&self, device: &Device, w4: Option<&Nf4Tensor>, add: bool) -> Vec<T> {
        let [m, n, k] = self.extents;
        let lora = self.adapters.each_ref().map(|a| a.view([n, k, RANK]));
        let mut y = vec![T::from_f64(f64::NAN); m * n];
        let (x, adapter) = (View::rows_of(&self.x, k).unwrap(), Some((&self.index).into()));
        let (bias, lora, s) = (Some((&self.bias).into()), &lora[..], None);
        let residual = add.then(|| self.residual_view());
        let out = ViewMut::rows_of(&mut y, n).unwrap();
        match w4 {
            Some(w) => {
                let w = w.view();
                let args = Nf4Matmul { x, w, bias, lora, adapter, s, residual, y: out };
                nf4_matmul(device, args).unwrap();
            }
            None => {
                let w = View::rows_of(&self.w, k).unwrap();
                let args = Matmul { x, w, bias, lora, adapter, s, residual, y: out };
                matmul(device, args).unwrap();
            }
        }
        y
    }

    /// Σ|terms| of output (i, j), and the terms' sum, in f64.
    fn exact(&self, w: &[f64], i: usize, j: usize) -> (f64, f64) {
        let [_, _, k] = self.extents;
        let x = |p: usize| self.x[i * k + p].to_f64();
        let (mut sum, mut size) = dot(k, x, |p| w[j * k + p]);
        if let Ok(taken) = usize::try_from(self.index[i]) {
            let a = &self.adapters[taken];
            for q in 0..RANK {
                let (s, s_size) = dot(k, x, |p| a.a[q * k + p].to_f64());
                sum += a.scale * s * a.b[j * RANK + q].to_f64();
                size += (a.scale * s_size * a.b[j * RANK + q].to_f64()).abs();
            }
        }
        let (bias, residual) = (self.bias[j].to_f64(), self.residual(i, j).to_f64());
        (sum + bias + residual, size + bias.abs() + residual.abs())
    }
}

/// Blocks of one row and of two, columns of one block and two, depths of one tile and more.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [2, 67, 64], [35, 5, 33], [33, 65, 96]];

/// The weight in 4 bits, quantized from `Q`.
fn quantized<T: Float, Q: Float>(layer: &Layer<T>) -> Nf4Tensor {
    let w: Vec<Q> = layer.w.iter().map(|w| Q::from_f64(w.to_f64())).collect();
    let w = View::rows_of(&w, layer.extents[2]).unwrap();
    Nf4Tensor::quantize(&Device::Cpu, w, &Nf4Options::default()).unwrap()
}

fn check_wide<T: Float>() {
    for extents in SHAPES {
        let layer = Layer::<T>::new(extents);
        for w4 in [None, Some(quantized::<T, f32>(&layer))] {
            for executor in executors() {
                let y = |residual| layer.y(&executor.device, w4.as_ref(), residual);
                for (at, (got, bare)) in y(true).iter().zip(y(false)).enumerate() {
                    let residual = layer.residual(at / extents[1], at % extents[1]);
                    let want = match T::DTYPE {
                        DType::F64 => T::from_f64(residual.to_f64() + bare.to_f64()),
                        _ => T::from_f32(residual.to_f32() + bare.to_f32()),
                    };
                    let what = format!("{} {extents:?} {at}", executor.name);
                    assert_eq!(got.to_f64().to_bits(), want.to_f64().to_bits(), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_residual_has_the_bits_of_an_addition_afterwards() {
    check_wide::<f32>();
    check_wide::<f64>();
}

/// On the CPU exactly one rounding of the f32 sum; on every executor within
/// (K + r + 3)·2^-24·Σ|terms| twice over and half a unit in the last place of the exact value.
fn check_narrow<T: Float>(unit: f64) {
    for extents in SHAPES {
        let layer = Layer::<T>::new(extents);
        let [_, n, k] = extents;
        for w4 in [None, Some(quantized::<T, T>(&layer))] {
            let name = format!("{} {extents:?} {}", T::DTYPE.name(), w4.is_some());
            let wide = layer.widened().y(&Device::Cpu, w4.as_ref(), true);
            let want: Vec<T> = wide.into_iter().map(T::from_f32).collect();
            let got = layer.y(&Device::Cpu, w4.as_ref(), true);
            assert_eq!(bits_of(&got), bits_of(&want), "{name}");
            let w: Vec<f64> = match &w4 {
                None => layer.w.iter().map(|w| w.to_f64()).collect(),
                Some(w4) => w4.dequantize(&Device::Cpu).unwrap(),
            };
            for executor in executors() {
                let got = layer.y(&executor.device, w4.as_ref(), true);
                for (at, got) in got.iter().enumerate() {
                    let (want, size) = layer.exact(&w, at / n, at % n);
                    let sums = (2 * k + RANK + 35) as f64 * 2f64.powi(-24) * size;
                    let bound = 2.0 * sums + unit * (want.abs() + sums) + 2f64.powi(-25);
                    let error = (got.to_f64() - want).abs();
                    assert!(
                        error <= bound,
                        "{name} {} at {at}: {error} over {bound}",
                        executor.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_residual_of_16_bits_is_rounded_once() {
    check_narrow::<bf16>(2f64.powi(-8));
    check_narrow::<f16>(2f64.powi(-11));
}

/// Views of raw memory can alias: a residual that is the output is refused.
#[test]
fn a_residual_may_not_be_the_output() {
    let (mut memory, x, w) = (vec![1f32; 6], [1f32; 4], [1f32; 6]);
    let dims = Dims::contiguous(&[2, 3]).unwrap();
    let at = memory.as_mut_ptr();
    // SAFETY: the memory outlives both views, and the op refuses before it touches either.
    let (residual, y) = unsafe {
        let residual = View::from_raw(at as *const f32, dims, Location::Host).unwrap();
        (residual, ViewMut::from_raw(at, dims, Location::Host).unwrap())
    };
    let args = Matmul {
        x: View::rows_of(&x, 2).unwrap(),
        w: View::rows_of(&w, 2).unwrap(),
        bias: None,
        lora: &[],
        adapter: None,
        s: None,
        residual: Some(residual),
        y,
    };
    let text = matmul(&Device::Cpu, args).unwrap_err().to_string();
    assert!(text.contains("argument `y`") && text.contains("`residual`"), "{text}");
}
