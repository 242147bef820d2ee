//! Batches whose advantages verl computed.

use crate::common::devices::executors;
use crate::common::{Golden, golden_folder, max_rel};
use gradus::ops::{
    DiscountedReturn, GroupAdvantage, GroupSettings, Grouping, MaskedReturn, Whiten,
    WhitenSettings, discounted_return, group_advantage, whiten,
};
use gradus::{Device, View};

/// Largest relative error; the figures are O(1) and both sides compute in f64.
pub const TOLERANCE: f64 = 1e-12;

/// A padded `[rows, cols]` file as packed sequences of full width, so that verl's padding becomes
/// masked tokens.
pub struct Batch {
    pub device: Device,
    pub file: Golden,
    pub mask: Vec<u8>,
    pub cols: usize,
    pub cu_seqlens: Vec<i64>,
}

impl Batch {
    /// The file once for every executor.
    pub fn open(name: &str) -> Vec<Batch> {
        executors().into_iter().map(|executor| Batch::open_on(executor.device, name)).collect()
    }

    pub fn open_on(device: Device, name: &str) -> Batch {
        let path = golden_folder().join(format!("verl_adv/{name}.safetensors"));
        let file = Golden::open(&path);
        let (rows, cols) = (file.shape("mask")[0], file.shape("mask")[1]);
        let mask = file.f64("mask").iter().map(|&m| m as u8).collect();
        let cu_seqlens = (0..=rows).map(|i| (i * cols) as i64).collect();
        Batch { device, file, mask, cols, cu_seqlens }
    }

    pub fn mask(&self) -> Option<View<'_, u8>> {
        Some((&self.mask).into())
    }

    /// Per-sequence advantages of the file's rewards and groups.
    pub fn group(&self, settings: GroupSettings) -> Vec<f64> {
        let grouping = Grouping::by_id(&self.file.get::<i64>("group"));
        let reward = grouping.gather(&self.file.f64("score")).unwrap();
        let length: Vec<i64> =
            self.mask.chunks(self.cols).map(|row| row.iter().map(|&m| m as i64).sum()).collect();
        let length = grouping.gather(&length).unwrap();
        let mut advantage = vec![0.0; reward.len()];
        let args = GroupAdvantage {
            reward: (&reward).into(),
            offsets: grouping.offsets().into(),
            length: Some((&length).into()),
            settings,
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(&self.device, args).unwrap();
        grouping.scatter(&advantage).unwrap()
    }

    /// A per-sequence value on every token of the mask.
    pub fn on_tokens(&self, value: &[f64]) -> Vec<f64> {
        let masked = |(t, &m): (usize, &u8)| if m != 0 { value[t / self.cols] } else { 0.0 };
        self.mask.iter().enumerate().map(masked).collect()
    }

    pub fn returns(
        &self,
        gamma: f64,
        masked: MaskedReturn,
        baseline: Option<&Vec<f64>>,
    ) -> Vec<f64> {
        let reward = self.file.f64("token_reward");
        let mut returns = vec![f64::NAN; reward.len()];
        let args = DiscountedReturn {
            reward: (&reward).into(),
            mask: self.mask(),
            cu_seqlens: (&self.cu_seqlens).into(),
            gamma,
            masked,
            baseline: baseline.map(View::from),
            returns: (&mut returns).into(),
        };
        discounted_return(&self.device, args).unwrap();
        returns
    }

    pub fn whiten(&self, x: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        let args = Whiten {
            x: x.into(),
            mask: self.mask(),
            settings: WhitenSettings::VERL,
            y: (&mut y).into(),
            stats: None,
        };
        whiten(&self.device, args).unwrap();
        y
    }

    /// `got` equals the file's `tensor` on every token of the mask; outside it we write 0, verl
    /// leaves what its formula happens to give.
    pub fn check(&self, tensor: &str, got: &[f64]) {
        let pick = |values: &[f64]| -> Vec<f64> {
            (0..values.len()).filter(|&t| self.mask[t] != 0).map(|t| values[t]).collect()
        };
        let error = max_rel(&pick(got), &pick(&self.file.f64(tensor)), 1e-3);
        assert!(error < TOLERANCE, "{} {tensor}: {error:e}", self.file.name);
        let outside = (0..got.len()).filter(|&t| self.mask[t] == 0);
        assert!(outside.into_iter().all(|t| got[t] == 0.0), "{} {tensor}", self.file.name);
    }
}
