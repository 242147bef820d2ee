//! Optimizers and statistics of weights and gradients: `include/gradus/optim.h`.

use gradus::Error;
use gradus::Result;
use gradus::ops::*;

use crate::args::Op;
use crate::field::{Field, call, for_dtype, impl_op};
use crate::memory::room;
use crate::sys::*;
use crate::tensor::{Tensors, is_absent};

impl gradus_adamw_settings {
    fn set_defaults(&mut self) {
        let own = AdamWSettings::default();
        (self.lr, self.beta1, self.beta2) = (own.lr, own.beta1, own.beta2);
        (self.eps, self.weight_decay, self.grad_scale) =
            (own.eps, own.weight_decay, own.grad_scale);
        self.step = own.step as i64;
    }

    fn get(&self, t: &Tensors<'_>) -> Result<AdamWSettings> {
        Ok(AdamWSettings {
            lr: self.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            step: t.size("settings.step", self.step)? as u64,
            decay: Field::get(t, "settings.decay", &self.decay)?,
            grad_scale: self.grad_scale,
        })
    }
}

fn flat(outcome: &AdamWOutcome) -> gradus_adamw_outcome {
    let index = |i: usize| i64::try_from(i).unwrap_or(i64::MAX);
    let (tensor, element) = outcome.non_finite.map_or((-1, -1), |(t, e)| (index(t), index(e)));
    gradus_adamw_outcome {
        non_finite_tensor: tensor,
        non_finite_element: element,
        updated: outcome.updated as i64,
        unchanged: outcome.unchanged as i64,
        absorbed_bf16: outcome.absorbed_bf16 as i64,
    }
}

/// Runs a step. The outcome is the caller's also where the step was refused for its gradients.
fn step(
    t: &Tensors<'_>,
    outcome: *mut gradus_adamw_outcome,
    run: impl FnOnce(&mut AdamWOutcome) -> Result<()>,
) -> Result<()> {
    let place = t.opt_result("outcome", outcome)?;
    let mut found = AdamWOutcome::default();
    let done = run(&mut found);
    if done.is_ok() {
        place.set(flat(&found));
    }
    match found.non_finite {
        Some((tensor, index)) if done.is_ok() => {
            Err(Error::NonFinite { op: t.op, arg: format!("tensors[{tensor}].grad"), index })
        }
        _ => done,
    }
}

impl Op for gradus_adamw_args {
    fn defaults(&mut self) {
        self.settings.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings.get(t)?;
        let list = t.list("tensors", self.tensors, self.tensors_count)?;
        let mut tensors = room(t.op, list.len())?;
        for (i, one) in list.iter().enumerate() {
            let of = |field: &str| format!("tensors[{i}].{field}");
            tensors.push(AdamWTensor {
                param: t.write(&of("param"), &one.param)?,
                grad: t.read(&of("grad"), &one.grad)?,
                m: t.write(&of("m"), &one.m)?,
                v: t.write(&of("v"), &one.v)?,
                mask: t.opt_read(&of("mask"), &one.mask)?,
            });
        }
        t.disjoint()?;
        step(t, self.outcome, |outcome| adamw(t.device, AdamW { tensors, settings, outcome }))
    }
}

impl Op for gradus_adamw_8bit_args {
    fn defaults(&mut self) {
        self.settings.set_defaults();
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let settings = self.settings.get(t)?;
        let list = t.list("tensors", self.tensors, self.tensors_count)?;
        let mut tensors = room(t.op, list.len())?;
        for (i, one) in list.iter().enumerate() {
            let of = |field: &str| format!("tensors[{i}].{field}");
            tensors.push(AdamW8bitTensor {
                param: t.write(&of("param"), &one.param)?,
                grad: t.read(&of("grad"), &one.grad)?,
                m: t.write(&of("m"), &one.m)?,
                v: t.write(&of("v"), &one.v)?,
                m_absmax: t.write(&of("m_absmax"), &one.m_absmax)?,
                v_absmax: t.write(&of("v_absmax"), &one.v_absmax)?,
                mask: t.opt_read(&of("mask"), &one.mask)?,
            });
        }
        t.disjoint()?;
        step(t, self.outcome, |outcome| {
            adamw_8bit(t.device, AdamW8bit { tensors, settings, outcome })
        })
    }
}

impl Op for gradus_grad_norm_args {
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let place = t.result("norm", self.norm)?;
        let grads = t.list("grads", self.grads, self.grads_count)?;
        let mut norm = GlobalNorm::default();
        let Some(first) = grads.first() else {
            place.set(0.0);
            return Ok(());
        };
        for_dtype!(float t, "grads[0]", first, T, {
            let mut views = room(t.op, grads.len())?;
            for (i, grad) in grads.iter().enumerate() {
                views.push(t.read::<T>(&format!("grads[{i}]"), grad)?);
            }
            grad_norm(t.device, GradNorm { grads: &views, norm: &mut norm })
        })?;
        place.set(norm.value);
        Ok(())
    }
}

impl Op for gradus_sparsity_stats_args {
    fn defaults(&mut self) {
        self.tol = 1e-5;
    }
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let place = t.result("stats", self.stats)?;
        let mut found = UpdateSparsity::default();
        for_dtype!(float t, "w0", &self.w0, T, {
            call!(self, t, sparsity_stats(SparsityStats::<T> {
                w0, w1, tol, row_nnz,
                stats: &mut found,
            }))
        })?;
        place.set(gradus_update_sparsity {
            n: found.n as i64,
            equal_exact: found.equal_exact as i64,
            within_tol: found.within_tol as i64,
            absorbed_bf16: found.absorbed_bf16 as i64,
            max_delta: found.max_delta,
        });
        Ok(())
    }
}

impl Op for gradus_delta_encode_args {
    fn run(&self, t: &Tensors<'_>) -> Result<()> {
        let place = t.result("count", self.count)?;
        let only_count = is_absent(&self.index) && is_absent(&self.value);
        let mut count = 0;
        for_dtype!(float t, "old_value", &self.old_value, T, {
            if only_count {
                let old = t.read::<T>("old_value", &self.old_value)?;
                let new = t.read("new_value", &self.new_value)?;
                delta_count(t.device, old, new).map(|n| count = n)
            } else {
                call!(self, t, delta_encode(DeltaEncode::<T> {
                    old_value, new_value, index, value,
                    count: &mut count,
                }))
            }
        })?;
        place.set(count as i64);
        Ok(())
    }
}

impl_op!(gradus_delta_apply_args {
    float value,
    |args, t| delta_apply(DeltaApply { index, value, target })
});
