//! Named settings of the objectives: every framework's defaults as a preset. Thin: each preset
//! lowers to the settings of [`crate::ops::policy_loss`] and [`crate::ops::group_advantage`].
