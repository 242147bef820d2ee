//! Whitening on the CPU, in f64.

use crate::alloc::Gather;
use crate::check::Check;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::moments_cpu::Moments;
use crate::ops::policy::tokens::is_action;
use crate::ops::policy::whiten::{Whiten, WhitenStats};

pub(crate) fn whiten<R: Real>(a: Whiten<'_, R>) -> Result<()> {
    let check = Check("whiten");
    let s = a.settings;
    let used: Vec<usize> = (0..a.x.extent(0)).filter(|&t| is_action(&a.mask, t)).sifted();
    let values: Vec<f64> = used.iter().map(|&t| a.x.at(t).to_f64()).gathered();
    let m = Moments::of(&values, s.ddof);
    let (mean, variance) = padded_moments(&values, &m, s.ddof, s.count_eps);
    let divisor = s.eps_form.divisor(variance, s.eps);
    let whitened = |value: f64| {
        let centered = value - m.min - mean;
        let whitened = if m.equal || divisor == 0.0 { 0.0 } else { centered / divisor };
        whitened + if s.shift_mean { 0.0 } else { m.min + mean }
    };
    check.in_range::<R>("y", values.iter().map(|&value| whitened(value)))?;
    let mut y = a.y;
    y.fill(R::from_f64(0.0));
    used.iter().zip(&values).for_each(|(&t, &value)| y.set(t, R::from_f64(whitened(value))));
    if let Some(stats) = a.stats {
        *stats = WhitenStats { count: m.count, mean: m.min + mean, std: variance.sqrt() };
    }
    Ok(())
}

/// Mean above the smallest value and variance, with `count_eps` added to the count in both means:
/// a mean over `n + eps` also draws the mean itself toward 0 by `eps / (n + eps)`.
fn padded_moments(values: &[f64], m: &Moments, ddof: u8, count_eps: f64) -> (f64, f64) {
    if count_eps == 0.0 || m.equal {
        return (m.rise, m.variance);
    }
    let count = m.count as f64;
    let padded = count + count_eps;
    let mean = m.rise - (m.min + m.rise) * (count_eps / padded);
    let squares: f64 = values.iter().map(|v| (v - m.min - mean) * (v - m.min - mean)).sum();
    (mean, squares / padded * (count / (count - ddof as f64)))
}
