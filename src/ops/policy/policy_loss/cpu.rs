//! The token policy loss on the CPU: one sequence at a time, f64 throughout, sequences in parallel
//! and summed in order.

use std::borrow::Cow;
use std::ops::Range;

use super::cpu_terms::{Clipped, Term, Token, penalty, surrogate};
use crate::alloc::{self, Gather, Grow};
use crate::device::parallel;
use crate::dtype::{Element, Real};
use crate::ops::policy::policy_loss::{
    Advantage, ClipCenter, Denominator, Loss, PolicyLoss, PolicySettings, PolicyStats, RatioLevel,
};
use crate::ops::support::math::{at_least, at_most, within};
use crate::view::View;

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
    /// ∂loss/∂(log ratio) and ∂loss/∂ℓ at a fixed ratio.
    by_ratio: f64,
    by_logp: f64,
    /// Whether its loss is a number.
    finite: bool,
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
    let done = parallel::map(b, tokens / b.max(1) * WORK, |i| sequence(&a, i));
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

/// Tokens that are worked on together where none depends on another: they stay in the first-level cache.
const BLOCK: usize = 64;

/// True if a token's loss depends on others of its sequence.
fn joins_tokens(s: &PolicySettings) -> bool {
    let joined = matches!(s.loss, Loss::Gmpo { .. } | Loss::Vespo { .. });
    joined || s.ratio != RatioLevel::Token || s.opsm != f64::INFINITY
}

fn sequence<R: Real>(a: &PolicyLoss<'_, R>, i: usize) -> Sequence {
    let (from, to) = (a.cu_seqlens.at(i) as usize, a.cu_seqlens.at(i + 1) as usize);
    let room = |wanted: bool| alloc::room(if wanted { to - from } else { 0 });
    let mut out = Sequence {
        loss: 0.0,
        dlogp: room(true),
        token_loss: room(a.token_loss.is_some()),
        dentropy: -a.seq_weight.at(i).to_f64() * a.settings.entropy_coef,
        stats: PolicyStats::default(),
    };
    let block = if joins_tokens(a.settings) { to - from } else { BLOCK.min(to - from) };
    let mut active = alloc::room(block);
    for first in (from..to).step_by(block.max(1)) {
        gather(a, i, first..to.min(first + block), &mut active);
        if !active.is_empty() {
            add_tokens(a, i, &mut active, &mut out);
        }
    }
    if out.dlogp.is_empty() {
        out.stats.n_empty = 1;
    } else {
        out.stats.n_sequences = 1;
    }
    out
}

/// Loss and gradients of tokens, among them all that one of them depends on.
fn add_tokens<R: Real>(a: &PolicyLoss<'_, R>, i: usize, active: &mut [Active], out: &mut Sequence) {
    let (s, w) = (a.settings, a.seq_weight.at(i).to_f64());
    let (counted, told) = (a.stats.is_some(), a.token_loss.is_some());
    let spread = set_ratios(s, active);
    let opsm = opsm_share(a, active);
    // Σ of what flows through a ratio that the whole sequence shares.
    let mut shared = 0.0;
    for t in active.iter_mut() {
        let (term, clipped) = surrogate(&s.loss, &t.token);
        let share = if t.token.advantage < 0.0 { opsm } else { 1.0 };
        let keep = scaled(t.rho * t.weight, share);
        let kl = kl_of(a, t);
        let class = s.class_weight[t.class];
        let value = scaled(term.value, keep) + kl.value - scaled(t.entropy, s.entropy_coef);
        t.by_ratio = w * class * (scaled(term.by_ratio, keep) + kl.by_ratio);
        t.by_logp = w * class * (scaled(term.by_logp, keep) + kl.by_logp);
        shared += t.by_ratio;
        out.loss += w * class * value;
        if told {
            out.token_loss.put((t.at, class * value));
        }
        if counted {
            count(&mut out.stats, t, clipped, share == 0.0);
            t.finite = value.is_finite();
            kl_stats(a, t, &mut out.stats);
        }
    }
    for t in active.iter() {
        let through = match spread {
            Spread::Own => t.by_ratio * t.moves as u8 as f64,
            Spread::All(share) => shared * share * t.moves as u8 as f64,
        };
        let gradient = through + t.by_logp;
        out.dlogp.put((t.at, gradient));
        if counted {
            out.stats.grad2_by_class[t.class] += gradient * gradient;
            out.stats.n_nonfinite += !(t.finite && gradient.is_finite()) as u64;
        }
    }
}

/// scale·x, where a scale of 0 means that x does not matter.
#[inline(always)]
fn scaled(x: f64, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { x * scale }
}

/// How a token's log-ratio enters the ratio it is used with.
enum Spread {
    /// Its own ratio.
    Own,
    /// Every token's ratio, with this factor.
    All(f64),
}

/// A vector's elements in a range: borrowed if they are contiguous, else copied.
fn column<'a, T: Element>(view: &View<'a, T>, range: &Range<usize>) -> Cow<'a, [T]> {
    match view.as_slice() {
        Some(all) => Cow::Borrowed(&all[range.clone()]),
        None => range.clone().map(|t| view.at(t)).gathered().into(),
    }
}

fn given<'a, T: Element>(view: &Option<View<'a, T>>, range: &Range<usize>) -> Option<Cow<'a, [T]>> {
    view.as_ref().map(|view| column(view, range))
}

/// Those of `range`, tokens of sequence `i`, that carry loss. Masked tokens are not read.
fn gather<R: Real>(a: &PolicyLoss<'_, R>, i: usize, range: Range<usize>, active: &mut Vec<Active>) {
    let s = a.settings;
    let r = &range;
    let (logps, olds) = (column(&a.logp, r), given(&a.old_logp, r));
    let (samplers, entropies) = (given(&a.sampler_logp, r), given(&a.entropy, r));
    let (rhos, weights) = (given(&a.is_weight, r), given(&a.token_weight, r));
    let (masks, classes, marks) =
        (given(&a.mask, r), given(&a.class_ids, r), given(&a.selected, r));
    let (shared, advantages) = match (&s.loss, &a.advantage) {
        (Loss::CrossEntropy, _) => (1.0, None),
        (_, Advantage::PerSequence(x)) => (x.at(i).to_f64(), None),
        (_, Advantage::PerToken(x)) => (0.0, Some(column(x, r))),
    };
    let read = |column: &Option<Cow<'_, [R]>>, j: usize| column.as_ref().map(|c| c[j].to_f64());
    active.clear();
    for (j, logp) in logps.iter().enumerate() {
        let class = classes.as_ref().map_or(0, |c| c[j] as usize);
        if masks.as_ref().is_some_and(|m| m[j] == 0) || s.class_weight[class] == 0.0 {
            continue;
        }
        let logp = logp.to_f64();
        let old = read(&olds, j);
        let sampler = read(&samplers, j);
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
        let log_ratio = within(raw, -s.log_ratio_clamp, s.log_ratio_clamp);
        let token = Token {
            advantage: read(&advantages, j).unwrap_or(shared),
            logp,
            base,
            log_ratio,
            ratio: log_ratio.exp(),
            center,
            log_phi: (0.0, 0.0),
            selected: marks.as_ref().is_some_and(|x| x[j] != 0),
        };
        active.put(Active {
            at: range.start + j,
            class,
            token,
            raw,
            moves: log_ratio == raw,
            entropy: read(&entropies, j).unwrap_or(0.0),
            rho: read(&rhos, j).unwrap_or(1.0),
            weight: read(&weights, j).unwrap_or(1.0),
            by_ratio: 0.0,
            by_logp: 0.0,
            finite: true,
        });
    }
}

/// Brings the log-ratios to the settings' level.
fn set_ratios(s: &PolicySettings, active: &mut [Active]) -> Spread {
    let n = active.len() as f64;
    if let Loss::Gmpo { lo, hi } = s.loss {
        return geometric_mean(active, lo, hi);
    }
    if let Loss::Vespo { pos, neg } = s.loss {
        let rho = |t: &Active| within(t.rho.ln(), LOG_TINY, 20.0);
        let sum: f64 = active.iter().map(|t| within(t.raw, -20.0, 20.0) + rho(t)).sum();
        let log_w = within(sum, LOG_TINY, 20.0);
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
    let bounded = at_most(level, s.seq_log_ratio_max);
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
            a if a > 0.0 => at_most(d, hi),
            a if a < 0.0 => at_least(d, -lo),
            _ if d.is_nan() => d,
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

/// What OPSM leaves of the sequence's tokens of negative advantage: 1 or 0, or NaN where the gap is.
fn opsm_share<R: Real>(a: &PolicyLoss<'_, R>, active: &[Active]) -> f64 {
    if a.settings.opsm == f64::INFINITY {
        return 1.0;
    }
    let Some(sampler) = a.sampler_logp.as_ref().or(a.old_logp.as_ref()) else { return 1.0 };
    let gap: f64 = active.iter().map(|t| sampler.at(t.at).to_f64() - t.token.logp).sum();
    match gap / active.len() as f64 {
        gap if gap.is_nan() => gap,
        gap => (gap <= a.settings.opsm) as u8 as f64,
    }
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
