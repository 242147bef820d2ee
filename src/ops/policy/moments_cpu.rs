//! Mean and variance on the CPU.

/// Two-pass moments of the values that are not NaN, about the smallest of them: differences of
/// equal or nearby numbers are exact, so equal values have variance 0, not rounding noise.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub count: usize,
    pub min: f64,
    /// Mean − min.
    pub rise: f64,
    pub variance: f64,
    /// True if max == min or there is nothing.
    pub equal: bool,
}

impl Moments {
    pub fn of(values: &[f64], ddof: u8) -> Moments {
        let scorable = || values.iter().copied().filter(|v| !v.is_nan());
        let count = scorable().count();
        let min = scorable().fold(f64::INFINITY, f64::min);
        let max = scorable().fold(f64::NEG_INFINITY, f64::max);
        if count == 0 || max == min {
            let min = if count == 0 { 0.0 } else { min };
            return Moments { count, min, rise: 0.0, variance: 0.0, equal: true };
        }
        let rise = scorable().map(|v| v - min).sum::<f64>() / count as f64;
        let squares: f64 = scorable().map(|v| (v - min - rise) * (v - min - rise)).sum();
        let free = count - ddof as usize;
        Moments { count, min, rise, variance: squares / free as f64, equal: false }
    }
}
