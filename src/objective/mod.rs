//! Objectives.
pub mod presets;
