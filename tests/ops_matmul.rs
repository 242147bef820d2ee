//! Matrix products: an f64 oracle with the componentwise bound, one chain per element, gradients by
//! central differences and by adjoints, strides, threads, bad input.

mod common;

use common::{check_gradient, normals};
use gradus::dtype::Float;
use gradus::ops::{
    Lora, LoraGrad, Matmul, MatmulDw, MatmulDx, lora_grad, matmul, matmul_dw, matmul_dx,
};
use gradus::{Device, View, ViewMut, bf16, f16};

const CPU: Device = Device::Cpu;

/// Extents that are 1, prime, a power of two or one off, and beyond one panel, tile and block.
const LATTICE: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 33, 129],
    [2, 17, 3],
    [3, 5, 7],
    [5, 31, 128],
    [6, 32, 127],
    [7, 64, 256],
    [13, 1, 257],
    [31, 63, 65],
    [64, 16, 64],
    [65, 97, 130],
    [97, 100, 1],
    [128, 65, 383],
    [600, 35, 40],
];

struct Adapter<T> {
    a: Vec<T>,
    b: Vec<T>,
    scale: f64,
}

fn random<T: Float>(seed: u64, n: usize) -> Vec<T> {
    normals(seed, n, 1.0).into_iter().map(T::from_f64).collect()
}

fn adapter<T: Float>(seed: u64, [n, k, r]: [usize; 3], scale: f64) -> Adapter<T> {
    Adapter { a: random(seed, r * k), b: random(seed + 1, n * r), scale }
}

impl<T: Float> Adapter<T> {
    fn view(&self, [n, k, r]: [usize; 3]) -> Lora<'_, T> {
        Lora {
            a: View::new(&self.a, &[r as i64, k as i64]).unwrap(),
            b: View::new(&self.b, &[n as i64, r as i64]).unwrap(),
            scale: self.scale,
        }
    }
}

/// Y of contiguous operands, the output starting as NaN.
fn forward<T: Float>(
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

fn backward<T: Float>(
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
fn dot(depth: usize, l: impl Fn(usize) -> f64, r: impl Fn(usize) -> f64) -> (f64, f64) {
    (0..depth).fold((0.0, 0.0), |(sum, size), p| (sum + l(p) * r(p), size + (l(p) * r(p)).abs()))
}

/// Half a unit in the last place of `T` at `x`.
fn half_ulp<T: Float>(x: f64) -> f64 {
    let bits = match std::any::type_name::<T>() {
        name if name.ends_with("bf16") => 8,
        name if name.ends_with("f16") => 11,
        "f32" => 24,
        _ => 53,
    };
    let lowest = if bits == 11 { 2f64.powi(-14) } else { f32::MIN_POSITIVE as f64 };
    2f64.powi(x.abs().max(lowest).log2().floor() as i32 - bits)
}

/// Largest error of `forward` as a share of the bound (K + r + 2)·2^-24·Σ|terms| + half an ulp.
fn share_of_bound<T: Float>(extents: [usize; 3], rank: usize) -> f64 {
    let [m, n, k] = extents;
    let (x, w) = (random::<T>(1, m * k), random::<T>(2, n * k));
    let bias = random::<T>(3, n);
    let adapter = adapter::<T>(4, [n, k, rank], 0.5);
    let lora = [adapter.view([n, k, rank])];
    let y = forward(extents, &x, &w, Some(&bias), &lora, None);
    let unit = 2f64.powi(-24);
    let mut worst = 0.0f64;
    for i in 0..m {
        let s: Vec<(f64, f64)> = (0..rank)
            .map(|q| dot(k, |p| x[i * k + p].to_f64(), |p| adapter.a[q * k + p].to_f64()))
            .collect();
        for j in 0..n {
            let (base, base_size) = dot(k, |p| x[i * k + p].to_f64(), |p| w[j * k + p].to_f64());
            let b = |q: usize| adapter.b[j * rank + q].to_f64();
            let (low, _) = dot(rank, |q| adapter.scale * s[q].0, b);
            let (low_size, _) = dot(rank, |q| adapter.scale * s[q].1, |q| b(q).abs());
            let want = base + low + bias[j].to_f64();
            let size = base_size + low_size + bias[j].to_f64().abs();
            // The low-rank term passes through two chains: s carries K + 1 roundings of its own.
            let steps = (k + rank + 2) as f64;
            let bound = steps * unit * (base_size + bias[j].to_f64().abs())
                + (2 * k + rank + 3) as f64 * unit * low_size
                + half_ulp::<T>(want.abs() + steps * unit * size);
            worst = worst.max((y[i * n + j].to_f64() - want).abs() / bound);
        }
    }
    worst
}

#[test]
fn matmul_is_within_the_componentwise_bound() {
    for extents in LATTICE {
        for rank in [1, 3, 16] {
            let f32_share = share_of_bound::<f32>(extents, rank);
            assert!(f32_share <= 1.0, "f32 {extents:?} rank {rank}: {f32_share}");
            let bf16_share = share_of_bound::<bf16>(extents, rank);
            assert!(bf16_share <= 1.0, "bf16 {extents:?} rank {rank}: {bf16_share}");
            let f16_share = share_of_bound::<f16>(extents, rank);
            assert!(f16_share <= 1.0, "f16 {extents:?} rank {rank}: {f16_share}");
        }
    }
}

/// The promise itself: the chain written out in scalar code gives the same bits.
#[test]
fn each_element_is_one_chain() {
    for extents in LATTICE {
        let ([m, n, k], r) = (extents, 5);
        let (x, w, bias) = (random::<f32>(1, m * k), random(2, n * k), random(3, n));
        let adapter = adapter::<f32>(4, [n, k, r], 0.3);
        let y = forward(extents, &x, &w, Some(&bias), &[adapter.view([n, k, r])], None);
        for i in 0..m {
            let s: Vec<f32> = (0..r)
                .map(|q| {
                    let sum =
                        (0..k).fold(0f32, |c, p| x[i * k + p].mul_add(adapter.a[q * k + p], c));
                    (0.3 * sum as f64) as f32
                })
                .collect();
            for j in 0..n {
                let base = (0..k).fold(0f32, |c, p| x[i * k + p].mul_add(w[j * k + p], c));
                let sum = (0..r).fold(base, |c, q| s[q].mul_add(adapter.b[j * r + q], c));
                assert_eq!(
                    y[i * n + j].to_bits(),
                    (sum + bias[j]).to_bits(),
                    "{extents:?} {i} {j}"
                );
            }
        }
    }
}
