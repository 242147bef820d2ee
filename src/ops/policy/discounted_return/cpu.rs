//! Discounted returns on the CPU, in f64.

use crate::check::Check;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::discounted_return::{DiscountedReturn, MaskedReturn};
use crate::ops::policy::tokens::cpu::{per_sequence, store};
use crate::ops::policy::tokens::is_action;

pub(crate) fn discounted_return<R: Real>(a: DiscountedReturn<'_, R>) -> Result<()> {
    let check = Check("discounted_return");
    let returns = per_sequence(&a.cu_seqlens, |i, start, out| {
        let baseline = a.baseline.as_ref().map_or(0.0, |b| b.at(i).to_f64());
        let mut running = 0.0;
        for (j, out) in out.iter_mut().enumerate().rev() {
            if is_action(&a.mask, start + j) {
                running = a.reward.at(start + j).to_f64() + a.gamma * running;
                *out = running - baseline;
            } else if a.masked == MaskedReturn::Reset {
                running = 0.0;
            }
        }
    });
    check.in_range::<R>("returns", returns.iter().copied())?;
    store(a.returns, &returns);
    Ok(())
}
