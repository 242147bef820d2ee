//! Updates of weights, and what is measured on them.

use gradus::device::Buffer;
use gradus::ops::*;
use gradus::{Device, Result};

use super::case::{Case, Work, shape, table, wave};

/// Trainable parameters.
const PARAMETERS: usize = 1 << 22;

pub fn cases() -> Vec<Case> {
    vec![norm(), interpolate(), adam(), adam_8bit(), sparsity(), changes()]
}

/// Every gradient read once.
fn norm() -> Case {
    let n = PARAMETERS;
    let costs = [4 * n, 2 * n];
    Case::new::<f32>(["optim", "grad_norm"], format!("{n}"), costs, Work::F64, move |device| {
        let (grads, mut norm) = (wave::<f32>(device, n, 1)?, GlobalNorm::default());
        Ok(Box::new(move |device| {
            let grads = [grads.view(&[n as i64])?];
            grad_norm(device, GradNorm { grads: &grads, norm: &mut norm })
        }))
    })
}

/// 3 elements and 3 flops each.
fn interpolate() -> Case {
    let n = PARAMETERS;
    let costs = [12 * n, 3 * n];
    Case::new::<f32>(["optim", "lerp"], format!("{n}"), costs, Work::F64, move |device| {
        let (a, b) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
        let mut y = Buffer::<f32>::new(device, n)?;
        Ok(Box::new(move |device| {
            let (a, b) = (a.view(&[n as i64])?, b.view(&[n as i64])?);
            lerp(device, Lerp { a, b, weight: 0.25, y: y.view_mut(&[n as i64])? })
        }))
    })
}

/// 4 elements read, 3 written, and the gradients once more for the check.
fn adam() -> Case {
    let n = PARAMETERS;
    Case::new::<f32>(
        ["optim", "adamw"],
        format!("{n}"),
        [32 * n, 14 * n],
        Work::F32,
        move |device| {
            let (mut param, grad) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
            let (mut m, mut v) = (table(device, n, |_| 0f32)?, table(device, n, |_| 0f32)?);
            let (mut outcome, all) = (AdamWOutcome::default(), [n as i64]);
            Ok(Box::new(move |device| {
                let tensors = vec![AdamWTensor {
                    param: param.view_mut(&all)?,
                    grad: grad.view(&all)?,
                    m: m.view_mut(&all)?,
                    v: v.view_mut(&all)?,
                    mask: None,
                }];
                let settings = AdamWSettings::default();
                adamw(device, AdamW { tensors, settings, outcome: &mut outcome })
            }))
        },
    )
}

/// 18 bytes a parameter.
fn adam_8bit() -> Case {
    let (n, blocks) = (PARAMETERS, PARAMETERS / 256);
    Case::new::<f32>(
        ["optim", "adamw_8bit"],
        format!("{n}"),
        [18 * n, 30 * n],
        Work::F32,
        move |device| {
            let (mut param, grad) = (wave::<f32>(device, n, 1)?, wave::<f32>(device, n, 2)?);
            let (mut m, mut v) = (table(device, n, |_| 0u8)?, table(device, n, |_| 0u8)?);
            let (mut m_absmax, mut v_absmax) =
                (table(device, blocks, |_| 0f32)?, table(device, blocks, |_| 0f32)?);
            let (mut outcome, all, of_blocks) =
                (AdamWOutcome::default(), [n as i64], [blocks as i64]);
            Ok(Box::new(move |device| {
                let tensors = vec![AdamW8bitTensor {
                    param: param.view_mut(&all)?,
                    grad: grad.view(&all)?,
                    m: m.view_mut(&all)?,
                    v: v.view_mut(&all)?,
                    m_absmax: m_absmax.view_mut(&of_blocks)?,
                    v_absmax: v_absmax.view_mut(&of_blocks)?,
                    mask: None,
                }];
                let settings = AdamWSettings::default();
                adamw_8bit(device, AdamW8bit { tensors, settings, outcome: &mut outcome })
            }))
        },
    )
}

/// Weights before and after a step: one in fifty differs.
fn before_and_after(device: &Device) -> Result<[Buffer<f32>; 2]> {
    let value = |i: usize| (i % 2003) as f32 / 1001.0 - 1.0;
    let moved = |i: usize| value(i) + (i % 50 / 49) as f32;
    Ok([table(device, PARAMETERS, value)?, table(device, PARAMETERS, moved)?])
}

/// Both weights read once.
fn sparsity() -> Case {
    let (n, columns) = (PARAMETERS, 1024);
    let costs = [8 * n, 2 * n];
    Case::new::<f32>(["optim", "sparsity_stats"], format!("{n}"), costs, Work::F64, move |device| {
        let ([w0, w1], mut stats) = (before_and_after(device)?, UpdateSparsity::default());
        Ok(Box::new(move |device| {
            let shape = shape(n / columns, columns);
            let (w0, w1) = (w0.view(&shape)?, w1.view(&shape)?);
            let args = SparsityStats { w0, w1, tol: 1e-5, row_nnz: None, stats: &mut stats };
            sparsity_stats(device, args)
        }))
    })
}

/// Both weights read once.
fn changes() -> Case {
    let n = PARAMETERS;
    Case::new::<f32>(
        ["optim", "delta_count"],
        format!("{n}"),
        [8 * n, 0],
        Work::F32,
        move |device| {
            let [old, new] = before_and_after(device)?;
            Ok(Box::new(move |device| {
                delta_count::<f32>(device, old.view(&[n as i64])?, new.view(&[n as i64])?).map(drop)
            }))
        },
    )
}
