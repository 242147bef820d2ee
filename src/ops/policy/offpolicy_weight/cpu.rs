//! Off-policy weights on the CPU, in f64, sequence by sequence in order.

use crate::alloc::{self, Gather, Grow};
use crate::dtype::Real;
use crate::ops::policy::offpolicy_weight::{
    OffPolicyBound, OffPolicyLevel, OffPolicySettings, OffPolicyStats, OffPolicyWeight, Reject,
    RejectBy, RejectLevel,
};

pub(crate) fn offpolicy_weight<R: Real>(mut a: OffPolicyWeight<'_, R>) {
    let mut weights = alloc::filled(0.0, a.old_logp.extent(0));
    let mut raw = Vec::new();
    let (mut nan_sampler, mut kept) = (0, Vec::new());
    for i in 0..a.cu_seqlens.extent(0) - 1 {
        let span = a.cu_seqlens.at(i) as usize..a.cu_seqlens.at(i + 1) as usize;
        let there: Vec<usize> =
            span.filter(|&t| a.mask.as_ref().is_none_or(|m| m.at(t) != 0)).sifted();
        let gap = |&t: &usize| {
            let d = a.old_logp.at(t).to_f64() - a.sampler_logp.at(t).to_f64();
            let d = if a.sampler_logp.at(t).to_f64().is_nan() { 0.0 } else { d };
            d.clamp(-a.settings.clamp, a.settings.clamp)
        };
        let gaps: Vec<f64> = there.iter().map(gap).gathered();
        nan_sampler += there.iter().filter(|&&t| a.sampler_logp.at(t).to_f64().is_nan()).count();
        let accepted = accept(&a.settings.reject, &gaps);
        for (k, (rho, ratio)) in sequence(&a.settings, &gaps).into_iter().enumerate() {
            raw.put(ratio);
            weights[there[k]] = if accepted[k] == 0.0 { 0.0 } else { rho * accepted[k] };
            kept.put(there[k]);
        }
    }
    if a.settings.normalize {
        // NaN is used, and makes the mean NaN.
        let used: Vec<f64> = kept.iter().map(|&t| weights[t]).filter(|&w| w != 0.0).sifted();
        let mean = used.iter().sum::<f64>() / used.len().max(1) as f64;
        if mean != 0.0 {
            kept.iter().for_each(|&t| weights[t] /= mean);
        }
    }
    for (t, &w) in weights.iter().enumerate() {
        a.weight.set(t, R::from_f64(w));
    }
    if let Some(stats) = a.stats {
        let dropped = kept.iter().filter(|&&t| weights[t] == 0.0).count();
        *stats = statistics(&raw, dropped as u64, nan_sampler as u64);
    }
}

/// (ρ, unbounded ratio) of each token of a sequence.
fn sequence(s: &OffPolicySettings, gaps: &[f64]) -> Vec<(f64, f64)> {
    let sum: f64 = gaps.iter().sum();
    let mean = sum / gaps.len().max(1) as f64;
    let bounded = |ratio: f64, judged: f64| match s.bound {
        OffPolicyBound::Truncate => ratio.clamp(s.min, s.max),
        OffPolicyBound::Mask | OffPolicyBound::SequenceMask => {
            match (s.min..=s.max).contains(&judged) {
                _ if judged.is_nan() => judged,
                true => ratio,
                false => 0.0,
            }
        }
    };
    gaps.iter()
        .map(|&d| {
            let ratio = match s.level {
                OffPolicyLevel::Token => d.exp(),
                OffPolicyLevel::SequenceSum => sum.exp(),
                OffPolicyLevel::SequenceMean => mean.exp(),
            };
            match s.bound {
                OffPolicyBound::SequenceMask => (bounded(d.exp(), mean.exp()), d.exp()),
                _ => (bounded(ratio, ratio), ratio),
            }
        })
        .gathered()
}

/// 1 for the tokens of a sequence that a rejection rule keeps, 0 for others, NaN where the measure is.
fn accept(reject: &Option<Reject>, gaps: &[f64]) -> Vec<f64> {
    let Some(rule) = reject else { return alloc::filled(1.0, gaps.len()) };
    let measure = |&d: &f64| match rule.by {
        RejectBy::K1 => -d,
        RejectBy::K2 => 0.5 * d * d,
        // Not ∞ − ∞: a NaN measure is an unknown one.
        RejectBy::K3 if d == f64::INFINITY => d,
        RejectBy::K3 => d.exp_m1() - d,
    };
    let inside =
        |x: f64| if x.is_nan() { x } else { (rule.lo..=rule.hi).contains(&x) as u8 as f64 };
    let measures: Vec<f64> = gaps.iter().map(measure).gathered();
    let sum: f64 = measures.iter().sum();
    let whole = match rule.level {
        RejectLevel::Token => return measures.into_iter().map(inside).gathered(),
        RejectLevel::SequenceSum => sum,
        RejectLevel::SequenceMean => sum / gaps.len().max(1) as f64,
        RejectLevel::SequenceMax if sum.is_nan() => sum,
        RejectLevel::SequenceMax => measures.iter().cloned().fold(f64::NEG_INFINITY, f64::max),
    };
    alloc::filled(inside(whole), gaps.len())
}

fn statistics(raw: &[f64], dropped: u64, nan_sampler: u64) -> OffPolicyStats {
    let n = raw.len().max(1) as f64;
    let (sum, squares) = raw.iter().fold((0.0, 0.0), |(s, q), r| (s + r, q + r * r));
    OffPolicyStats {
        tokens: raw.len() as u64,
        dropped,
        nan_sampler,
        min: raw.iter().cloned().fold(f64::INFINITY, f64::min),
        max: raw.iter().cloned().fold(f64::NEG_INFINITY, f64::max),
        mean: sum / n,
        ess: if squares > 0.0 { sum * sum / squares / n } else { 0.0 },
        chi2: squares / n - 1.0,
    }
}
