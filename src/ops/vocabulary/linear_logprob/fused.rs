//! The fused head on any device: a chunk of rows goes through the product, its statistics and its
//! gradient before the next chunk's logits overwrite it.

use crate::device::{Device, Workspace};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::vocabulary::linear_logprob::{Head, LinearLogProb, LinearLogProbBwd};
use crate::ops::{
    LogProb, LogProbBwd, Lora, Matmul, MatmulDw, MatmulDx, Nf4Matmul, Nf4MatmulDx, logprob,
    logprob_bwd, matmul, matmul_dw, matmul_dx, nf4_matmul, nf4_matmul_dx,
};
use crate::view::{View, ViewMut};

/// Logits held at a time.
const WORKSPACE: usize = 1 << 22;

pub(crate) fn linear_logprob<T: Float>(device: &Device, mut a: LinearLogProb<'_, T>) -> Result<()> {
    let columns = a.head.extents().0;
    let (workspace, rows) = (Workspace::new(device), chunk(a.hidden.extent(0), columns));
    let scored = if a.score.is_some() { rows } else { 0 };
    let (mut logits, mut dlogits) =
        (workspace.buffer(rows * columns)?, workspace.buffer(scored * columns)?);
    // Few lengths, so that few tables are kept.
    let ones = workspace.constant(1f32, scored.next_power_of_two())?;
    for (first, count) in chunks(a.hidden.extent(0), columns) {
        let (targets, shape) = (a.targets.narrow(first, count)?, [count as i64, columns as i64]);
        let hidden = a.hidden.narrow(first, count)?;
        logits_of(device, hidden, &a.head, a.lora, logits.view_mut(&shape)?)?;
        let x = logits.view(&shape)?;
        let args = LogProb {
            vocab: a.vocab,
            transform: a.transform,
            lse: a.lse.as_mut().map(|v| v.narrow(first, count)).transpose()?,
            entropy: a.entropy.as_mut().map(|v| v.narrow(first, count)).transpose()?,
            ..LogProb::new(x, targets, a.logp.narrow(first, count)?)
        };
        logprob(device, args)?;
        let Some(score) = &mut a.score else { continue };
        let (ones, dx) = (ones.view(&shape[..1])?, dlogits.view_mut(&shape)?);
        let args = LogProbBwd {
            vocab: a.vocab,
            transform: a.transform,
            ..LogProbBwd::new(x, targets, ones, dx)
        };
        logprob_bwd(device, args)?;
        let score = score.narrow(first, count)?;
        product_dx(device, dlogits.view(&shape)?, &a.head, a.lora, score)?;
    }
    Ok(())
}

pub(crate) fn linear_logprob_bwd<T: Float>(
    device: &Device,
    mut a: LinearLogProbBwd<'_, T>,
) -> Result<()> {
    let columns = a.head.extents().0;
    let (workspace, rows) = (Workspace::new(device), chunk(a.hidden.extent(0), columns));
    let (mut logits, mut dlogits) =
        (workspace.buffer(rows * columns)?, workspace.buffer(rows * columns)?);
    for (first, count) in chunks(a.hidden.extent(0), columns) {
        let (hidden, shape) = (a.hidden.narrow(first, count)?, [count as i64, columns as i64]);
        logits_of(device, hidden, &a.head, a.lora, logits.view_mut(&shape)?)?;
        let args = LogProbBwd {
            logits: logits.view(&shape)?,
            targets: a.targets.narrow(first, count)?,
            vocab: a.vocab,
            transform: a.transform,
            dlogp: a.dlogp.narrow(first, count)?,
            dentropy: a.dentropy.as_ref().map(|v| v.narrow(first, count)).transpose()?,
            dlse: None,
            dlogits: dlogits.view_mut(&shape)?,
        };
        logprob_bwd(device, args)?;
        let dy = dlogits.view(&shape)?;
        product_dx(device, dy, &a.head, a.lora, a.dhidden.narrow(first, count)?)?;
        if let Some(dw) = &mut a.dweight {
            matmul_dw(device, MatmulDw { dy, x: hidden, dw: dw.reborrow(), dbias: None })?;
        }
    }
    Ok(())
}

fn logits_of<T: Float>(
    device: &Device,
    x: View<'_, T>,
    head: &Head<'_, T>,
    lora: &[Lora<'_, T>],
    y: ViewMut<'_, T>,
) -> Result<()> {
    let (bias, adapter, s, residual) = (None, None, None, None);
    match *head {
        Head::Dense(w) => matmul(device, Matmul { x, w, bias, lora, adapter, s, residual, y }),
        Head::Nf4(w) => nf4_matmul(device, Nf4Matmul { x, w, bias, lora, adapter, s, residual, y }),
    }
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

/// Bytes of `slots` chunks of logits, each aligned as memory of a GPU is.
pub(crate) fn workspace_bytes(rows: usize, columns: usize, size: usize, slots: usize) -> usize {
    let elements = chunk(rows, columns).saturating_mul(columns);
    elements.saturating_mul(size).next_multiple_of(256).saturating_mul(slots)
}

/// Rows of the longest chunk.
fn chunk(rows: usize, columns: usize) -> usize {
    (WORKSPACE / columns.max(1)).max(1).min(rows)
}

/// (first row, rows) of each chunk.
fn chunks(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = chunk(rows, columns).max(1);
    (0..rows).step_by(size).map(move |first| (first, size.min(rows - first)))
}
