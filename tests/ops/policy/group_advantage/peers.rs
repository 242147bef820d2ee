//! Advantages and returns against verl 0.9.1, computed by verl in f64.

use crate::common::Golden;
use crate::policy::verl::*;
use gradus::Device;
use gradus::ops::{
    EpsForm, GroupAdvantage, GroupBaseline, GroupScale, GroupSettings, MaskedReturn, OnSingle,
    group_advantage,
};

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
fn reinforce_plus_plus_baseline_matches_verl() {
    for batch in Batch::open("reinforce_plus_plus_baseline") {
        let centered = batch.group(GroupSettings { scale: GroupScale::None, ..VERL });
        let whitened = batch.whiten(&batch.on_tokens(&centered));
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

/// verl gives a group of one its raw reward, which then outweighs every normalized advantage; the
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
