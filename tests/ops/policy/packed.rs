//! Twelve tokens in four sequences, one of them fully masked, and the ops of tokens on them.

use crate::common::devices::{close, on_all};
use crate::common::normals;
use gradus::ops::{DiscountedReturn, Gae, MaskedReturn, discounted_return, gae};
use gradus::{Device, View};

/// Packed sequences of lengths 4, 0, 1, 7 with holes in the mask; NaN stands where the mask forbids
/// reading.
pub struct Packed {
    pub cu_seqlens: Vec<i64>,
    pub mask: Vec<u8>,
}

impl Packed {
    pub fn new() -> Packed {
        Packed { cu_seqlens: vec![0, 4, 4, 5, 12], mask: vec![1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0] }
    }

    pub fn values(&self, seed: u64) -> Vec<f64> {
        let hide = |(x, &m): (f64, &u8)| if m == 0 { f64::NAN } else { x };
        normals(seed, self.mask.len(), 1.0).into_iter().zip(&self.mask).map(hide).collect()
    }

    /// The counted tokens of sequence i, in order.
    pub fn actions(&self, i: usize) -> Vec<usize> {
        let range = self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize;
        range.filter(|&t| self.mask[t] != 0).collect()
    }

    /// On every executor; the CPU's result is returned.
    pub fn gae(
        &self,
        reward: &[f64],
        value: &[f64],
        bootstrap: Option<&Vec<f64>>,
        factors: (f64, f64),
    ) -> (Vec<f64>, Vec<f64>) {
        on_all(
            |device| self.gae_on(device, reward, value, bootstrap, factors),
            |name, cpu, gpu| {
                close(name, &cpu.0, &gpu.0, 1e-13, 1.0);
                close(name, &cpu.1, &gpu.1, 1e-13, 1.0);
            },
        )
    }

    pub fn gae_on(
        &self,
        device: &Device,
        reward: &[f64],
        value: &[f64],
        bootstrap: Option<&Vec<f64>>,
        (gamma, lambda): (f64, f64),
    ) -> (Vec<f64>, Vec<f64>) {
        let nan = || vec![f64::NAN; reward.len()];
        let (mut advantage, mut returns) = (nan(), nan());
        let args = Gae {
            reward: reward.into(),
            value: value.into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            bootstrap: bootstrap.map(View::from),
            gamma,
            gae_lambda: lambda,
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(device, args).unwrap();
        (advantage, returns)
    }

    pub fn returns(&self, reward: &[f64], gamma: f64, masked: MaskedReturn) -> Vec<f64> {
        let on = |device: &Device| {
            let mut returns = vec![f64::NAN; reward.len()];
            let args = DiscountedReturn {
                reward: reward.into(),
                mask: Some((&self.mask).into()),
                cu_seqlens: (&self.cu_seqlens).into(),
                gamma,
                masked,
                baseline: None,
                returns: (&mut returns).into(),
            };
            discounted_return(device, args).unwrap();
            returns
        };
        on_all(on, |name, cpu, gpu| close(name, cpu, gpu, 1e-13, 1.0))
    }
}
