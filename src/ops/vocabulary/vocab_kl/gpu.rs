//! Divergences over the whole vocabulary on the GPU.

use std::sync::Arc;

use crate::device::params::rows::RowSet;
use crate::device::params::vocab_kl::{DivergenceKind as Kind, VocabKlParams};
use crate::device::{Column, Gpu, LaunchArgs, Ptr, shipped};
use crate::dtype::Float;
use crate::error::Result;
use crate::ops::vocabulary::rows_gpu::{Plan, check_dtype};
use crate::ops::vocabulary::vocab_kl::{Divergence, Guidance, VocabKl, VocabKlBwd};
use crate::view::View;

pub(crate) fn vocab_kl<T: Float>(gpu: &Arc<Gpu>, a: VocabKl<'_, T>) -> Result<()> {
    check_dtype::<T>("vocab_kl")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::VOCAB_KL);
    let rows = a.policy.extent(0);
    let plan = plan::<T>(gpu, a.vocab, &a.guidance);
    let set = plan.row_set(a.vocab, a.policy.extent(1), &a.transform);
    let mut params =
        params(&mut launch, set, (&a.policy, &a.reference, &a.guidance), a.divergence)?;
    params.value = launch.column_out(a.value)?;
    let kernel = format!("vocab_kl_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("vocab_kl", rows)?, &params)?;
    launch.finish()
}

pub(crate) fn vocab_kl_bwd<T: Float>(gpu: &Arc<Gpu>, a: VocabKlBwd<'_, T>) -> Result<()> {
    check_dtype::<T>("vocab_kl_bwd")?;
    let mut launch = LaunchArgs::new(gpu, &shipped::VOCAB_KL);
    let rows = a.policy.extent(0);
    let plan = plan::<T>(gpu, a.vocab, &a.guidance);
    let set = plan.row_set(a.vocab, a.policy.extent(1), &a.transform);
    let mut params =
        params(&mut launch, set, (&a.policy, &a.reference, &a.guidance), a.divergence)?;
    params.dvalue = launch.column(&a.dvalue)?;
    params.out_stride = a.dpolicy.stride(0);
    params.dpolicy = launch.output(a.dpolicy)?.untyped_mut();
    let kernel = format!("vocab_kl_bwd_{}", T::DTYPE.name());
    launch.start(&kernel, plan.grid("vocab_kl_bwd", rows)?, &params)?;
    launch.finish()
}

fn plan<T: Float>(gpu: &Gpu, vocab: i64, guidance: &Option<Guidance<'_, T>>) -> Plan {
    let rows_per_block = 2 + guidance.is_some() as i64;
    let (set, limit) = (gpu.kernel_set(), gpu.info().shared_per_block);
    Plan::new(vocab, size_of::<T>(), set, limit, rows_per_block)
}

fn params<T: Float>(
    launch: &mut LaunchArgs<'_>,
    set: RowSet,
    (policy, reference, guidance): (&View<'_, T>, &View<'_, T>, &Option<Guidance<'_, T>>),
    divergence: Divergence,
) -> Result<VocabKlParams> {
    let (kind, beta) = match divergence {
        Divergence::ForwardKl => (Kind::ForwardKl, 0.0),
        Divergence::ReverseKl => (Kind::ReverseKl, 0.0),
        Divergence::Jsd { beta } => (Kind::Jsd, beta as f32),
        Divergence::TotalVariation => (Kind::TotalVariation, 0.0),
    };
    let mut params = VocabKlParams {
        set,
        policy: launch.input(policy)?.untyped(),
        reference: launch.input(reference)?.untyped(),
        policy_stride: policy.stride(0),
        reference_stride: reference.stride(0),
        beta,
        kind,
        guide: Ptr::NULL,
        dpolicy: Ptr::NULL,
        guide_stride: 0,
        out_stride: 0,
        dvalue: Column::NONE,
        value: Column::NONE,
        gamma: 0.0,
        unused: 0,
    };
    // γ = 1 is the reference itself: the second row is not read.
    if let Some(guidance) = guidance.filter(|g| g.gamma != 1.0) {
        params.guide = launch.input(&guidance.logits)?.untyped();
        params.guide_stride = guidance.logits.stride(0);
        params.gamma = guidance.gamma as f32;
    }
    Ok(params)
}
