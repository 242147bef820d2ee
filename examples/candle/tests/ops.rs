//! Values and gradients beside candle's own operators.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use gradus_candle::{logprob, nf4_matmul, quantize};

const TARGETS: [i32; 4] = [3, 0, 10, 7];

fn random(seed: u32, shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let values = (0..count as u32).map(|i| ((i * 37 + seed * 101) as f32 * 0.7).sin() * 2.0);
    Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu)
}

fn apart(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

/// log-softmax and gather of candle's own operators.
fn reference(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let z = (logits / temperature)?;
    let lse = z.broadcast_sub(&z.max_keepdim(1)?)?.exp()?.sum_keepdim(1)?.log()?;
    let all = z.broadcast_sub(&z.max_keepdim(1)?)?.broadcast_sub(&lse)?;
    let ids: Vec<u32> = TARGETS.iter().map(|&t| t as u32).collect();
    all.gather(&Tensor::from_vec(ids, (4, 1), &Device::Cpu)?, 1)?.squeeze(1)
}

#[test]
fn logprob_and_its_gradient() -> Result<()> {
    let logits = Var::from_tensor(&random(1, &[4, 11])?)?;
    let weight = random(2, &[4])?;
    for temperature in [1.0, 0.7] {
        let (ours, theirs) =
            (logprob(&logits, &TARGETS, temperature)?, reference(&logits, temperature)?);
        assert!(apart(&ours, &theirs)? < 1e-6);
        let gradient = |logp: &Tensor| -> Result<Tensor> {
            let all = (logp * &weight)?.sum_all()?.backward()?;
            Ok(all.get(&logits).expect("the logits have a gradient").clone())
        };
        assert!(apart(&gradient(&ours)?, &gradient(&theirs)?)? < 1e-6);
    }
    let bf16 = logprob(&logits.to_dtype(DType::BF16)?, &TARGETS, 1.0)?;
    assert!(apart(&bf16, &reference(&logits, 1.0)?)? < 0.03);
    Ok(())
}

#[test]
fn a_product_with_a_4_bit_weight() -> Result<()> {
    let (rows, n, k) = (5, 8, 64);
    let dense = random(3, &[n, k])?.flatten_all()?.to_vec1::<f32>()?;
    let packed = Arc::new(quantize(&dense, k)?);
    let back = packed.dequantize::<f32>(&gradus::Device::Cpu).expect("a checked weight");
    let w = Tensor::from_vec(back, (n, k), &Device::Cpu)?;
    let x = Var::from_tensor(&random(4, &[rows, k])?)?;
    let (ours, theirs) = (nf4_matmul(&x, &packed)?, x.matmul(&w.t()?)?);
    assert!(apart(&ours, &theirs)? < 1e-4);
    let weight = random(5, &[rows, n])?;
    let gradient = |y: &Tensor| -> Result<Tensor> {
        let all = (y * &weight)?.sum_all()?.backward()?;
        Ok(all.get(&x).expect("x has a gradient").clone())
    };
    assert!(apart(&gradient(&ours)?, &gradient(&theirs)?)? < 1e-5 * 16.0);
    Ok(())
}

#[test]
fn what_is_wrong_is_named() -> Result<()> {
    let logits = random(1, &[4, 11])?;
    let error = logprob(&logits, &[11, 0, 0, 0], 1.0).unwrap_err().to_string();
    assert!(error.contains("targets") && error.contains("11"), "{error}");
    assert!(logprob(&logits.t()?, &TARGETS, 1.0).unwrap_err().to_string().contains("contiguous"));
    Ok(())
}
