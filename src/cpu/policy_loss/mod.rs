//! The token policy loss on the CPU: one sequence at a time, f64 throughout, sequences in parallel
//! and summed in order.

mod terms;

use crate::cpu::par;
use crate::dtype::Real;
use crate::ops::policy_loss::{
    Advantage, ClipCenter, Denominator, Loss, PolicyLoss, PolicySettings, PolicyStats, RatioLevel,
};
use crate::view::View;
use terms::{Clipped, Term, Token, penalty, surrogate};

/// Rough scalar operations per token.
const WORK: usize = 200;

/// A token that carries loss.
struct Active {
    /// Index in the packed batch.
    at: usize,
    class: usize,
    token: Token,
    /// Log-ratio of this token alone, before any clamp.
    raw: f64,
    /// Whether the token's own clamp leaves its log-ratio a gradient.
    moves: bool,
    entropy: f64,
    rho: f64,
    weight: f64,
}

/// Results of one sequence.
struct Sequence {
    loss: f64,
    dlogp: Vec<(usize, f64)>,
    token_loss: Vec<(usize, f64)>,
    dentropy: f64,
    stats: PolicyStats,
}

pub(crate) fn policy_loss<R: Real>(mut a: PolicyLoss<'_, R>) {
    let b = a.seq_weight.extent(0);
    let tokens = a.logp.extent(0);
    let done = par::map(b, tokens / b.max(1) * WORK, |i| sequence(&a, i));
    *a.loss = 0.0;
    let zero = R::from_f64(0.0);
    a.dlogp.fill(zero);
    for out in [&mut a.dentropy, &mut a.token_loss].into_iter().flatten() {
        out.fill(zero);
    }
    let mut stats = PolicyStats::default();
    for sequence in &done {
        *a.loss += sequence.loss;
        stats.merge(&sequence.stats);
        for &(t, g) in &sequence.dlogp {
            a.dlogp.set(t, R::from_f64(g));
            if let Some(out) = &mut a.dentropy {
                out.set(t, R::from_f64(sequence.dentropy));
            }
        }
        if let Some(out) = &mut a.token_loss {
            sequence.token_loss.iter().for_each(|&(t, l)| out.set(t, R::from_f64(l)));
        }
    }
    if let Some(out) = a.stats {
        *out = stats;
    }
}

fn sequence<R: Real>(a: &PolicyLoss<'_, R>, i: usize) -> Sequence {
    let s = a.settings;
    let mut active = gather(a, i);
    let w = a.seq_weight.at(i).to_f64();
    let mut out = Sequence {
        loss: 0.0,
        dlogp: Vec::with_capacity(active.len()),
        token_loss: Vec::with_capacity(active.len()),
        dentropy: -w * s.entropy_coef,
        stats: PolicyStats::default(),
    };
    if active.is_empty() {
        out.stats.n_empty = 1;
        return out;
    }
    out.stats.n_sequences = 1;
    let spread = set_ratios(s, &mut active);
    let dropped = opsm_drops(a, &active);
    // Σ of what flows through a ratio that the whole sequence shares.
    let mut shared = 0.0;
    let mut own = Vec::with_capacity(active.len());
    for t in &active {
        let (term, clipped) = surrogate(&s.loss, &t.token);
        let keep = if dropped && t.token.advantage < 0.0 { 0.0 } else { t.rho * t.weight };
        let kl = kl_of(a, t);
        let add = |x: f64, scale: f64| if scale == 0.0 { 0.0 } else { x * scale };
        let class = s.class_weight[t.class];
        let value = add(term.value, keep) + kl.value - add(t.entropy, s.entropy_coef);
        let by_ratio = w * class * (add(term.by_ratio, keep) + kl.by_ratio);
        let by_logp = w * class * (add(term.by_logp, keep) + kl.by_logp);
        shared += by_ratio;
        own.push((by_ratio, by_logp));
        out.loss += w * class * value;
        out.token_loss.push((t.at, class * value));
        count(&mut out.stats, t, clipped, dropped && t.token.advantage < 0.0);
        kl_stats(a, t, &mut out.stats);
    }
    for (t, (by_ratio, by_logp)) in active.iter().zip(own) {
        let through = match spread {
            Spread::Own => by_ratio * t.moves as u8 as f64,
            Spread::All(share) => shared * share * t.moves as u8 as f64,
        };
        let gradient = through + by_logp;
        out.stats.grad2_by_class[t.class] += gradient * gradient;
        out.dlogp.push((t.at, gradient));
    }
    let broken = |x: &&(usize, f64)| !x.1.is_finite();
    out.stats.n_nonfinite = out.dlogp.iter().filter(broken).count() as u64;
    out
}

/// How a token's log-ratio enters the ratio it is used with.
enum Spread {
    /// Its own ratio.
    Own,
    /// Every token's ratio, with this factor.
    All(f64),
}

/// Tokens of sequence `i` that carry loss. Masked tokens are not read.
fn gather<R: Real>(a: &PolicyLoss<'_, R>, i: usize) -> Vec<Active> {
    let s = a.settings;
    let (from, to) = (a.cu_seqlens.at(i) as usize, a.cu_seqlens.at(i + 1) as usize);
    let read = |column: &Option<View<'_, R>>, t: usize| column.as_ref().map(|c| c.at(t).to_f64());
    let mut active = Vec::with_capacity(to - from);
    for t in from..to {
        let class = a.class.as_ref().map_or(0, |c| c.at(t) as usize);
        if a.mask.as_ref().is_some_and(|m| m.at(t) == 0) || s.class_weight[class] == 0.0 {
            continue;
        }
        let logp = a.logp.at(t).to_f64();
        let old = read(&a.old_logp, t);
        let sampler = read(&a.sampler_logp, t);
        let base = match s.denominator {
            _ if s.class_self_ratio[class] => logp,
            Denominator::Old => old.unwrap_or(logp),
            Denominator::Sampler => sampler.unwrap_or(logp),
        };
        let center = match s.center {
            ClipCenter::One => 1.0,
            ClipCenter::OldOverSampler => (old.unwrap_or(logp) - sampler.unwrap_or(logp)).exp(),
        };
        let raw = logp - base;
        let log_ratio = raw.clamp(-s.log_ratio_clamp, s.log_ratio_clamp);
        let advantage = match (&s.loss, &a.advantage) {
            (Loss::CrossEntropy, _) => 1.0,
            (_, Advantage::PerSequence(x)) => x.at(i).to_f64(),
            (_, Advantage::PerToken(x)) => x.at(t).to_f64(),
        };
        let token = Token {
            advantage,
            logp,
            base,
            log_ratio,
            ratio: log_ratio.exp(),
            center,
            log_phi: (0.0, 0.0),
            selected: a.selected.as_ref().is_some_and(|x| x.at(t) != 0),
        };
        active.push(Active {
            at: t,
            class,
            token,
            raw,
            moves: log_ratio == raw,
            entropy: read(&a.entropy, t).unwrap_or(0.0),
            rho: read(&a.is_weight, t).unwrap_or(1.0),
            weight: read(&a.token_weight, t).unwrap_or(1.0),
        });
    }
    active
}

/// Brings the log-ratios to the settings' level.
fn set_ratios(s: &PolicySettings, active: &mut [Active]) -> Spread {
    let n = active.len() as f64;
    if let Loss::Gmpo { lo, hi } = s.loss {
        return geometric_mean(active, lo, hi);
    }
    if let Loss::Vespo { pos, neg } = s.loss {
        let rho = |t: &Active| t.rho.ln().clamp(LOG_TINY, 20.0);
        let sum: f64 = active.iter().map(|t| t.raw.clamp(-20.0, 20.0) + rho(t)).sum();
        let log_w = sum.clamp(LOG_TINY, 20.0);
        let phi = |(kappa, lambda): (f64, f64)| lambda + kappa * log_w - lambda * log_w.exp();
        for t in active.iter_mut() {
            t.token.log_phi = (phi(pos), phi(neg));
            // ρ is inside φ already.
            t.rho = 1.0;
        }
    }
    let sum: f64 = active.iter().map(|t| t.token.log_ratio).sum();
    let (level, spread) = match s.ratio {
        RatioLevel::Token => return Spread::Own,
        RatioLevel::SequenceMean => (sum / n, Spread::All(1.0 / n)),
        RatioLevel::SequenceMeanToken => (sum / n, Spread::Own),
        RatioLevel::SequenceSum => (sum, Spread::All(1.0)),
    };
    let bounded = level.min(s.seq_log_ratio_max);
    for t in active {
        t.token.log_ratio = bounded;
        t.token.ratio = bounded.exp();
        t.moves &= bounded == level;
    }
    spread
}

/// log 1e-8, where VESPO cuts small ratios.
const LOG_TINY: f64 = -18.420_680_743_952_367;

/// GMPO: the sequence's ratio is the geometric mean of token ratios cut on the pessimistic side, its
/// advantage the mean of the tokens' (all equal in the paper).
fn geometric_mean(active: &mut [Active], lo: f64, hi: f64) -> Spread {
    let n = active.len() as f64;
    let advantage = active.iter().map(|t| t.token.advantage).sum::<f64>() / n;
    let mut sum = 0.0;
    for t in active.iter_mut() {
        let d = t.token.log_ratio;
        let cut = match t.token.advantage {
            a if a > 0.0 => d.min(hi),
            a if a < 0.0 => d.max(-lo),
            _ => 0.0,
        };
        t.moves &= cut == d;
        sum += cut;
    }
    for t in active.iter_mut() {
        t.token.advantage = advantage;
        t.token.log_ratio = sum / n;
        t.token.ratio = (sum / n).exp();
    }
    Spread::All(1.0 / n)
}

/// Whether OPSM drops the sequence's tokens of negative advantage.
fn opsm_drops<R: Real>(a: &PolicyLoss<'_, R>, active: &[Active]) -> bool {
    if a.settings.opsm == f64::INFINITY {
        return false;
    }
    let Some(sampler) = a.sampler_logp.as_ref().or(a.old_logp.as_ref()) else { return false };
    let gap: f64 = active.iter().map(|t| sampler.at(t.at).to_f64() - t.token.logp).sum();
    gap / active.len() as f64 > a.settings.opsm
}

fn kl_of<R: Real>(a: &PolicyLoss<'_, R>, t: &Active) -> Term {
    let (Some(kl), Some(reference)) = (&a.settings.kl, &a.ref_logp) else {
        return Term::default();
    };
    let second = a.ref2_logp.as_ref().map(|c| c.at(t.at).to_f64());
    penalty(kl, t.token.logp, reference.at(t.at).to_f64(), second, t.token.ratio)
}

fn count(stats: &mut PolicyStats, t: &Active, clipped: Clipped, dropped: bool) {
    stats.n_tokens += 1;
    stats.n_clip_lo += (clipped == Clipped::Low) as u64;
    stats.n_clip_hi += (clipped == Clipped::High) as u64;
    stats.n_dual += (clipped == Clipped::Dual) as u64;
    stats.n_opsm += dropped as u64;
    let r = t.token.ratio;
    stats.sum_ratio += r;
    stats.sum_ratio2 += r * r;
    stats.min_ratio = stats.min_ratio.min(r);
    stats.max_ratio = stats.max_ratio.max(r);
    stats.max_abs_log_ratio = stats.max_abs_log_ratio.max(t.raw.abs());
    stats.sum_entropy += t.entropy;
}

fn kl_stats<R: Real>(a: &PolicyLoss<'_, R>, t: &Active, stats: &mut PolicyStats) {
    if let Some(reference) = &a.ref_logp {
        let k = reference.at(t.at).to_f64() - t.token.logp;
        for (sum, value) in stats.sum_kl.iter_mut().zip([-k, 0.5 * k * k, k.exp_m1() - k]) {
            *sum += value;
        }
    }
}
