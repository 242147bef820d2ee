//! What to tell a person whose run learns nothing.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_comes_after_flat_steps_in_a_row_and_then_rarely() {
        let mut flat = FlatSteps::default();
        let told: Vec<u64> = (1..=50).filter(|_| flat.see(1.0, 0.0).is_some()).collect();
        assert_eq!(told, [5, 10, 20, 40]);
        assert!(flat.see(0.9, 0.1).is_none());
        let told: Vec<u64> = (1..=6).filter(|_| flat.see(1.0, 1.0).is_some()).collect();
        assert_eq!(told, [5], "a step with a spread begins a new count");
    }
}
