//! The fused head on the CPU: a chunk of rows goes through the product, its statistics and its
//! gradient before the next chunk's logits overwrite it.

use crate::device::Device;
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::linear_logprob::{Head, LinearLogProb, LinearLogProbBwd, ScoreScale};
use crate::ops::{
    LogProb, LogProbBwd, Lora, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, logprob,
    logprob_bwd, matmul, matmul_dw, matmul_dx, nf4_matmul, nf4_matmul_dx,
};
use crate::view::{View, ViewMut};

/// Logits held at a time.
const WORKSPACE: usize = 1 << 22;

pub(crate) fn linear_logprob<T: Float>(device: &Device, mut a: LinearLogProb<'_, T>) -> Result<()> {
    let columns = a.head.extents().0;
    for (first, count) in chunks(a.hidden.extent(0), columns) {
        let hidden = a.hidden.narrow(first, count)?;
        let targets = a.targets.narrow(first, count)?;
        let logits = logits_of(device, hidden, &a.head, a.lora)?;
        let x = View::rows_of(&logits, columns)?;
        let args = LogProb {
            vocab: a.vocab,
            transform: a.transform,
            lse: a.lse.as_mut().map(|v| v.narrow(first, count)).transpose()?,
            entropy: a.entropy.as_mut().map(|v| v.narrow(first, count)).transpose()?,
            ..LogProb::new(x, targets, a.logp.narrow(first, count)?)
        };
        logprob(device, args)?;
        let Some(score) = &mut a.score else { continue };
        let (ones, mut dlogits) = (vec![1f32; count], vec![T::from_f32(0.0); logits.len()]);
        let args = LogProbBwd {
            vocab: a.vocab,
            transform: a.transform,
            ..LogProbBwd::new(x, targets, (&ones).into(), ViewMut::rows_of(&mut dlogits, columns)?)
        };
        logprob_bwd(device, args)?;
        let score = score.narrow(first, count)?;
        product_dx(device, View::rows_of(&dlogits, columns)?, &a.head, a.lora, score)?;
    }
    Ok(())
}

pub(crate) fn linear_logprob_bwd<T: Float>(
    device: &Device,
    mut a: LinearLogProbBwd<'_, T>,
) -> Result<()> {
    let columns = a.head.extents().0;
    for (first, count) in chunks(a.hidden.extent(0), columns) {
        let hidden = a.hidden.narrow(first, count)?;
        let logits = logits_of(device, hidden, &a.head, a.lora)?;
        let mut dlogits = vec![T::from_f32(0.0); logits.len()];
        let args = LogProbBwd {
            logits: View::rows_of(&logits, columns)?,
            targets: a.targets.narrow(first, count)?,
            vocab: a.vocab,
            transform: a.transform,
            dlogp: a.dlogp.narrow(first, count)?,
            dentropy: a.dentropy.as_ref().map(|v| v.narrow(first, count)).transpose()?,
            dlse: None,
            dlogits: ViewMut::rows_of(&mut dlogits, columns)?,
        };
        logprob_bwd(device, args)?;
        let dy = View::rows_of(&dlogits, columns)?;
        product_dx(device, dy, &a.head, a.lora, a.dhidden.narrow(first, count)?)?;
        if let Some(dw) = &mut a.dweight {
            matmul_dw(device, MatmulDw { dy, x: hidden, dw: dw.reborrow(), dbias: None })?;
        }
    }
    Ok(())
}

pub(crate) fn score_scale<T: Float>(a: ScoreScale<'_, T>) {
    for (t, out) in a.dhidden.into_rows().into_iter().enumerate() {
        let g = a.dlogp.at(t) as f64;
        out.iter_mut().zip(a.score.row(t)).for_each(|(o, s)| *o = T::from_f64(g * s.to_f64()));
    }
}

fn logits_of<T: Float>(
    device: &Device,
    x: View<'_, T>,
    head: &Head<'_, T>,
    lora: &[Lora<'_, T>],
) -> Result<Vec<T>> {
    let columns = head.extents().0;
    let mut logits = vec![T::from_f32(0.0); x.extent(0) * columns];
    let y = ViewMut::rows_of(&mut logits, columns)?;
    let (bias, adapter, s) = (None, None, None);
    match *head {
        Head::Dense(w) => matmul(device, Matmul { x, w, bias, lora, adapter, s, y })?,
        Head::Nf4(w) => nf4_matmul(device, Nf4Matmul { x, w, bias, lora, adapter, s, y })?,
    }
    Ok(logits)
}

fn product_dx<T: Float>(
    device: &Device,
    dy: View<'_, T>,
    head: &Head<'_, T>,
    lora: &[Lora<'_, T>],
    dx: ViewMut<'_, T>,
) -> Result<()> {
    let (adapter, accumulate) = (None, false);
    match *head {
        Head::Dense(w) => matmul_dx(device, MatmulDx { dy, w, lora, adapter, accumulate, dx }),
        Head::Nf4(w) => nf4_matmul_dx(device, Nf4MatmulDx { dy, w, lora, adapter, accumulate, dx }),
    }
}

/// (first row, rows) of each chunk.
fn chunks(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = (WORKSPACE / columns.max(1)).max(1);
    (0..rows).step_by(size).map(move |first| (first, size.min(rows - first)))
}
