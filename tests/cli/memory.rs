//! What a run on the CPU takes and what was planned for it; runs that are refused where a container or
//! a limit of the process leaves too little.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use super::runs::read_of;
use gradus_rft::io::system_memory::Room;
use gradus_rft::train::{MemoryPlan, RunConfig};

const MIB: u64 = 1 << 20;
/// A program that does nothing yet: code, threads, the standard library's own.
const PROGRAM: u64 = 24 * MIB;

/// A model of 30 million values that learns for two steps in each phase.
const SMALL: [&str; 19] = [
    "threads=2",
    "model.hidden=512",
    "model.heads=8",
    "model.kv_heads=8",
    "model.head_dim=64",
    "model.ffn=1536",
    "model.layers=4",
    "sft.demos=32",
    "sft.batch=32",
    "sft.epochs=2",
    "sft.warmup_steps=1",
    "rl.steps=2",
    "rl.prompts=4",
    "rl.group=8",
    "rl.micro_batch=8",
    "rl.slots=16",
    "eval.max_prompts=8",
    "eval.samples=1",
    "eval.every=100",
];

fn config(settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    SMALL.iter().chain(settings).for_each(|setting| config.apply_set(setting).unwrap());
    config
}

/// `gradus train` with these settings; `before` is called in the child.
fn train(
    out: &Path,
    settings: &[String],
    before: impl Fn() -> std::io::Result<()> + Send + Sync + 'static,
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gradus"));
    command.arg("train").arg("--out").arg(out);
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    // SAFETY: `before` makes system calls alone.
    unsafe { command.pre_exec(before) };
    command.output().unwrap()
}

fn owned(settings: &[&str]) -> Vec<String> {
    let own = settings.iter().map(|setting| setting.to_string());
    read_of(&SMALL, settings).into_iter().chain(own).collect()
}

#[test]
fn a_run_takes_what_was_planned_and_not_much_less() {
    let endless = Room { bytes: 1 << 44, limit: String::new() };
    for settings in [
        &[][..],
        &["phases=[\"sft\"]"],
        &["phases=[\"quantize\",\"collect\",\"value_fit\",\"rl\"]", "rl.advantage=gae"],
    ] {
        let out = tempfile::tempdir().unwrap();
        let plan = MemoryPlan::on_cpu::<f32>(&config(settings), 2, &endless).unwrap();
        let done = train(out.path(), &owned(settings), || Ok(()));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let summary = fs::read(out.path().join("latest/summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
        let held = summary["peak_memory"].as_u64().unwrap();
        println!("{settings:?}: {} MiB held; {plan}", held / MIB);
        assert!(held <= plan.total + PROGRAM, "{} MiB held; {plan}", held / MIB);
        assert!(3 * held >= plan.total, "{} MiB held; {plan}", held / MIB);
    }
}

/// The settings that an error names, behind its last semicolon.
fn advised(done: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&done.stderr);
    let advice = said.rsplit("; ").next().unwrap_or_default();
    let settings = advice.split_whitespace().filter(|word| word.contains('='));
    let settings: Vec<String> = settings.map(String::from).collect();
    assert!(settings.iter().any(|s| s.starts_with("rl.micro_batch=")), "{said}");
    settings
}

/// Too little: refused before anything is written. With the settings that the error names it runs.
fn refused_then_fits(
    word: &str,
    before: impl Fn() -> std::io::Result<()> + Send + Sync + Clone + 'static,
) {
    let out = tempfile::tempdir().unwrap();
    // Small weights and micro-batches so large that activations that are computed again are not enough.
    let mut settings = owned(&[
        "model.hidden=256",
        "model.head_dim=32",
        "model.ffn=768",
        "model.layers=2",
        "sft.epochs=1",
        "rl.steps=1",
        "rl.prompts=64",
        "rl.micro_batch=512",
        "rl.slots=512",
        "rl.max_new_tokens=24",
    ]);
    let done = train(out.path(), &settings, before.clone());
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("out of memory") && said.contains(word), "{said}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing was written");
    settings.extend(advised(&done));
    let done = train(out.path(), &settings, before);
    assert!(done.status.success(), "{settings:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_limit_of_the_process_refuses_the_run_with_settings_that_fit() {
    refused_then_fits("RLIMIT_DATA", || {
        let limit = libc::rlimit { rlim_cur: 300 << 20, rlim_max: 300 << 20 };
        // SAFETY: a limit of this process.
        match unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    });
}

/// A control group of 300 MiB, where this machine lets one be made.
struct Group(std::path::PathBuf);

impl Group {
    fn new() -> Option<Group> {
        let name = format!("gradus-test-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let group = Group(Path::new(root).join(&name));
            if fs::create_dir(&group.0).is_ok() && fs::write(group.0.join(limit), "300M").is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_of_300_mib_refuses_the_run_with_settings_that_fit() {
    let Some(group) = Group::new() else {
        println!("this machine lets no control group be made; the reader has tests of its own");
        return;
    };
    let procs = group.0.join("cgroup.procs").into_os_string().into_encoded_bytes();
    let procs = std::ffi::CString::new(procs).unwrap();
    refused_then_fits("of the control group", move || {
        // SAFETY: a path that ends in NUL, two bytes, a descriptor of our own.
        let written = unsafe {
            let file = libc::open(procs.as_ptr(), libc::O_WRONLY);
            let written = libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
            written
        };
        if written == 1 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    });
}
