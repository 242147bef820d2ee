//! What to tell a person whose run learns nothing, or not what was meant.

use crate::reward::spec::partial;
use crate::train::config::PhasePlan;
use crate::train::phase::Phase;
use crate::train::update::recipe::Recipe;
use gradus::ops::GroupScale;
use gradus::ops::presets::Estimator;

/// Watches for RL steps in which all samples of every prompt had the same reward. A group baseline
/// leaves such a step without a gradient.
#[derive(Default)]
pub(crate) struct FlatSteps {
    in_a_row: u64,
}

/// Flat steps in a row after which a person is told.
const TELL: u64 = 5;

impl FlatSteps {
    /// Takes the share of groups without a spread and the mean reward of a step. Gives advice when
    /// it is time for it: at the fifth flat step in a row, then each time the number has doubled.
    pub fn see(&mut self, flat_share: f64, reward: f64) -> Option<String> {
        self.in_a_row = if flat_share >= 1.0 { self.in_a_row + 1 } else { 0 };
        let n = self.in_a_row;
        if !(n.is_multiple_of(TELL) && (n / TELL).is_power_of_two()) {
            return None;
        }
        Some(format!(
            "  {n} steps in a row all samples of each prompt had the same reward (mean {reward:.3}): \
             nothing could be learned.\n  \
             Look at some samples (gradus sample). If all are wrong: easier prompts, sft first, a \
             reward with partial scores, or a larger rl.max_new_tokens if answers are cut. If all \
             are right: harder prompts. A larger rl.group makes a difference more likely."
        ))
    }
}

/// What is to be said where a wrong answer is paid for and advantages are divided by a group's standard
/// deviation: how little it is paid does not matter then.
pub(super) fn partial_reward(plan: &PhasePlan) -> Option<String> {
    let config = &plan.config;
    let spec = partial(&config.reward.functions)?;
    let Ok(Recipe { estimator: Estimator::Group(group), .. }) = Recipe::of(config, 1.0) else {
        return None;
    };
    let divided = group.scale == GroupScale::GroupStd && plan.kind == Phase::Rl;
    divided.then(|| {
        format!(
            "    reward {spec} pays for wrong answers, and advantages are divided by the group's \
             standard deviation: where no answer of a prompt is right, a readable one earns as much \
             as a right one does elsewhere; rl.scale = none keeps the difference"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config::RunConfig;

    #[test]
    fn advice_comes_after_flat_steps_in_a_row_and_then_rarely() {
        let mut flat = FlatSteps::default();
        let told: Vec<u64> = (1..=50).filter(|_| flat.see(1.0, 0.0).is_some()).collect();
        assert_eq!(told, [5, 10, 20, 40]);
        assert!(flat.see(0.9, 0.1).is_none());
        let told: Vec<u64> = (1..=6).filter(|_| flat.see(1.0, 1.0).is_some()).collect();
        assert_eq!(told, [5], "a step with a spread begins a new count");
    }

    #[test]
    fn small_pay_for_wrong_answers_is_noted_where_its_size_is_lost() {
        let noted = |reward: &str, scale: &str| {
            let mut config = RunConfig::default();
            config.reward.functions = vec!["format".into(), reward.into()];
            config.apply_set(&format!("rl.scale={scale}")).unwrap();
            config.plan().unwrap().iter().find_map(partial_reward)
        };
        for reward in ["numeric:0,0.1", "0.5*numeric:1%, 0.1", "countdown:all,0.1"] {
            let note = noted(reward, "group").unwrap();
            assert!(note.contains(reward), "{note}");
            assert_eq!(noted(reward, "none"), None);
        }
        for reward in ["numeric", "numeric:0.5", "numeric:0,0", "countdown:all", "exact"] {
            assert_eq!(noted(reward, "group"), None, "{reward}");
        }
    }
}
