//! Every argument of the advantage, reduction and pair-loss ops wrong once: the error names the
//! argument, and the outputs keep what they held.

use crate::common::refused;
use crate::policy::arguments::*;
use gradus::ops::*;
use gradus::{Device, Result};

fn group(edit: impl FnOnce(&mut GroupAdvantage<'_, f64>)) -> Result<()> {
    let (mut advantage, mut groups) = (vec![HELD; 3], Vec::new());
    let mut args = GroupAdvantage {
        reward: view(&[1.0, 0.0, 2.0]),
        offsets: view(&[0, 2, 3]),
        length: None,
        settings: GroupSettings::default(),
        advantage: (&mut advantage).into(),
        groups: Some(&mut groups),
    };
    edit(&mut args);
    let result = group_advantage(&Device::Cpu, args);
    if result.is_err() {
        held(&[&advantage]);
        assert!(groups.is_empty());
    }
    result
}

#[test]
fn group_advantage_refuses() {
    group(|_| ()).unwrap();
    refused(group(|a| a.reward = matrix(&[1.0; 3], [1, 3])), "reward");
    refused(group(|a| a.reward = view(&[1.0, f64::INFINITY, 0.0])), "reward");
    refused(group(|a| a.reward = view(&[1.0, -1e200, 0.0])), "reward");
    refused(group(|a| a.offsets = view(&[])), "offsets");
    refused(group(|a| a.offsets = view(&[1, 3])), "offsets");
    refused(group(|a| a.offsets = view(&[0, 2, 1, 3])), "offsets");
    refused(group(|a| a.offsets = view(&[0, 2])), "offsets");
    refused(group(|a| a.offsets = view(&[0, i64::MAX, 3])), "offsets");
    refused(group(|a| a.length = Some(view(&[1, 1]))), "length");
    refused(group(|a| a.length = Some(view(&[1, -1, 1]))), "length");
    refused(group(|a| a.settings.baseline = GroupBaseline::LengthWeighted), "length");
    refused(group(|a| a.settings.eps = -1e-9), "settings.eps");
    refused(group(|a| a.settings.eps = f64::NAN), "settings.eps");
    refused(group(|a| a.settings.ddof = 2), "settings.ddof");
    refused(group(|a| a.advantage = output(4)), "advantage");
    let grouping = Grouping::by_id(&[1, 1, 0]);
    refused(grouping.gather(&[0; 2]).map(|_| ()), "values");
    refused(grouping.scatter(&[0; 4]).map(|_| ()), "grouped");
}
