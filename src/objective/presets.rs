use crate::ops::*;
#[derive(Clone, Debug)] pub struct Recipe { pub settings: PolicySettings, pub aggregation: Aggregation, pub advantage: GroupSettings }
pub fn sft() -> PolicySettings { PolicySettings { beta: 0.0, lo: 0.0, hi: 1e9 } }
pub fn recipe(rl: &crate::train::config::RlConfig) -> crate::Result<Recipe> { Ok(Recipe { settings: PolicySettings { beta: rl.beta, lo: 1.0-rl.clip_low, hi: 1.0+rl.clip_high }, aggregation: Aggregation::TokenMean, advantage: GroupSettings }) }
