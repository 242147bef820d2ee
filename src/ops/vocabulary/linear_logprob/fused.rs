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

/// Logits held at a time on the CPU, where every thread reads the head from memory once per chunk.
const CPU_LOGITS: usize = 1 << 22;

/// Bytes of logits held at a time on a GPU. Each chunk reads the whole head again, and with a trained head
/// reads and writes its gradient: 1,024 rows and more make that cheap beside the products.
const GPU_BYTES: usize = 1 << 29;

/// Rows that a GPU's chunks are whole multiples of: those of the largest tile of a product.
const TILE: usize = 128;

pub(crate) fn linear_logprob<T: Float>(device: &Device, a: LinearLogProb<'_, T>) -> Result<()> {
    let rows = chunk::<T>(matches!(device, Device::Gpu(_)), a.hidden.extent(0), a.head.extents().0);
    forward(device, a, rows)
}

pub(crate) fn linear_logprob_bwd<T: Float>(
    device: &Device,
    a: LinearLogProbBwd<'_, T>,
) -> Result<()> {
    let rows = chunk::<T>(matches!(device, Device::Gpu(_)), a.hidden.extent(0), a.head.extents().0);
    backward(device, a, rows)
}

/// The forward pass, `rows` at a time.
fn forward<T: Float>(device: &Device, mut a: LinearLogProb<'_, T>, rows: usize) -> Result<()> {
    let columns = a.head.extents().0;
    let workspace = Workspace::new(device);
    let scored = if a.score.is_some() { rows } else { 0 };
    let (mut logits, mut dlogits) =
        (workspace.buffer(rows * columns)?, workspace.buffer(scored * columns)?);
    // Few lengths, so that few tables are kept.
    let ones = workspace.constant(1f32, scored.next_power_of_two())?;
    for (first, count) in chunks(a.hidden.extent(0), rows) {
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

/// The backward pass, `rows` at a time. The gradient of the head adds one sum a chunk, each over its rows.
fn backward<T: Float>(device: &Device, mut a: LinearLogProbBwd<'_, T>, rows: usize) -> Result<()> {
    let columns = a.head.extents().0;
    let workspace = Workspace::new(device);
    let (mut logits, mut dlogits) =
        (workspace.buffer(rows * columns)?, workspace.buffer(rows * columns)?);
    for (first, count) in chunks(a.hidden.extent(0), rows) {
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

/// Bytes of `slots` chunks of logits on a GPU, each aligned as its memory is.
pub(crate) fn workspace_bytes<T: Float>(rows: usize, columns: usize, slots: usize) -> usize {
    let elements = chunk::<T>(true, rows, columns).saturating_mul(columns);
    elements.saturating_mul(size_of::<T>()).next_multiple_of(256).saturating_mul(slots)
}

/// Rows of the longest chunk. A GPU's are of one length but for the last.
fn chunk<T: Float>(gpu: bool, rows: usize, columns: usize) -> usize {
    let columns = columns.max(1);
    if !gpu {
        return (CPU_LOGITS / columns).max(1).min(rows);
    }
    let most = (GPU_BYTES / size_of::<T>() / columns).max(1);
    let most = if most < TILE { most } else { most / TILE * TILE };
    if rows <= most {
        return rows;
    }
    rows.div_ceil(rows.div_ceil(most)).next_multiple_of(TILE).min(most)
}

/// (first row, rows) of each chunk of `size` rows.
fn chunks(rows: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = size.max(1);
    (0..rows).step_by(size).map(move |first| (first, size.min(rows - first)))
}

#[cfg(all(test, feature = "emu"))]
mod tests {
    use std::sync::Arc;

    use gradus_emu::Counters;
    use half::{bf16, f16};

    use super::*;
    use crate::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};

    #[test]
    fn chunks_are_long_even_and_within_the_workspace() {
        let lengths = |rows, columns| -> Vec<usize> {
            chunks(rows, chunk::<bf16>(true, rows, columns)).map(|(_, count)| count).collect()
        };
        assert_eq!(lengths(1024, 128_256), [1024]);
        assert_eq!(lengths(2100, 128_256), [1152, 948]);
        assert_eq!(lengths(8192, 128_256), [2048; 4]);
        assert_eq!(lengths(8192, 151_936), [1664, 1664, 1664, 1664, 1536]);
        assert_eq!(lengths(1025, 262_144), [640, 385]);
        assert_eq!(lengths(3, 1 << 30), [1; 3]);
        assert_eq!(lengths(0, 128_256), []);
        for (rows, columns) in [(1, 1), (8192, 128_256), (8192, 151_936), (1 << 20, 32_000)] {
            assert!(workspace_bytes::<bf16>(rows, columns, 1) <= GPU_BYTES);
            assert!(workspace_bytes::<f16>(rows, columns, 2) <= 2 * GPU_BYTES);
            assert!(workspace_bytes::<f32>(rows, columns, 1) <= GPU_BYTES);
            assert_eq!(chunk::<f32>(false, rows, columns), (CPU_LOGITS / columns).max(1).min(rows));
        }
    }

    const ROWS: usize = 300;
    const WIDTH: usize = 64;
    const VOCAB: usize = 1000;

    /// What the head gives for the rows, `size` at a time: log-probs, score vectors, dhidden, dweight; and
    /// the sectors between L2 and the multiprocessors in the forward pass, and in the backward one.
    #[derive(PartialEq, Debug)]
    struct Outcome {
        logp: Vec<f32>,
        score: Vec<bf16>,
        dhidden: Vec<bf16>,
        dweight: Vec<f32>,
    }

    fn run(set: KernelSet, size: usize) -> (Outcome, [u64; 2]) {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Arc::new(Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap());
        let device = Device::Gpu(gpu.clone());
        let value = |i: usize, k: usize| ((i * 7919 + k) % 2001) as f32 / 1000.0 - 1.0;
        let put = |n, k| {
            let x: Vec<bf16> = (0..n).map(|i| bf16::from_f32(value(i, k))).collect();
            DeviceBuffer::from_host(&gpu, &x).unwrap()
        };
        let (hidden, head) = (put(ROWS * WIDTH, 1), put(VOCAB * WIDTH, 104_729));
        let targets: Vec<i32> = (0..ROWS).map(|t| (t * 37 % VOCAB) as i32).collect();
        let targets = DeviceBuffer::from_host(&gpu, &targets).unwrap();
        let dlogp: Vec<f32> = (0..ROWS).map(|i| value(i, 5)).collect();
        let dlogp = DeviceBuffer::from_host(&gpu, &dlogp).unwrap();
        let mut logp = DeviceBuffer::<f32>::new(&gpu, ROWS).unwrap();
        let mut score = DeviceBuffer::<bf16>::new(&gpu, ROWS * WIDTH).unwrap();
        let mut dhidden = DeviceBuffer::<bf16>::new(&gpu, ROWS * WIDTH).unwrap();
        let mut dweight = DeviceBuffer::from_host(&gpu, &vec![0f32; VOCAB * WIDTH]).unwrap();
        let (rows, wide) = ([ROWS as i64], [ROWS as i64, WIDTH as i64]);
        let shape = [VOCAB as i64, WIDTH as i64];
        let (x, w) = (hidden.view(&wide).unwrap(), Head::Dense(head.view(&shape).unwrap()));
        let t = targets.view(&rows).unwrap();
        let sectors = || {
            let of = |c: &Counters| c.global_load_sectors + c.global_store_sectors;
            driver.take_launches().iter().map(|(_, c)| of(c)).sum::<u64>()
        };
        sectors();
        let args = LinearLogProb {
            score: Some(score.view_mut(&wide).unwrap()),
            ..LinearLogProb::new(x, w, t, logp.view_mut(&rows).unwrap())
        };
        forward(&device, args, size).unwrap();
        let there = sectors();
        let args = LinearLogProbBwd {
            hidden: x,
            head: w,
            lora: &[],
            targets: t,
            vocab: VOCAB as i64,
            transform: Default::default(),
            dlogp: dlogp.view(&rows).unwrap(),
            dentropy: None,
            dhidden: dhidden.view_mut(&wide).unwrap(),
            dweight: Some(dweight.view_mut(&shape).unwrap()),
        };
        backward(&device, args, size).unwrap();
        let back = sectors();
        let outcome = Outcome {
            logp: logp.to_host().unwrap(),
            score: score.to_host().unwrap(),
            dhidden: dhidden.to_host().unwrap(),
            dweight: dweight.to_host().unwrap(),
        };
        (outcome, [there, back])
    }

    /// Rows have the bits of any chunk. The head's gradient is a sum of one sum a chunk, so its last bits are the
    /// chunk's; it costs a pass over gradient and head each.
    #[test]
    fn a_chunk_changes_traffic_and_no_bit_of_a_row() {
        for set in [KernelSet::Sm80, KernelSet::Sm90a] {
            let (whole, [there, back]) = run(set, ROWS);
            for size in [128, 32] {
                let (cut, [there_cut, back_cut]) = run(set, size);
                assert_eq!(cut.logp, whole.logp, "{set:?} {size}");
                assert_eq!(cut.score, whole.score, "{set:?} {size}");
                assert_eq!(cut.dhidden, whole.dhidden, "{set:?} {size}");
                let terms = 3.0 * ROWS as f32;
                for (a, b) in cut.dweight.iter().zip(&whole.dweight) {
                    assert!((a - b).abs() <= terms * f32::EPSILON * 16.0, "{set:?} {size} {a} {b}");
                }
                println!("{set:?} {size}: {there_cut} of {there}, {back_cut} of {back} sectors");
                // A tile of the product reads its part of the head whatever the chunk.
                let more = if size < TILE { there_cut > there } else { there_cut >= there };
                assert!(more && back_cut > back, "{set:?} {size}");
            }
        }
    }
}
