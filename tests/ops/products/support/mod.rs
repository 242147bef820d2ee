//! Matrix products of contiguous operands, for the tests of the matrix ops.

pub mod nf4;

use crate::common::devices::on_all;
use crate::common::{bits, normals};
use gradus::dtype::Float;
use gradus::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, lora_grad, matmul, matmul_dw, matmul_dx,
};
use gradus::{DType, Device, View, ViewMut};

pub const CPU: Device = Device::Cpu;

pub struct Adapter<T> {
    pub a: Vec<T>,
    pub b: Vec<T>,
    pub scale: f64,
}

pub fn random<T: Float>(seed: u64, n: usize) -> Vec<T> {
    normals(seed, n, 1.0).into_iter().map(T::from_f64).collect()
}

pub fn adapter<T: Float>(seed: u64, [n, k, r]: [usize; 3], scale: f64) -> Adapter<T> {
    Adapter { a: random(seed, r * k), b: random(seed + 1, n * r), scale }
}

impl<T: Float> Adapter<T> {
    pub fn view(&self, [n, k, r]: [usize; 3]) -> Lora<'_, T> {
        Lora {
            a: View::new(&self.a, &[r as i64, k as i64]).unwrap(),
            b: View::new(&self.b, &[n as i64, r as i64]).unwrap(),
            scale: self.scale,
        }
    }
}

/// Y of contiguous operands, the output starting as NaN.
pub fn forward_on<T: Float>(
    device: &Device,
    [m, n, k]: [usize; 3],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); m * n];
    let args = Matmul {
        x: View::new(x, &[m as i64, k as i64]).unwrap(),
        w: View::new(w, &[n as i64, k as i64]).unwrap(),
        bias: bias.map(View::from),
        lora,
        adapter: adapter.map(View::from),
        s: None,
        residual: None,
        y: ViewMut::new(&mut y, &[m as i64, n as i64]).unwrap(),
    };
    matmul(device, args).unwrap();
    y
}

/// In which order a product of rows with rows adds its terms.
#[derive(Clone, Copy, PartialEq)]
pub enum Order {
    /// One chain of fused multiply-adds, first over the weight's steps, then over the adapter's: f32 and f64 on
    /// a GPU.
    Chain,
    /// 16 of them, step p in chain p mod 16, whose rows end with zeros; then lanes 8, 4, 2 and 1 apart are added:
    /// the CPU.
    Lanes,
}

/// `a · b + c` rounded once, in f64 for f64 operands and else in f32.
fn fma<T: Float>(a: f64, b: f64, c: f64) -> f64 {
    match T::DTYPE {
        DType::F64 => a.mul_add(b, c),
        _ => (a as f32).mul_add(b as f32, c as f32) as f64,
    }
}

/// `x` rounded to what `T` is accumulated in.
fn rounded<T: Float>(x: f64) -> f64 {
    if T::DTYPE == DType::F64 { x } else { x as f32 as f64 }
}

fn sum_in_order<T: Float>(order: Order, parts: &[(&[f64], &[f64])]) -> f64 {
    let lanes = if order == Order::Chain { 1 } else { 16 };
    let mut sums = vec![0.0; lanes];
    for (l, r) in parts {
        for p in 0..l.len().next_multiple_of(lanes) {
            let at = |x: &[f64]| x.get(p).copied().unwrap_or(0.0);
            sums[p % lanes] = fma::<T>(at(l), at(r), sums[p % lanes]);
        }
    }
    while sums.len() > 1 {
        let rest = sums.split_off(sums.len() / 2);
        sums.iter_mut().zip(rest).for_each(|(a, b)| *a = rounded::<T>(*a + b));
    }
    sums[0]
}

/// Y in scalar code, to the last bit.
pub fn forward_in_order<T: Float>(
    order: Order,
    [m, n, k]: [usize; 3],
    x: &[T],
    w: &[impl Float],
    bias: Option<&[T]>,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let wide = |x: &[T]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
    let w: Vec<f64> = w.iter().map(|w| w.to_f64()).collect();
    let pairs: Vec<_> = lora
        .iter()
        .map(|l| {
            let rows = |v: &View<'_, T>| -> Vec<Vec<f64>> {
                (0..v.extent(0)).map(|row| wide(v.row(row))).collect()
            };
            (rows(&l.a), rows(&l.b), l.scale)
        })
        .collect();
    let mut y = Vec::new();
    for i in 0..m {
        let x = wide(&x[i * k..][..k]);
        let taken = usize::try_from(adapter.map_or(0, |a| a[i])).ok();
        let pair = taken.and_then(|taken| pairs.get(taken));
        let s: Vec<f64> = pair.map_or(Vec::new(), |(a, _, scale)| {
            let sums = a.iter().map(|a| sum_in_order::<T>(order, &[(&x, a)]));
            sums.map(|sum| rounded::<T>(scale * sum)).collect()
        });
        for j in 0..n {
            let up: &[f64] = pair.map_or(&[], |(_, b, _)| &b[j]);
            let sum = sum_in_order::<T>(order, &[(&x, &w[j * k..][..k]), (&s, up)]);
            y.push(T::from_f64(bias.map_or(sum, |b| rounded::<T>(sum + b[j].to_f64()))));
        }
    }
    y
}

/// The same on every executor; returns the CPU's.
pub fn forward<T: Float>(
    [m, n, k]: [usize; 3],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let run = |device: &Device| forward_on(device, [m, n, k], x, w, bias, lora, adapter);
    // In f32 and f64 a GPU has the bits of one chain, in 16 bits the CPU's values but for rounding.
    let chain = matches!(T::DTYPE, DType::F32 | DType::F64)
        .then(|| forward_in_order(Order::Chain, [m, n, k], x, w, bias, lora, adapter));
    on_all(run, |name, cpu, gpu| {
        agree(name, chain.as_ref().unwrap_or(cpu), gpu, k, |at| {
            let (i, j) = (at / n, at % n);
            let low = |l: &Lora<'_, T>, q: usize| {
                let s = dot(k, |p| x[i * k + p].to_f64(), |p| l.a.row(q)[p].to_f64()).1;
                l.scale.abs() * s * l.b.row(j)[q].to_f64().abs()
            };
            dot(k, |p| x[i * k + p].to_f64(), |p| w[j * k + p].to_f64()).1
                + bias.map_or(0.0, |b| b[j].to_f64().abs())
                + low_rank(lora, adapter, i, low)
        });
    })
}

/// dX of contiguous operands.
pub fn backward_on<T: Float>(
    device: &Device,
    [m, n, k]: [usize; 3],
    dy: &[T],
    w: &[T],
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let mut dx = vec![T::from_f64(f64::NAN); m * k];
    let args = MatmulDx {
        dy: View::new(dy, &[m as i64, n as i64]).unwrap(),
        w: View::new(w, &[n as i64, k as i64]).unwrap(),
        lora,
        adapter: adapter.map(View::from),
        accumulate: false,
        dx: ViewMut::new(&mut dx, &[m as i64, k as i64]).unwrap(),
    };
    matmul_dx(device, args).unwrap();
    dx
}

/// The same on every executor; returns the CPU's.
pub fn backward<T: Float>(
    [m, n, k]: [usize; 3],
    dy: &[T],
    w: &[T],
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
) -> Vec<T> {
    let run = |device: &Device| backward_on(device, [m, n, k], dy, w, lora, adapter);
    on_all(run, |name, cpu, gpu| {
        agree(name, cpu, gpu, n, |at| {
            let (i, j) = (at / k, at % k);
            let low = |l: &Lora<'_, T>, q: usize| {
                let s = dot(n, |p| dy[i * n + p].to_f64(), |p| l.b.row(p)[q].to_f64()).1;
                l.scale.abs() * s * l.a.row(q)[j].to_f64().abs()
            };
            dot(n, |p| dy[i * n + p].to_f64(), |p| w[p * k + j].to_f64()).1
                + low_rank(lora, adapter, i, low)
        });
    })
}

/// Σ_q |terms| of the low-rank part of row `i`.
fn low_rank<T>(
    lora: &[Lora<'_, T>],
    adapter: Option<&[i32]>,
    i: usize,
    term: impl Fn(&Lora<'_, T>, usize) -> f64,
) -> f64 {
    let index = adapter.map_or(0, |a| a[i]);
    let taken = usize::try_from(index).ok().and_then(|g| lora.get(g));
    taken.map_or(0.0, |l| (0..l.a.extent(0)).map(|q| term(l, q)).sum())
}

/// f32 and f64 have the bits that they should have. 16-bit operands go through tensor cores: both results lie
/// within (2·depth + 32)·2^-24·Σ|terms| of exact before each is rounded once, half a unit in the last
/// place.
pub fn agree<T: Float>(
    name: &str,
    cpu: &[T],
    gpu: &[T],
    depth: usize,
    size: impl Fn(usize) -> f64,
) {
    let unit = match T::DTYPE {
        DType::Bf16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 0.0,
    };
    for (at, (cpu, gpu)) in cpu.iter().zip(gpu).enumerate() {
        let (cpu, gpu) = (cpu.to_f64(), gpu.to_f64());
        if cpu.to_bits() == gpu.to_bits() || (cpu.is_nan() && gpu.is_nan()) {
            continue;
        }
        assert!(unit > 0.0, "{name}: {gpu:e} at {at}, it should be {cpu:e}");
        let sums = 2.0 * (2 * depth + 32) as f64 * 2f64.powi(-24) * size(at);
        let rounding = unit * cpu.abs().max(gpu.abs()) + 2f64.powi(-24);
        assert!(
            (cpu - gpu).abs() <= sums + rounding,
            "{name}: {gpu:e} at {at}, the CPU has {cpu:e}"
        );
    }
}

/// (Σ_p l[i, p]·r[p, j], Σ_p |l[i, p]·r[p, j]|) in f64.
pub fn dot(depth: usize, l: impl Fn(usize) -> f64, r: impl Fn(usize) -> f64) -> (f64, f64) {
    (0..depth).fold((0.0, 0.0), |(sum, size), p| (sum + l(p) * r(p), size + (l(p) * r(p)).abs()))
}

/// Bits of any float; exact, as f64 holds every value of the others.
pub fn exact_bits<T: Float>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| x.to_f64().to_bits()).collect()
}

/// dW and dbias on every executor; returns the CPU's.
pub fn weight_gradient<T: Float>([m, n, k]: [usize; 3], dy: &[T], x: &[T]) -> (Vec<f32>, Vec<f32>) {
    let run = |device: &Device| {
        let (mut dw, mut dbias) = (vec![0f32; n * k], vec![0f32; n]);
        let args = MatmulDw {
            dy: View::rows_of(dy, n).unwrap(),
            x: View::rows_of(x, k).unwrap(),
            dw: ViewMut::rows_of(&mut dw, k).unwrap(),
            dbias: Some((&mut dbias).into()),
        };
        matmul_dw(device, args).unwrap();
        (dw, dbias)
    };
    on_all(run, |name, cpu, gpu| {
        assert_eq!(bits(&cpu.1), bits(&gpu.1), "{name}: dbias");
        if matches!(T::DTYPE, DType::F32 | DType::F64) {
            return assert_eq!(bits(&cpu.0), bits(&gpu.0), "{name}: dw");
        }
        for (at, (a, b)) in cpu.0.iter().zip(&gpu.0).enumerate() {
            let (j, p) = (at / k, at % k);
            let size = dot(m, |i| dy[i * n + j].to_f64(), |i| x[i * k + p].to_f64()).1;
            let bound = 2.0 * (2 * m + 32) as f64 * 2f64.powi(-24) * size;
            assert!((a - b).abs() as f64 <= bound, "{name}: {b:e} at {at}, the CPU has {a:e}");
        }
    })
}

/// dA and dB on every executor; returns the CPU's. dS of 16-bit operands comes from tensor cores,
/// so that dA only agrees within the bound of the two products.
pub fn adapter_gradient<T: Float>(
    [m, n, k]: [usize; 3],
    x: &[T],
    dy: &[T],
    s: &[f32],
    lora: Lora<'_, T>,
    adapter: Option<&[i32]>,
    index: i32,
) -> (Vec<f32>, Vec<f32>) {
    let r = lora.a.extent(0);
    let run = |device: &Device| {
        let (mut da, mut db) = (vec![0f32; r * k], vec![0f32; n * r]);
        let args = LoraGrad {
            x: View::rows_of(x, k).unwrap(),
            dy: View::rows_of(dy, n).unwrap(),
            s: View::rows_of(s, r).unwrap(),
            lora,
            adapter: adapter.map(View::from),
            index,
            da: ViewMut::rows_of(&mut da, k).unwrap(),
            db: ViewMut::rows_of(&mut db, r).unwrap(),
        };
        lora_grad(device, args).unwrap();
        (da, db)
    };
    on_all(run, |name, cpu, gpu| {
        assert_eq!(bits(&cpu.1), bits(&gpu.1), "{name}: db");
        if matches!(T::DTYPE, DType::F32 | DType::F64) {
            return assert_eq!(bits(&cpu.0), bits(&gpu.0), "{name}: da");
        }
        for (at, (a, b)) in cpu.0.iter().zip(&gpu.0).enumerate() {
            let (q, p) = (at / k, at % k);
            let ds = |i: usize| {
                lora.scale.abs()
                    * dot(n, |j| dy[i * n + j].to_f64(), |j| lora.b.row(j)[q].to_f64()).1
            };
            let size = dot(m, ds, |i| x[i * k + p].to_f64()).1;
            let bound = 2.0 * (2 * (m + n) + 32) as f64 * 2f64.powi(-24) * size;
            assert!((a - b).abs() as f64 <= bound, "{name}: {b:e} at {at}, the CPU has {a:e}");
        }
    })
}

pub fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
