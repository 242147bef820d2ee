//! Matrix products of contiguous operands, for the tests of the matrix ops.
#![allow(dead_code)]

use gradus::dtype::Float;
use gradus::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, lora_grad, matmul, matmul_dw, matmul_dx,
};
use gradus::{Device, View, ViewMut};

use crate::common::normals;

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
pub fn forward<T: Float>(
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
        y: ViewMut::new(&mut y, &[m as i64, n as i64]).unwrap(),
    };
    matmul(&CPU, args).unwrap();
    y
}

pub fn backward<T: Float>(
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
    matmul_dx(&CPU, args).unwrap();
    dx
}

/// (Σ_p l[i, p]·r[p, j], Σ_p |l[i, p]·r[p, j]|) in f64.
pub fn dot(depth: usize, l: impl Fn(usize) -> f64, r: impl Fn(usize) -> f64) -> (f64, f64) {
    (0..depth).fold((0.0, 0.0), |(sum, size), p| (sum + l(p) * r(p), size + (l(p) * r(p)).abs()))
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub fn weight_gradient<T: Float>([_, n, k]: [usize; 3], dy: &[T], x: &[T]) -> (Vec<f32>, Vec<f32>) {
    let (mut dw, mut dbias) = (vec![0f32; n * k], vec![0f32; n]);
    let args = MatmulDw {
        dy: View::rows_of(dy, n).unwrap(),
        x: View::rows_of(x, k).unwrap(),
        dw: ViewMut::rows_of(&mut dw, k).unwrap(),
        dbias: Some((&mut dbias).into()),
    };
    matmul_dw(&CPU, args).unwrap();
    (dw, dbias)
}

pub fn adapter_gradient<T: Float>(
    [_, n, k]: [usize; 3],
    x: &[T],
    dy: &[T],
    s: &[f32],
    lora: Lora<'_, T>,
    adapter: Option<&[i32]>,
    index: i32,
) -> (Vec<f32>, Vec<f32>) {
    let r = lora.a.extent(0);
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
    lora_grad(&CPU, args).unwrap();
    (da, db)
}

pub fn in_pool<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(body)
}

pub fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
