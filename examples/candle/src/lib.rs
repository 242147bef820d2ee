//! gradus' ops as custom operators of candle, on the CPU, with gradients: [`logprob`] and
//! [`nf4_matmul`]. A GPU needs candle's feature `cuda`, whose build needs nvcc; it is not here.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, WithDType, bail,
};
use gradus::dtype::Float;
use gradus::ops::{LogProb, LogProbBwd, LogitTransform, Nf4Matmul, Nf4MatmulDx};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::{Device, View, ViewMut};

fn from_gradus(error: gradus::Error) -> Error {
    Error::Msg(error.to_string())
}

/// The elements of a contiguous tensor.
fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("gradus: a contiguous tensor is expected, call .contiguous() first")
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Rows and columns.
fn matrix(layout: &Layout) -> Result<(usize, usize)> {
    layout.shape().dims2()
}

/// Runs a generic function for the dtype of a storage.
macro_rules! for_dtype {
    ($storage:expr, $function:ident($($argument:expr),*)) => {
        match $storage.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::BF16 => $function::<gradus::bf16>($($argument),*),
            other => bail!("gradus: dtype {other:?}, expected f32 or bf16"),
        }
    };
}

/// log p(target) of every row: logits `[T, V]` in f32 or bf16 to `[T]` in f32; targets in `0..V`, or
/// -100 for a row that is left out. The gradient is one more pass over the logits.
pub fn logprob(logits: &Tensor, targets: &[i32], temperature: f64) -> Result<Tensor> {
    logits.apply_op1(RowLogProb { targets: targets.to_vec(), temperature })
}

#[derive(Clone)]
struct RowLogProb {
    targets: Vec<i32>,
    temperature: f64,
}

impl RowLogProb {
    fn transform(&self) -> LogitTransform {
        LogitTransform { temperature: self.temperature, ..LogitTransform::default() }
    }
}

fn logprob_forward<T: Float + WithDType>(
    op: &RowLogProb,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<(CpuStorage, Shape)> {
    let (rows, vocab) = matrix(layout)?;
    let logits = View::rows_of(elements::<T>(storage, layout)?, vocab).map_err(from_gradus)?;
    let mut logp = vec![0f32; rows];
    let args = LogProb::new(logits, (&op.targets).into(), (&mut logp).into());
    let args = LogProb { transform: op.transform(), ..args };
    gradus::ops::logprob(&Device::Cpu, args).map_err(from_gradus)?;
    Ok((CpuStorage::F32(logp), Shape::from(rows)))
}

impl CustomOp1 for RowLogProb {
    fn name(&self) -> &'static str {
        "gradus::logprob"
    }
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_dtype!(storage, logprob_forward(self, storage, layout))
    }
    fn bwd(&self, logits: &Tensor, _: &Tensor, dlogp: &Tensor) -> Result<Option<Tensor>> {
        let dlogp = dlogp.to_dtype(DType::F32)?.contiguous()?;
        logits.apply_op2_no_bwd(&dlogp, &RowLogProbBwd(self.clone())).map(Some)
    }
}

struct RowLogProbBwd(RowLogProb);

fn logprob_backward<T: Float + WithDType>(
    op: &RowLogProb,
    (storage, layout): (&CpuStorage, &Layout),
    dlogp: &[f32],
) -> Result<(CpuStorage, Shape)> {
    let (rows, vocab) = matrix(layout)?;
    let mut dlogits = vec![<T as Float>::from_f64(0.0); rows * vocab];
    let args = LogProbBwd {
        logits: View::rows_of(elements::<T>(storage, layout)?, vocab).map_err(from_gradus)?,
        targets: (&op.targets).into(),
        vocab: vocab as i64,
        transform: op.transform(),
        dlogp: dlogp.into(),
        dentropy: None,
        dlse: None,
        dlogits: ViewMut::rows_of(&mut dlogits, vocab).map_err(from_gradus)?,
    };
    gradus::ops::logprob_bwd(&Device::Cpu, args).map_err(from_gradus)?;
    Ok((T::to_cpu_storage_owned(dlogits), Shape::from((rows, vocab))))
}

impl CustomOp2 for RowLogProbBwd {
    fn name(&self) -> &'static str {
        "gradus::logprob_bwd"
    }
    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        dlogp: &CpuStorage,
        rows: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dlogp = elements::<f32>(dlogp, rows)?;
        for_dtype!(logits, logprob_backward(&self.0, (logits, layout), dlogp))
    }
}

/// A 4-bit weight `[N, K]` in the layout of bitsandbytes, double-quantized.
pub fn quantize(weight: &[f32], columns: usize) -> Result<Nf4Tensor> {
    let view = View::rows_of(weight, columns).map_err(from_gradus)?;
    Nf4Tensor::quantize(&Device::Cpu, view, &Nf4Options::default()).map_err(from_gradus)
}

/// x·deq(W)ᵀ: `[M, K]` in f32 or bf16 to `[M, N]`. The gradient goes to x; W is frozen.
pub fn nf4_matmul(x: &Tensor, weight: &std::sync::Arc<Nf4Tensor>) -> Result<Tensor> {
    x.apply_op1(Product { weight: weight.clone(), backward: false })
}

#[derive(Clone)]
struct Product {
    weight: std::sync::Arc<Nf4Tensor>,
    backward: bool,
}

fn product<T: Float + WithDType>(
    op: &Product,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<(CpuStorage, Shape)> {
    let (rows, inner) = matrix(layout)?;
    let columns = if op.backward { op.weight.k() } else { op.weight.n() };
    let x = View::rows_of(elements::<T>(storage, layout)?, inner).map_err(from_gradus)?;
    let mut out = vec![<T as Float>::from_f64(0.0); rows * columns];
    let y = ViewMut::rows_of(&mut out, columns).map_err(from_gradus)?;
    let (w, lora, adapter) = (op.weight.view(), &[][..], None);
    let done = if op.backward {
        let args = Nf4MatmulDx { dy: x, w, lora, adapter, accumulate: false, dx: y };
        gradus::ops::nf4_matmul_dx(&Device::Cpu, args)
    } else {
        let args = Nf4Matmul { x, w, bias: None, lora, adapter, s: None, residual: None, y };
        gradus::ops::nf4_matmul(&Device::Cpu, args)
    };
    done.map_err(from_gradus)?;
    Ok((T::to_cpu_storage_owned(out), Shape::from((rows, columns))))
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "gradus::nf4_matmul"
    }
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_dtype!(storage, product(self, storage, layout))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let backward = Product { backward: true, ..self.clone() };
        dy.contiguous()?.apply_op1_no_bwd(&backward).map(Some)
    }
}
