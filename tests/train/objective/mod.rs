//! Every name does what it says: what each preset, advantage and scale brings to the ops, spelled out;
//! and steps of the trainer beside an f64 oracle that knows the papers and nothing of the crate.

mod oracle;
mod phases;
mod scored;
mod sequences;
mod settings;
mod steps;
mod tokens;

pub use oracle::{Advantage, Compared, Sequence, Token, advantages, gradient};
pub use steps::{Marks, Objective};

use gradus::error::Result;
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::step::{Scoring, score_records};
use gradus_rft::train::{RunConfig, Trainer};

/// A model of one small block; all of it trains unless `settings` say otherwise.
fn config(settings: &[&str]) -> RunConfig {
    try_config(settings).unwrap()
}

fn try_config(settings: &[&str]) -> Result<RunConfig> {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=2",
        "model.head_dim=8",
        "model.ffn=32",
        "sft.demos=8",
        "sft.batch=4",
        "lora.rank=4",
        "quantize.blocksize=32",
        "rl.prompts=2",
        "rl.group=3",
        "rl.micro_batch=4",
        "rl.grad_clip=inf",
        "rl.warmup_steps=1",
        "eval.max_prompts=2",
        "eval.samples=1",
    ];
    small.iter().chain(settings).try_for_each(|s| config.apply_set(s))?;
    Ok(config)
}

fn trainer(settings: &[&str]) -> Trainer {
    Trainer::on(config(settings), gradus::Device::Cpu).unwrap()
}

/// Makes the policy's log-probs spread: a head eight times as large.
fn sharpen(trainer: &mut Trainer, factor: f32) {
    let head = trainer.model.params.iter().find(|p| p.name == "lm_head.weight").unwrap();
    let (name, shape) = (head.name.clone(), head.shape.clone());
    let values: Vec<f32> = head.values().unwrap().iter().map(|w| w * factor).collect();
    trainer.model.params.set(&name, &shape, &values).unwrap();
}

/// Two groups of three completions of one to five tokens, with log-probs of a sampler that is
/// `apart` times a tenth to a half from the policy, and rewards without ties.
fn records(trainer: &Trainer, apart: f32) -> Vec<Record> {
    let lengths = [2, 5, 3, 1, 4, 3];
    let rewards = [1.0, 0.0, 0.25, 0.5, 2.0, -1.0];
    let mut records = Vec::new();
    for (i, (&n, reward)) in lengths.iter().zip(rewards).enumerate() {
        let mut record =
            Record { group: (i / 3) as u32, finished: true, reward, ..Record::default() };
        record.push(&[1 + (i / 3) as i32, 12, 3], TokenClass::Prompt, &[]);
        let ids: Vec<i32> = (0..n).map(|t| ((7 * t + 5 * i + 2) % 14) as i32).collect();
        record.push(&ids, TokenClass::Gen, &[]);
        records.push(record);
    }
    let t = trainer.config.rl.temperature;
    let now = score_records(&trainer.model, &records, true, Scoring::at(t, 64)).unwrap();
    let mut k = 0;
    for (record, now) in records.iter_mut().zip(now) {
        for t in record.scored().collect::<Vec<_>>() {
            let offset = [-0.22, 0.26, -0.3, 0.1, -0.45, 0.5, 0.04][k % 7];
            record.sampler_logp[t] = now[t] + apart * offset;
            k += 1;
        }
    }
    records
}

pub fn value(metrics: &Metrics, key: &str) -> f64 {
    metrics.get(key.parse().unwrap()).unwrap_or_else(|| panic!("no {key} in {metrics:?}"))
}
