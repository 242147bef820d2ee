//! Generalized advantage estimation on the CPU, in f64.

use crate::check::Check;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::gae::Gae;
use crate::ops::policy::tokens::cpu::{per_sequence, store};
use crate::ops::policy::tokens::is_action;

pub(crate) fn gae<R: Real>(a: Gae<'_, R>) -> Result<()> {
    let check = Check("gae");
    let (gamma, decay) = (a.gamma, a.gamma * a.gae_lambda);
    let advantage = per_sequence(&a.cu_seqlens, |i, start, out| {
        let mut next_value = a.bootstrap.as_ref().map_or(0.0, |b| b.at(i).to_f64());
        let mut running = 0.0;
        for (j, out) in out.iter_mut().enumerate().rev() {
            if !is_action(&a.mask, start + j) {
                continue;
            }
            let value = a.value.at(start + j).to_f64();
            let delta = a.reward.at(start + j).to_f64() + gamma * next_value - value;
            running = delta + decay * running;
            next_value = value;
            *out = running;
        }
    });
    check.in_range::<R>("advantage", advantage.iter().copied())?;
    if let Some(mut returns) = a.returns {
        let target = |t: usize| {
            let used = is_action(&a.mask, t);
            if used { advantage[t] + a.value.at(t).to_f64() } else { 0.0 }
        };
        check.in_range::<R>("returns", (0..advantage.len()).map(target))?;
        (0..advantage.len()).for_each(|t| returns.set(t, R::from_f64(target(t))));
    }
    store(a.advantage, &advantage);
    Ok(())
}
