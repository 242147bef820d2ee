//! What the papers say, by hand: for each recipe and each of its phases the settings that a run on a
//! model from disk has, the learning rate of its first step, and what it learns by. A recipe that says
//! something else fails.

mod first;
mod second;

use crate::objective::Advantage;

/// What a phase learns by.
#[derive(Clone, Copy)]
pub enum Learns {
    /// Nothing moves.
    Nothing,
    /// Cross-entropy on demonstrations or on a buffer.
    Texts,
    /// A token loss: its name, advantages, β of a KL in the loss and of one in the reward, entropy bonus.
    Tokens(&'static str, Advantage, (f64, f64), f64),
    /// An objective on whole completions with its β.
    Completions(&'static str, f64),
    /// Mutual information of completions and contexts.
    Contexts,
    /// The critic regresses on returns.
    Returns,
    /// The teacher's distributions, by a generalized JSD of this β.
    Teacher(f64),
    /// Those of a teacher that is guided by this γ, by the reverse KL.
    Guided(f64),
}

/// A phase of a recipe.
pub struct Phase {
    pub name: &'static str,
    pub learns: Learns,
    /// Learning rate of the first step.
    pub rate: f64,
    pub settings: &'static [(&'static str, &'static str)],
}

/// A recipe's phases, without `quantize`.
pub struct Paper {
    pub recipe: &'static str,
    pub phases: &'static [Phase],
}

/// (R − mean) / (σ + 1e-4).
const GROUP: Advantage = Advantage::Group(Some(1e-4));

/// Adapters take ten times 1e-6, and the first of ten steps of warm-up a tenth of that.
const RL_RATE: f64 = 1e-6;

/// QLoRA's rate, and the first of ten steps of warm-up.
const SFT_RATE: f64 = 2e-5;

/// Rounds have no warm-up.
const ROUND_RATE: f64 = 2e-4;

const fn phase(
    name: &'static str,
    learns: Learns,
    rate: f64,
    settings: &'static [(&'static str, &'static str)],
) -> Phase {
    Phase { name, learns, rate, settings }
}

/// The SFT of a round: everything that was stored, once, from a fresh order.
const fn round(settings: &'static [(&'static str, &'static str)]) -> Phase {
    phase("tune", Learns::Texts, ROUND_RATE, settings)
}

/// The SFT of one size of a learning curve.
const fn size(name: &'static str, settings: &'static [(&'static str, &'static str)]) -> Phase {
    phase(name, Learns::Texts, ROUND_RATE, settings)
}

/// ReMix with the share λ of its KL to the reference; the other KL is to the policy itself, and 0.
const fn remix(share: f64) -> Learns {
    Learns::Tokens("remix", GROUP, (0.04 * share, 0.0), 0.0)
}

/// GRPO by this name with β.
const fn grpo(name: &'static str, beta: f64) -> Learns {
    Learns::Tokens(name, GROUP, (beta, 0.0), 0.0)
}

/// All of them, in the order of the recipes.
pub fn papers() -> impl Iterator<Item = &'static Paper> {
    first::PAPERS.iter().chain(second::PAPERS)
}
