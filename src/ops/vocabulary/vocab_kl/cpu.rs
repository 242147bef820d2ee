//! Full-vocabulary divergences on the CPU. A row's two log-softmaxes are held in f64; sums run in
//! column order.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::support::math;
use crate::ops::vocabulary::logprob::LogitTransform;
use crate::ops::vocabulary::logprob::cpu::{WORK, dz_dx, transformed};
use crate::ops::vocabulary::vocab_kl::{Divergence, Guidance, VocabKl, VocabKlBwd};

/// log p and log q of one row.
struct Pair {
    log_p: Vec<f64>,
    log_q: Vec<f64>,
}

/// w·x, where w = 0 means that x does not matter, even if it is infinite or NaN.
#[inline(always)]
fn weighted(w: f64, x: f64) -> f64 {
    if w == 0.0 { 0.0 } else { w * x }
}

impl Pair {
    fn new<T: Float>(
        policy: &[T],
        reference: &[T],
        guide: Option<(&[T], f64)>,
        t: &LogitTransform,
    ) -> Pair {
        let z = |row: &[T]| row.iter().map(|x| transformed(x.to_f64(), t)).gathered();
        let mut teacher = z(reference);
        if let Some((u, gamma)) = guide {
            for (c, u) in teacher.iter_mut().zip(z(u)) {
                *c = guided(*c, u, gamma);
            }
        }
        Pair { log_p: log_softmax(teacher), log_q: log_softmax(z(policy)) }
    }

    /// log(β·p + (1 − β)·q) of each column.
    fn log_mixture(&self, beta: f64) -> Vec<f64> {
        let mix = |(&p, &q): (&f64, &f64)| (beta * math::exp(p) + (1.0 - beta) * math::exp(q)).ln();
        self.log_p.iter().zip(&self.log_q).map(mix).gathered()
    }

    fn value(&self, divergence: Divergence) -> f64 {
        match divergence {
            Divergence::ForwardKl => kl(&self.log_p, &self.log_q),
            Divergence::ReverseKl => kl(&self.log_q, &self.log_p),
            Divergence::Jsd { .. } if self.log_p == self.log_q => 0.0,
            Divergence::Jsd { beta } => {
                let m = self.log_mixture(beta);
                beta * kl(&self.log_p, &m) + (1.0 - beta) * kl(&self.log_q, &m)
            }
            Divergence::TotalVariation => {
                let gap = |(&p, &q): (&f64, &f64)| (math::exp(p) - math::exp(q)).abs();
                0.5 * self.log_p.iter().zip(&self.log_q).map(gap).sum::<f64>()
            }
        }
    }

    /// ∂value/∂z of each column of the policy.
    fn gradient(&self, divergence: Divergence) -> Vec<f64> {
        let columns = self.log_p.iter().zip(&self.log_q);
        match divergence {
            Divergence::ForwardKl => columns.map(|(&p, &q)| math::exp(q) - math::exp(p)).gathered(),
            Divergence::ReverseKl => score(&self.log_q, &self.log_p, 1.0),
            Divergence::Jsd { beta } => score(&self.log_q, &self.log_mixture(beta), 1.0 - beta),
            Divergence::TotalVariation => {
                let half_sign = |(&p, &q): (&f64, &f64)| match q.partial_cmp(&p) {
                    Some(std::cmp::Ordering::Greater) => 0.5,
                    Some(std::cmp::Ordering::Less) => -0.5,
                    _ => 0.0,
                };
                let signs: Vec<f64> = columns.map(half_sign).gathered();
                let q: Vec<f64> = self.log_q.iter().map(|&q| math::exp(q)).gathered();
                let mean: f64 = q.iter().zip(&signs).map(|(q, s)| q * s).sum();
                q.iter().zip(&signs).map(|(q, s)| q * (s - mean)).gathered()
            }
        }
    }
}

/// u + γ·(c − u); −∞ on both sides stays −∞.
fn guided(c: f64, u: f64, gamma: f64) -> f64 {
    if gamma == 1.0 || c == u {
        c
    } else if gamma == 0.0 {
        u
    } else {
        gamma.mul_add(c - u, u)
    }
}

/// z − log Σ exp(z), in place. A row of −∞ stays one.
fn log_softmax(mut z: Vec<f64>) -> Vec<f64> {
    let max = z.iter().fold(f64::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    if max == f64::NEG_INFINITY {
        return z;
    }
    let sum: f64 = z.iter().map(|&x| math::exp(x - max)).sum();
    let log_sum = sum.ln();
    z.iter_mut().for_each(|x| *x = (*x - max) - log_sum);
    z
}

/// Σ p·(log p − log q), never below 0.
fn kl(log_p: &[f64], log_q: &[f64]) -> f64 {
    let term = |(&p, &q): (&f64, &f64)| weighted(math::exp(p), p - q);
    let sum: f64 = log_p.iter().zip(log_q).map(term).sum();
    if sum < 0.0 { 0.0 } else { sum }
}

/// scale·q·(log q − log p − KL(q‖p)) of each column.
fn score(log_q: &[f64], log_p: &[f64], scale: f64) -> Vec<f64> {
    let kl: f64 = log_q.iter().zip(log_p).map(|(&q, &p)| weighted(math::exp(q), q - p)).sum();
    let column = |(&q, &p): (&f64, &f64)| weighted(scale * math::exp(q), q - p - kl);
    log_q.iter().zip(log_p).map(column).gathered()
}

fn guide_row<'a, T: Float>(
    guidance: &Option<Guidance<'a, T>>,
    t: usize,
    vocab: usize,
) -> Option<(&'a [T], f64)> {
    guidance.as_ref().map(|g| (&g.logits.row(t)[..vocab], g.gamma))
}

pub(crate) fn vocab_kl<T: Float>(mut a: VocabKl<'_, T>) {
    let vocab = a.vocab as usize;
    let values = parallel::map(a.policy.extent(0), 3 * vocab * WORK, |t| {
        let (policy, reference) = (&a.policy.row(t)[..vocab], &a.reference.row(t)[..vocab]);
        let guide = guide_row(&a.guidance, t, vocab);
        Pair::new(policy, reference, guide, &a.transform).value(a.divergence)
    });
    values.into_iter().enumerate().for_each(|(t, value)| a.value.set(t, value as f32));
}

pub(crate) fn vocab_kl_bwd<T: Float>(a: VocabKlBwd<'_, T>) {
    let vocab = a.vocab as usize;
    parallel::for_each(a.dpolicy.into_rows(), 3 * vocab * WORK, |t, out| {
        let (policy, reference) = (&a.policy.row(t)[..vocab], &a.reference.row(t)[..vocab]);
        let guide = guide_row(&a.guidance, t, vocab);
        let gradient = Pair::new(policy, reference, guide, &a.transform).gradient(a.divergence);
        let g = a.dvalue.at(t) as f64;
        out[vocab..].fill(T::from_f32(0.0));
        for ((out, dz), x) in out.iter_mut().zip(gradient).zip(policy) {
            *out = T::from_f64(weighted(g, dz) * dz_dx(x.to_f64(), &a.transform));
        }
    });
}
