//! Whole steps of the demo's model: a batch of rollouts, an update.
//!
//! Flops are those of the products, 2 a weight and token forward and 2 more for the input's
//! gradient; bytes are the weights as stored, once for every pass over them.

use crate::train::rollout::{Hooks, RolloutKey, Sampling, rollout_with};
use crate::train::update::optimizer::Update;
use crate::train::update::record::{Record, TokenClass};
use crate::train::{RunConfig, Trainer};
use gradus::device::Device;
use gradus::error::Result;
use gradus::ops::Advantage;
use gradus::ops::presets;
use gradus::rng::Purpose;
use gradus::view::View;

use super::case::{Case, Work};

/// Prompts, samples of each, tokens of a prompt and of a completion.
const PROMPTS: usize = 64;
const GROUP: usize = 8;
const PROMPT: usize = 6;
const COMPLETION: usize = 8;

/// Lengths of the prompts that samples share, or do not.
const LONGER: [usize; 4] = [16, 40, 256, 2_000];

pub fn cases() -> Vec<Case> {
    // A set of operands would be a trainer.
    let groups = LONGER.into_iter().flat_map(|prompt| {
        [false, true].map(|shared| update(Batch { prompts: 2, prompt, completion: 16, shared }))
    });
    let demo = Batch { prompts: PROMPTS, prompt: PROMPT, completion: COMPLETION, shared: true };
    let updates = [update(demo)].into_iter().chain(groups);
    [rollouts()].into_iter().chain(updates).map(Case::with_one_set).collect()
}

/// What an update learns from.
#[derive(Clone, Copy)]
struct Batch {
    prompts: usize,
    /// Tokens of a prompt and of a completion.
    prompt: usize,
    completion: usize,
    /// Whether a prompt is computed once for its samples.
    shared: bool,
}

/// Weights of the blocks' products and of the head, and their bytes after quantization.
fn weights() -> [usize; 2] {
    let m = RunConfig::default().model;
    let (q, kv) = (m.heads * m.head_dim, m.kv_heads * m.head_dim);
    let block = m.hidden * (2 * q + 2 * kv + 3 * m.ffn);
    let blocks = m.layers * block;
    [blocks, blocks / 2 + blocks / 64]
}

/// The demo's trainer, quantized, with adapters.
fn trainer(device: &Device, longest: usize) -> Result<Trainer> {
    let mut config = RunConfig::default();
    config.rl.max_new_tokens = longest;
    let mut trainer = Trainer::on(config, device.clone())?;
    trainer.quantize()?;
    Ok(trainer)
}

fn ids(count: usize, of: usize) -> Vec<i32> {
    (0..count).map(|i| ((i * 7 + of * 3) % 10) as i32).collect()
}

/// No sequence ends before its last token.
fn rollouts() -> Case {
    let [weights, bytes] = weights();
    let tokens = PROMPTS * PROMPT + PROMPTS * GROUP * (COMPLETION - 1);
    let shape = format!("{PROMPTS} x {GROUP} samples of {COMPLETION} tokens");
    let costs = [bytes * COMPLETION, 2 * weights * tokens];
    Case::new::<f32>(["train", "rollout_step"], shape, costs, Work::F32, |device| {
        let trainer = trainer(device, COMPLETION)?;
        let prompts: Vec<Vec<i32>> = (0..PROMPTS).map(|p| ids(PROMPT, p)).collect();
        let sampling = Sampling { stops: [].into(), ..trainer.sampling() };
        let (mut sampler, mut step) = (None, 0);
        Ok(Box::new(move |_| {
            step += 1;
            let key = RolloutKey { seed: 0, purpose: Purpose::User, step };
            let model = &trainer.model;
            rollout_with(&mut sampler, model, &prompts, GROUP, &sampling, key, Hooks::default())
                .map(|_| ())
        }))
    })
}

/// One GRPO update, in micro-batches of whole groups.
fn update(batch: Batch) -> Case {
    let Batch { prompts, prompt, completion, shared } = batch;
    let [weights, bytes] = weights();
    // The last token of a sequence is not read.
    let own = GROUP * (completion - 1);
    let tokens = prompts * (prompt * if shared { 1 } else { GROUP } + own);
    let how = if shared { "shared" } else { "whole" };
    let shape = format!("{prompts} x {GROUP} of {completion} tokens, prompts of {prompt}, {how}");
    let costs = [2 * bytes, 4 * weights * tokens];
    Case::new::<f32>(["train", "update_step"], shape, costs, Work::F32, move |device| {
        let mut trainer = trainer(device, prompt + completion)?;
        trainer.config.rl.shared_prompts = shared;
        let records: Vec<Record> = (0..prompts * GROUP).map(|i| record(batch, i)).collect();
        let advantage: Vec<f32> = (0..records.len()).map(|i| (i % 2) as f32 - 0.5).collect();
        let weight = vec![1.0 / records.len() as f32; records.len()];
        let settings = presets::by_name("grpo", completion as f64)?.settings;
        let update = Update { learning_rate: 1e-6, ..trainer.rl_update(0) };
        Ok(Box::new(move |_| {
            let objective = trainer.rl_objective(&settings);
            let advantage = Advantage::PerSequence(View::from(&advantage));
            let backward = trainer.forward_backward(&records, advantage, &weight, objective)?;
            trainer.optim_step(&backward, update).map(|_| ())
        }))
    })
}

/// Sample `index`; no two of a prompt begin alike.
fn record(batch: Batch, index: usize) -> Record {
    let mut record = Record::default();
    record.push(&ids(batch.prompt, index / GROUP), TokenClass::Prompt, &[]);
    let completion = ids(batch.completion, index % GROUP);
    record.push(&completion, TokenClass::Gen, &vec![-2.0; completion.len()]);
    record
}
