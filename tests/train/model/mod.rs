//! The decoder and the steps of a trainer, on the CPU and on devices.

mod arrangements;
mod device_run;
mod device_steps;
mod micro_batches;
mod peers;

use gradus_rft::train::RunConfig;

/// The demo in small: two blocks, grouped heads.
fn demo(settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    let small = [
        "model.hidden=32",
        "model.heads=4",
        "model.kv_heads=2",
        "model.head_dim=16",
        "task.digits=2",
        "sft.demos=8",
        "sft.batch=4",
        "quantize.blocksize=32",
        "lora.rank=4",
        "rl.prompts=2",
        "rl.slots=4",
        "eval.max_prompts=2",
    ];
    small.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}
