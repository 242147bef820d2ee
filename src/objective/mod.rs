//! Named settings of the objectives: every framework's defaults as a preset. Thin: a preset lowers
//! to the settings of [`crate::ops::policy_loss()`] and its aggregation.

pub mod presets;
