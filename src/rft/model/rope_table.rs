//! Rotary position tables: cos and sin of `position · theta^(-2i/D)` (Su et al. 2021,
//! arXiv:2104.09864, eq. 15), in f64 and rounded once.

use gradus::device::{Buffer, Device};
use gradus::error::Result;

/// Change of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain frequencies.
    None,
    /// Every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// Llama 3's piecewise rule: long wavelengths are stretched by `factor`, short ones kept, the
    /// band between blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original: usize,
    },
}

/// `[positions, head_dim / 2]` cosines and sines.
#[derive(Debug)]
pub struct RopeTable {
    /// Cosines, row-major.
    pub cos: Buffer<f32>,
    /// Sines, row-major.
    pub sin: Buffer<f32>,
    /// Pairs per head.
    pub half: usize,
}

impl RopeTable {
    /// Table for `positions` positions on `device`.
    pub fn new(
        device: &Device,
        positions: usize,
        head_dim: usize,
        theta: f64,
        scaling: RopeScaling,
    ) -> Result<RopeTable> {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| scaled(theta.powf(-(2.0 * i as f64) / head_dim as f64), scaling))
            .collect();
        let angles = |p: usize| frequencies.iter().map(move |f| (p as f64 * f).sin_cos());
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for (s, c) in (0..positions).flat_map(angles) {
            cos.push(c as f32);
            sin.push(s as f32);
        }
        let (cos, sin) = (Buffer::from_vec(device, cos)?, Buffer::from_vec(device, sin)?);
        Ok(RopeTable { cos, sin, half })
    }
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
            let turns = original as f64 * frequency / std::f64::consts::TAU;
            let blend = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let keep = blend.clamp(0.0, 1.0);
            frequency * (keep + (1.0 - keep) / factor)
        }
    }
}
