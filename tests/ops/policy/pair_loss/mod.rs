//! Losses of pairs and of groups.

mod bandit;
mod dtypes;
mod groups;
mod nan;
mod preference;
mod refusals;
