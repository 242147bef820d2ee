//! 03: a 4-bit weight with an adapter (QLoRA). `cargo run --example 03_nf4_adapter`
//!
//! The base weight is quantized once and never changes. What is trained is a pair of small matrices:
//! y = x·Wᵀ + scale·(x·Aᵀ)·Bᵀ.

use gradus::ops::{Lora, Matmul, Nf4Matmul, matmul, nf4_matmul};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::rng::{Purpose, Rng};
use gradus::{Device, Result, View, ViewMut};

/// Rows of x.
const M: usize = 4;
/// Inputs and outputs of the layer.
const K: usize = 256;
const N: usize = 128;
/// Rank of the adapter.
const RANK: usize = 8;

fn main() -> Result<()> {
    let device = Device::best()?;
    let weight = normals(1, N * K, 0.05);
    let quantized =
        Nf4Tensor::quantize(&device, View::rows_of(&weight, K)?, &Nf4Options::default())?;
    let (bytes, bits) = (quantized.bytes(), quantized.bits_per_parameter());
    println!("W [{N}, {K}]: {} bytes in f32, {bytes} in 4 bits ({bits:.2} per weight)", 4 * N * K);

    // An adapter begins as nothing: A is random, B is 0.
    let (x, a, mut b) = (normals(2, M * K, 1.0), normals(3, RANK * K, 0.1), vec![0f32; N * RANK]);
    let before = product(&device, &quantized, &x, &a, &b)?;

    // The 4-bit product is, bit for bit, the product with the dequantized weight, which never exists
    // as a whole: codes are expanded a piece at a time where they are multiplied.
    let dense: Vec<f32> = quantized.dequantize(&device)?;
    let mut expected = vec![0f32; M * N];
    matmul(
        &device,
        Matmul {
            x: View::rows_of(&x, K)?,
            w: View::rows_of(&dense, K)?,
            bias: None,
            lora: &[],
            adapter: None,
            s: None,
            residual: None,
            y: ViewMut::rows_of(&mut expected, N)?,
        },
    )?;
    assert_eq!(before, expected);
    let error = rms(&weight.iter().zip(&dense).map(|(w, q)| w - q).collect::<Vec<_>>());
    println!("rms of W {:.4}, of what quantization changed {error:.4}", rms(&weight));
    assert!(error < 0.12 * rms(&weight));

    // Training moves B, and with it the output; W stays as it is.
    b.copy_from_slice(&normals(4, N * RANK, 0.1));
    let after = product(&device, &quantized, &x, &a, &b)?;
    let moved = rms(&after.iter().zip(&before).map(|(y, y0)| y - y0).collect::<Vec<_>>());
    let parameters = a.len() + b.len();
    println!("{parameters} trained parameters beside {} move y by {moved:.3} (rms)", N * K);
    assert!(moved > 0.0);
    Ok(())
}

/// x·Wᵀ with the adapter.
fn product(device: &Device, w: &Nf4Tensor, x: &[f32], a: &[f32], b: &[f32]) -> Result<Vec<f32>> {
    let lora = Lora { a: View::rows_of(a, K)?, b: View::rows_of(b, RANK)?, scale: 2.0 };
    let mut y = vec![0f32; M * N];
    nf4_matmul(
        device,
        Nf4Matmul {
            x: View::rows_of(x, K)?,
            w: w.view(),
            bias: None,
            lora: &[lora],
            adapter: None,
            s: None,
            residual: None,
            y: ViewMut::rows_of(&mut y, N)?,
        },
    )?;
    Ok(y)
}

/// Reproducible numbers: the same for a seed on every machine.
fn normals(seed: u64, n: usize, scale: f64) -> Vec<f32> {
    let mut rng = Rng::new(seed, Purpose::User, [0; 3]);
    (0..n).map(|_| (rng.normal() * scale) as f32).collect()
}

fn rms(x: &[f32]) -> f32 {
    (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt()
}
