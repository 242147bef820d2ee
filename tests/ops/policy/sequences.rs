//! Sequences of any length, and the ops of tokens on them.

use std::sync::Arc;

use crate::common::devices::{close, traffic};
use crate::common::normals;
use gradus::Device;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::dtype::Real;
use gradus::ops::*;

pub const LENGTHS: [usize; 14] = [0, 1, 31, 32, 33, 0, 255, 256, 257, 511, 512, 513, 1021, 10_007];

/// Packed sequences; NaN stands where the mask forbids reading.
pub struct Packed<R> {
    pub cu_seqlens: Vec<i64>,
    pub mask: Vec<u8>,
    pub reward: Vec<R>,
    pub value: Vec<R>,
    pub per_sequence: Vec<R>,
}

impl<R: Real> Packed<R> {
    /// `keep(t)` is the mask.
    pub fn new(lengths: &[usize], keep: impl Fn(usize) -> bool) -> Packed<R> {
        let mut cu_seqlens = vec![0i64];
        lengths.iter().for_each(|&n| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n as i64));
        let n = lengths.iter().sum();
        let mask: Vec<u8> = (0..n).map(|t| keep(t) as u8 * 3).collect();
        let values = |seed| -> Vec<R> {
            let hide = |(x, &m): (f64, &u8)| R::from_f64(if m == 0 { f64::NAN } else { x });
            normals(seed, n, 1.0).into_iter().zip(&mask).map(hide).collect()
        };
        let (reward, value) = (values(1), values(2));
        let per_sequence = normals(3, lengths.len(), 1.0).into_iter().map(R::from_f64).collect();
        Packed { cu_seqlens, mask, reward, value, per_sequence }
    }

    pub fn nan(&self) -> Vec<R> {
        vec![R::from_f64(f64::NAN); self.mask.len()]
    }

    /// Sequence `i` alone.
    pub fn only(&self, i: usize) -> Packed<R> {
        let range = self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize;
        Packed {
            cu_seqlens: vec![0, range.len() as i64],
            mask: self.mask[range.clone()].to_vec(),
            reward: self.reward[range.clone()].to_vec(),
            value: self.value[range].to_vec(),
            per_sequence: vec![self.per_sequence[i]],
        }
    }

    pub fn gae(&self, device: &Device) -> [Vec<R>; 2] {
        let (mut advantage, mut returns) = (self.nan(), self.nan());
        let args = Gae {
            reward: (&self.reward).into(),
            value: (&self.value).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            bootstrap: Some((&self.per_sequence).into()),
            gamma: 0.99,
            gae_lambda: 0.95,
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(device, args).unwrap();
        [advantage, returns]
    }

    pub fn returns(&self, device: &Device, gamma: f64, masked: MaskedReturn) -> Vec<R> {
        let mut returns = self.nan();
        let args = DiscountedReturn {
            reward: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            gamma,
            masked,
            baseline: Some((&self.per_sequence).into()),
            returns: (&mut returns).into(),
        };
        discounted_return(device, args).unwrap();
        returns
    }

    pub fn kl_reward(&self, device: &Device, estimator: RewardKl, beta: f64) -> Vec<R> {
        let mut reward = self.nan();
        let args = KlReward {
            score: (&self.per_sequence).into(),
            logp: (&self.reward).into(),
            reference: (&self.value).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            beta,
            estimator,
            clamp: 2.0,
            reward: (&mut reward).into(),
        };
        kl_reward(device, args).unwrap();
        reward
    }

    pub fn whiten(&self, device: &Device, settings: WhitenSettings) -> (Vec<R>, WhitenStats) {
        let (mut y, mut stats) = (self.nan(), WhitenStats::default());
        let args = Whiten {
            x: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            settings,
            y: (&mut y).into(),
            stats: Some(&mut stats),
        };
        whiten(device, args).unwrap();
        (y, stats)
    }

    pub fn quantile(&self, device: &Device, q: f64, method: QuantileMethod, whole: bool) -> Vec<R> {
        let outputs = if whole { 1 } else { self.per_sequence.len() };
        let mut y = vec![R::from_f64(-1.0); outputs];
        let args = Quantile {
            x: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            scope: self.scope(whole),
            q,
            method,
            on_nan: OnNan::Skip,
            y: (&mut y).into(),
        };
        quantile(device, args).unwrap();
        y
    }

    pub fn scope(&self, whole: bool) -> QuantileScope<'_> {
        if whole {
            QuantileScope::All
        } else {
            QuantileScope::PerSequence((&self.cu_seqlens).into())
        }
    }

    pub fn top(&self, device: &Device, fraction: f64, whole: bool) -> (Vec<u8>, Vec<R>) {
        let outputs = if whole { 1 } else { self.per_sequence.len() };
        let mut keep = vec![9u8; self.mask.len()];
        let mut threshold = vec![R::from_f64(-1.0); outputs];
        let class = RankedClass { class_ids: (&self.mask).into(), ranked: 3, others: true };
        let args = TopFraction {
            x: (&self.reward).into(),
            class: Some(class),
            scope: self.scope(whole),
            fraction,
            keep: (&mut keep).into(),
            threshold: Some((&mut threshold).into()),
        };
        top_fraction(device, args).unwrap();
        (keep, threshold)
    }
}

pub const MASKS: [fn(usize) -> bool; 4] =
    [|_| true, |t| t % 7 != 3, |t| (t / 300) % 2 == 0, |t| t % 1000 == 999];

/// Values are of the order of 1 to 100 and computed in f64, in another order than on the CPU.
pub fn agree<R: Real>(name: &str, cpu: &[R], gpu: &[R]) {
    let wide = |x: &[R]| -> Vec<f64> { x.iter().map(|v| v.to_f64()).collect() };
    let (relative, floor) = if size_of::<R>() == 4 { (1.2e-7, 1e-3) } else { (1e-12, 1.0) };
    close(name, &wide(cpu), &wide(gpu), relative, floor);
}

/// `run` on four sequences of 16,384 tokens, with each set of kernels: launches, and bytes per token.
pub fn counted(run: impl Fn(&Device, &Packed<f32>)) -> Vec<(usize, f64)> {
    let of = |set| {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let packed = Packed::<f32>::new(&[16_384; 4], |_| true);
        run(&Device::Gpu(Arc::new(gpu)), &packed);
        traffic(&driver, packed.mask.len())
    };
    [KernelSet::Sm80, KernelSet::Sm90a].map(of).to_vec()
}
