//! Advantages and returns against verl 0.9.1, computed by verl in f64.

use crate::common::devices::executors;
use crate::common::{Golden, golden_folder, max_rel};
use gradus::ops::{
    DiscountedReturn, EpsForm, Gae, GroupAdvantage, GroupBaseline, GroupScale, GroupSettings,
    Grouping, MaskedReturn, OnSingle, Whiten, WhitenSettings, discounted_return, gae,
    group_advantage, whiten,
};
use gradus::{Device, View};

/// Largest relative error; the figures are O(1) and both sides compute in f64.
const TOLERANCE: f64 = 1e-12;

/// A padded `[rows, cols]` file as packed sequences of full width, so that verl's padding becomes
/// masked tokens.
struct Batch {
    device: Device,
    file: Golden,
    mask: Vec<u8>,
    cols: usize,
    cu_seqlens: Vec<i64>,
}

impl Batch {
    /// The file once for every executor.
    fn open(name: &str) -> Vec<Batch> {
        executors().into_iter().map(|executor| Batch::open_on(executor.device, name)).collect()
    }

    fn open_on(device: Device, name: &str) -> Batch {
        let path = golden_folder().join(format!("verl_adv/{name}.safetensors"));
        let file = Golden::open(&path);
        let (rows, cols) = (file.shape("mask")[0], file.shape("mask")[1]);
        let mask = file.f64("mask").iter().map(|&m| m as u8).collect();
        let cu_seqlens = (0..=rows).map(|i| (i * cols) as i64).collect();
        Batch { device, file, mask, cols, cu_seqlens }
    }

    fn mask(&self) -> Option<View<'_, u8>> {
        Some((&self.mask).into())
    }

    /// Per-sequence advantages of the file's rewards and groups.
    fn group(&self, settings: GroupSettings) -> Vec<f64> {
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
    fn on_tokens(&self, value: &[f64]) -> Vec<f64> {
        let masked = |(t, &m): (usize, &u8)| if m != 0 { value[t / self.cols] } else { 0.0 };
        self.mask.iter().enumerate().map(masked).collect()
    }

    fn returns(&self, gamma: f64, masked: MaskedReturn, baseline: Option<&Vec<f64>>) -> Vec<f64> {
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

    fn whiten(&self, x: &[f64]) -> Vec<f64> {
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
    fn check(&self, tensor: &str, got: &[f64]) {
        let pick = |values: &[f64]| -> Vec<f64> {
            (0..values.len()).filter(|&t| self.mask[t] != 0).map(|t| values[t]).collect()
        };
        let error = max_rel(&pick(got), &pick(&self.file.f64(tensor)), 1e-3);
        assert!(error < TOLERANCE, "{} {tensor}: {error:e}", self.file.name);
        let outside = (0..got.len()).filter(|&t| self.mask[t] == 0);
        assert!(outside.into_iter().all(|t| got[t] == 0.0), "{} {tensor}", self.file.name);
    }
}

const VERL: GroupSettings = GroupSettings {
    baseline: GroupBaseline::Mean,
    scale: GroupScale::GroupStd,
    ddof: 1,
    eps: 1e-6,
    eps_form: EpsForm::AddToStd,
    on_single: OnSingle::Raw,
};

#[test]
fn group_advantages_match_verl() {
    let unscaled = GroupSettings { scale: GroupScale::None, ..VERL };
    let cases = [
        ("grpo", VERL),
        ("grpo_nostd", unscaled),
        ("rloo", GroupSettings { baseline: GroupBaseline::LeaveOneOut, ..unscaled }),
        ("opo", GroupSettings { baseline: GroupBaseline::LengthWeighted, ..unscaled }),
        ("gpg", GroupSettings { scale: GroupScale::NonzeroShare, ..unscaled }),
        ("grpo_passk", GroupSettings { baseline: GroupBaseline::Max2, ..VERL }),
    ];
    for (name, settings) in cases {
        for batch in Batch::open(name) {
            let advantage = batch.group(settings);
            assert!(advantage.iter().any(|a| a.abs() > 0.01), "{name}: nothing to compare");
            let tokens = batch.on_tokens(&advantage);
            batch.check("advantage", &tokens);
            batch.check("returns", &tokens);
        }
    }
}

#[test]
fn reinforce_plus_plus_matches_verl() {
    for batch in Batch::open("reinforce_plus_plus") {
        let gamma = batch.file.number("gamma").unwrap();
        let returns = batch.returns(gamma, MaskedReturn::Reset, None);
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&returns));
    }
}

#[test]
fn reinforce_plus_plus_baseline_matches_verl() {
    for batch in Batch::open("reinforce_plus_plus_baseline") {
        let centred = batch.group(GroupSettings { scale: GroupScale::None, ..VERL });
        let whitened = batch.whiten(&batch.on_tokens(&centred));
        batch.check("advantage", &whitened);
        batch.check("returns", &whitened);
    }
}

#[test]
fn remax_matches_verl() {
    for batch in Batch::open("remax") {
        let baseline = batch.file.f64("baseline");
        batch.check("returns", &batch.returns(1.0, MaskedReturn::Skip, None));
        batch.check("advantage", &batch.returns(1.0, MaskedReturn::Skip, Some(&baseline)));
    }
}

#[test]
fn gae_matches_verl() {
    for batch in Batch::open("gae") {
        let (reward, value) = (batch.file.f64("token_reward"), batch.file.f64("value"));
        let (mut advantage, mut returns) =
            (vec![f64::NAN; reward.len()], vec![f64::NAN; reward.len()]);
        let args = Gae {
            reward: (&reward).into(),
            value: (&value).into(),
            mask: batch.mask(),
            cu_seqlens: (&batch.cu_seqlens).into(),
            bootstrap: None,
            gamma: batch.file.number("gamma").unwrap(),
            lambda: batch.file.number("lam").unwrap(),
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(&batch.device, args).unwrap();
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&advantage));
    }
}

/// Every file of the folder is used by a test above.
#[test]
fn every_file_is_covered() {
    let covered = [
        "gae",
        "gpg",
        "grpo",
        "grpo_nostd",
        "grpo_passk",
        "opo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "remax",
        "rloo",
    ];
    let names: Vec<String> = Golden::family("verl_adv").into_iter().map(|file| file.name).collect();
    assert_eq!(names, covered);
}

/// verl gives a group of one its raw reward, which then outweighs every normalised advantage; the
/// default here gives it 0 and raises the flag. `OnSingle::Raw` is verl's formula: mean 0, std 1.
#[test]
fn groups_of_one_are_zero_unless_asked() {
    let run = |settings: GroupSettings| {
        let (reward, offsets) = (vec![5.0, 1.0, 3.0], vec![0i64, 1, 3]);
        let (mut advantage, mut groups) = (vec![f64::NAN; 3], Vec::new());
        let args = GroupAdvantage {
            reward: (&reward).into(),
            offsets: (&offsets).into(),
            length: None,
            settings,
            advantage: (&mut advantage).into(),
            groups: Some(&mut groups),
        };
        group_advantage(&Device::Cpu, args).unwrap();
        assert_eq!([groups[0].degenerate, groups[1].degenerate], [true, false]);
        advantage[0]
    };
    for baseline in [GroupBaseline::Mean, GroupBaseline::LeaveOneOut] {
        for scale in [GroupScale::None, GroupScale::GroupStd] {
            assert_eq!(run(GroupSettings { baseline, scale, ..GroupSettings::default() }), 0.0);
        }
    }
    assert_eq!(run(VERL), 5.0 / (1.0 + 1e-6));
    assert_eq!(run(GroupSettings { scale: GroupScale::None, ..VERL }), 5.0);
}
