//! Episodes: a policy that answers, is answered, and goes on.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use gradus::Device;
use gradus::device::KernelSet;
use gradus_rft::toy::{ToyOptions, toy};
use gradus_rft::train::env::{Environment, Reply, Start, Turn};
use gradus_rft::train::metrics::Metrics;
use gradus_rft::train::record::{Record, TokenClass};
use gradus_rft::train::{MemoryPlan, RunConfig, Trainer};

use super::objective::value;
use super::resumed::resumes_alike;
use crate::common::devices::{emulated, executors};
use crate::common::{bits, in_pool};

type Replies = Vec<Result<Reply, String>>;

/// Rows of a toy as a file in `folder`.
pub(crate) fn rows(folder: &Path, name: &str) -> String {
    let path = folder.join(format!("{name}.jsonl"));
    let options = ToyOptions { rows: 60, ..ToyOptions::default() };
    let rows = toy(name).unwrap().rows(options).unwrap();
    let rows: String = rows.map(|row| serde_json::Value::from(row).to_string() + "\n").collect();
    std::fs::write(&path, rows).unwrap();
    format!("data.path={}", path.display())
}

/// A tiny byte model on the rows of `data`, of which most answers end by themselves: any letter, digit or
/// mark does.
pub(crate) fn config(data: &str, settings: &[&str]) -> RunConfig {
    let mut config = RunConfig::default();
    let small = [
        "device=cpu",
        "phases=rl",
        "model.hidden=32",
        "model.layers=1",
        "model.heads=4",
        "model.kv_heads=2",
        "model.head_dim=16",
        "model.ffn=64",
        "rl.prompts=3",
        "rl.group=4",
        "rl.micro_batch=6",
        "rl.max_new_tokens=6",
        "rl.warmup_steps=0",
        "rl.learning_rate=0.01",
        "rl.steps=3",
        "eval.max_prompts=4",
        "eval.samples=1",
        data,
    ];
    for setting in small.iter().chain(settings) {
        config.apply_set(setting).unwrap_or_else(|e| panic!("{setting}: {e}"));
    }
    config.rl.stop = (' '..='~').map(String::from).collect();
    config
}

/// Says its number to the first answers of an episode, and gives a reward for low letters.
struct Talks {
    turns: usize,
}

impl Talks {
    fn reply(&self, turn: &Turn<'_>) -> Reply {
        let low = turn.answer().chars().filter(|c| ('0'..='O').contains(c)).count();
        let reward = low as f32 / 8.0 + (turn.start.seed % 4) as f32 / 64.0;
        match turn.answers.len() < self.turns {
            true => Reply {
                reward,
                ..Reply::says(format!("{}:{}", turn.answers.len(), turn.start.seed % 100))
            },
            false => Reply::done(reward),
        }
    }
}

impl Environment for Talks {
    fn step(&self, turns: &[Turn<'_>]) -> Replies {
        turns.iter().map(|turn| Ok(self.reply(turn))).collect()
    }
}

/// Has nothing to say, and leaves scores to rewards.
struct Silent;

impl Environment for Silent {
    fn scores(&self) -> bool {
        false
    }

    fn step(&self, turns: &[Turn<'_>]) -> Replies {
        vec![Ok(Reply::done(0.0)); turns.len()]
    }
}

/// All that two steps come to: what was sampled, metrics, weights.
pub(crate) struct Outcome {
    records: Vec<Record>,
    metrics: Vec<Metrics>,
    weights: Vec<u32>,
}

impl Outcome {
    pub(crate) fn of(mut trainer: Trainer) -> Outcome {
        let (mut records, mut metrics) = (Vec::new(), Vec::new());
        for step in 0..2 {
            let (_, batch, _) = trainer.collect(step).unwrap();
            metrics.push(trainer.rl_step(step, batch.clone()).unwrap());
            records.extend(batch);
        }
        let params = trainer.model.params.iter();
        let weights = params.flat_map(|p| bits(&p.values().unwrap())).collect();
        Outcome { records, metrics, weights }
    }

    /// Metrics bit by bit, but for what only episodes have.
    fn named(&self) -> Vec<(String, u64)> {
        let each = self.metrics.iter().flat_map(|metrics| metrics.named());
        let kept = each.filter(|(name, _)| *name != "episodes/turns");
        kept.map(|(name, value)| (name.to_string(), value.to_bits())).collect()
    }

    pub(crate) fn assert_is(&self, want: &Outcome, what: &str) {
        assert!(self.records == want.records, "{what}: {:?}", self.metrics);
        assert_eq!(self.named(), want.named(), "{what}");
        assert!(self.weights == want.weights, "{what}");
    }
}

#[test]
fn an_episode_of_one_turn_is_a_completion() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    let graded = |settings: &[&str]| {
        let mut config = config(&data, settings);
        config.reward.functions =
            ["0.5*format:[!-@]", "0.3*format:[A-_]"].map(String::from).to_vec();
        config
    };
    let loss = "rl.loss=dr_grpo";
    let plain = Outcome::of(Trainer::on(graded(&[loss]), Device::Cpu).unwrap());
    assert!(plain.metrics.iter().any(|metrics| value(metrics, "reward_std") > 0.0));
    for limit in ["env.max_turns=1", "env.max_tokens=6"] {
        let trainer = Trainer::on(graded(&[loss, "env.kind=own", limit]), Device::Cpu).unwrap();
        let one = Outcome::of(trainer.with_environment(Silent).unwrap());
        one.assert_is(&plain, limit);
        assert!(one.metrics.iter().all(|metrics| value(metrics, "episodes/turns") == 1.0));
    }
}

/// Episodes of three turns, whose rewards are the environment's.
fn talking(settings: &[&str], turns: usize, device: &Device) -> Trainer {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    let keys = [&["env.kind=own"], settings].concat();
    let trainer = Trainer::<f32>::on(config(&data, &keys), device.clone()).unwrap();
    trainer.with_environment(Talks { turns }).unwrap()
}

#[test]
fn any_number_of_episodes_at_once_gives_the_same_bits() {
    let want = Outcome::of(talking(&["rl.slots=64"], 3, &Device::Cpu));
    let whole = want.records.iter().filter(|record| record.answers() == 3).count();
    assert!(whole > 3, "{whole} episodes of three turns");
    assert!(want.metrics.iter().any(|metrics| value(metrics, "reward_std") > 0.0));
    for slots in ["rl.slots=1", "rl.slots=3"] {
        Outcome::of(talking(&[slots], 3, &Device::Cpu)).assert_is(&want, slots);
    }
    for threads in [1, 3] {
        let got = in_pool(threads, || Outcome::of(talking(&[], 3, &Device::Cpu)));
        got.assert_is(&want, &format!("{threads} threads"));
    }
}

/// Between answers stands what the environment said, and only answers are scored.
#[test]
fn first_ratios_are_exactly_one_over_what_is_said() {
    for executor in executors() {
        let step = |shared: &str| {
            let keys = [shared, "rl.advantage=one", "rl.loss=ce"];
            let mut trainer = talking(&keys, 3, &executor.device);
            let (_, records, scores) = trainer.collect(0).unwrap();
            assert_eq!(scores.failed, 0);
            let answers: Vec<usize> = records.iter().map(Record::answers).collect();
            assert!(answers.iter().filter(|&&n| n == 3).count() > 2, "{answers:?}");
            for record in &records {
                let scored = record.scored().all(|t| record.class[t] == TokenClass::Gen);
                assert!(scored && record.class.last() == Some(&TokenClass::Gen));
                let unscored = record.class.iter().zip(&record.sampler_logp);
                let unscored = unscored.filter(|(class, _)| **class == TokenClass::Prompt);
                assert!(unscored.into_iter().all(|(_, logp)| *logp == 0.0));
            }
            let sampled = records.clone();
            let metrics = trainer.rl_step(0, records).unwrap();
            assert_eq!(value(&metrics, "ratio_max_abs_dev"), 0.0, "{}", executor.name);
            (sampled, metrics)
        };
        let (ours, shared) = step("rl.shared_prompts=true");
        let (theirs, whole) = step("rl.shared_prompts=false");
        assert!(ours == theirs, "{}", executor.name);
        for key in ["loss", "entropy", "update/tokens"] {
            let (a, b) = (value(&shared, key), value(&whole, key));
            assert_eq!(a.to_bits(), b.to_bits(), "{} {key}", executor.name);
        }
        let computed = |metrics: &Metrics| value(metrics, "update/computed_tokens");
        assert!(computed(&shared) < computed(&whole), "{}", executor.name);
    }
}

#[test]
fn executors_play_within_the_limits() {
    for executor in executors() {
        for (limit, turns, tokens) in
            [("env.max_turns=2", 2, 24), ("env.max_tokens=9", 8, 9), ("env.max_tokens=1", 1, 1)]
        {
            let trainer = talking(&[limit], 20, &executor.device);
            let (sampled, records, _) = trainer.collect(0).unwrap();
            for (record, rollout) in records.iter().zip(sampled.rollouts.iter().flatten()) {
                assert!(record.answers() <= turns, "{} {limit}", executor.name);
                assert!(rollout.tokens.len() <= tokens, "{} {limit}", executor.name);
                assert!(!record.finished, "{} {limit}: nobody was done", executor.name);
            }
        }
    }
}

/// Fails some episodes in their second turn, and counts how often it is asked.
struct Fails {
    of: fn(&Turn<'_>) -> bool,
    asked: AtomicUsize,
}

impl Environment for Fails {
    fn step(&self, turns: &[Turn<'_>]) -> Replies {
        self.asked.fetch_add(turns.len(), Ordering::Relaxed);
        let reply = |turn: &Turn<'_>| match turn.answers.len() == 2 && (self.of)(turn) {
            true => Err("the world ended".to_string()),
            false => Ok(Talks { turns: 3 }.reply(turn)),
        };
        turns.iter().map(reply).collect()
    }
}

#[test]
fn a_failure_takes_its_episode_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    let collected = |of: fn(&Turn<'_>) -> bool| {
        let trainer = Trainer::<f32>::on(config(&data, &["env.kind=own"]), Device::Cpu).unwrap();
        let fails = Fails { of, asked: AtomicUsize::new(0) };
        trainer.with_environment(fails).unwrap().collect(0)
    };
    let (_, whole, _) = collected(|_| false).unwrap();
    let (_, some, scores) = collected(|turn| turn.episode % 3 == 1).unwrap();
    let failed: Vec<usize> = scores.failures.iter().map(|(i, _)| *i).collect();
    assert!(!failed.is_empty() && failed.iter().all(|i| i % 3 == 1), "{failed:?}");
    assert!(scores.failures.iter().all(|(_, reason)| reason == "the world ended"));
    for (i, (ours, theirs)) in some.iter().zip(&whole).enumerate() {
        match failed.contains(&i) {
            true => assert!(ours.reward.is_nan() && theirs.answers() >= ours.answers()),
            false => assert!(ours == theirs, "{i}"),
        }
    }
    // A step learns from the others.
    let mut trainer = talking(&[], 3, &Device::Cpu);
    let metrics = trainer.rl_step(0, some).unwrap();
    assert!(value(&metrics, "reward").is_finite() && value(&metrics, "loss").is_finite());
    let error = collected(|_| true).unwrap_err().to_string();
    assert!(error.contains("the world ended") && error.contains("calls failed"), "{error}");
}

/// Refuses to begin, panics, or gives too few replies.
struct Broken(u8);

impl Environment for Broken {
    fn begin(&self, starts: &[Start<'_>]) -> Vec<Result<(), String>> {
        match self.0 {
            0 => vec![Err("no world".to_string()); starts.len()],
            _ => vec![Ok(()); starts.len()],
        }
    }

    fn step(&self, _: &[Turn<'_>]) -> Replies {
        match self.0 {
            1 => Vec::new(),
            _ => panic!("a bug"),
        }
    }
}

#[test]
fn what_an_environment_does_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    for (broken, reason) in [
        (Broken(0), "no world"),
        (Broken(1), "0 replies to 12 episodes"),
        (Broken(2), "the environment panicked"),
    ] {
        let trainer = Trainer::<f32>::on(config(&data, &["env.kind=own"]), Device::Cpu).unwrap();
        let error = trainer.with_environment(broken).unwrap().collect(0).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("12 of 12 calls failed"), "{error}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let [calc, grid] = ["calc", "grid"].map(|name| rows(folder.path(), name));
    let built_in = "task.digits=2";
    for (data, settings, words) in [
        (
            &calc[..],
            &["env.kind=tools"][..],
            "`env.kind`: `tools` is not one of tool, grid, ask, zoom, rounds, own, cmd:COMMAND",
        ),
        (&calc, &["env.kind=tool"], "`reward.functions`: empty"),
        (&calc, &["env.kind=grid"], "env.kind: row field `start` is null"),
        (&grid, &["env.kind=ask"], "env.kind: row field `hidden` is null"),
        (&grid, &["env.kind=grid", "rl.overlong_buffer=2"], "`rl.overlong_buffer`: is about"),
        (&grid, &["env.kind=grid", "rl.loss=info_nce"], "`rl.loss`: `info_nce` compares contexts"),
        (
            &grid,
            &["env.kind=grid", "sft.source=buffer:a", "sft.template={{ prompt }}"],
            "`sft.template`: writes a completion",
        ),
        (built_in, &["env.kind=own"], "`env.kind`: nothing can be said in the vocabulary"),
        (&grid, &["env.max_turns=0"], "`env.max_turns`"),
    ] {
        let error = Trainer::<f32>::on(config(data, settings), Device::Cpu).err();
        let error = error.unwrap_or_else(|| panic!("{settings:?}")).to_string();
        assert!(error.contains(words), "{error}");
    }
    let own = config(&grid, &["env.kind=own"]);
    let error = Trainer::<f32>::on(own.clone(), Device::Cpu).unwrap().collect(0).unwrap_err();
    assert!(error.to_string().contains("Trainer::with_environment has given none"), "{error}");
    let silent = Trainer::<f32>::on(own, Device::Cpu).unwrap().with_environment(Silent);
    let error = silent.err().unwrap().to_string();
    assert!(error.contains("`reward.functions`: empty, and the environment"), "{error}");
    let other = Trainer::<f32>::on(config(&grid, &["env.kind=grid"]), Device::Cpu).unwrap();
    let error = other.with_environment(Talks { turns: 1 }).err().unwrap().to_string();
    assert!(error.contains("`env.kind`: `grid`, and an environment of one's own"), "{error}");
    // Keys of episodes where nobody plays any.
    let unread = |settings: &[&str], key: &str| {
        let set = [key.to_string()].into();
        config(&grid, settings).refuse_unread(&set).map_err(|error| error.to_string())
    };
    for key in ["env.max_turns", "env.max_tokens", "env.history"] {
        let error = unread(&[], key).unwrap_err();
        assert!(error.contains(key) && error.contains("with env.kind"), "{error}");
        unread(&["env.kind=grid"], key).unwrap();
    }
}

/// What the built-in environments are worth to a policy that knows nothing, and that they are played in
/// evaluations too.
#[test]
fn built_in_environments_play_their_toys() {
    let folder = tempfile::tempdir().unwrap();
    for (name, keys) in [
        ("calc", &["env.kind=tool", "reward.functions=numeric"][..]),
        ("grid", &["env.kind=grid"]),
        ("ask", &["env.kind=ask"]),
        ("zoom", &["env.kind=zoom"]),
    ] {
        let data = rows(folder.path(), name);
        let trainer = Trainer::<f32>::on(config(&data, keys), Device::Cpu).unwrap();
        let (sampled, records, scores) = trainer.collect(0).unwrap();
        assert_eq!((scores.failed, scores.abstained), (0, 0), "{name}");
        assert_eq!(sampled.played.len(), records.len());
        for (record, played) in records.iter().zip(&sampled.played) {
            let own = name == "calc" || record.reward == played.reward;
            assert!(own, "{name}: {} is not {}", record.reward, played.reward);
        }
        let most = records.iter().map(Record::answers).max();
        assert_eq!(most, sampled.played.iter().map(|played| played.turns).max(), "{name}");
        // Every walk of a policy that knows no move goes on.
        assert!(name != "grid" || most > Some(2), "{most:?}");
        let evaluation = trainer.evaluate().unwrap();
        assert!(evaluation.accuracy.is_some() && evaluation.failed == 0, "{name}: {evaluation:?}");
        let lines: Vec<&str> = evaluation.examples.iter().map(|l| l.completion.as_str()).collect();
        assert!(name != "grid" || lines.iter().any(|line| line.contains('>')), "{lines:?}");
    }
}

/// A run that is cut off inside goes on to the bits of the one that nobody stopped.
#[test]
fn a_run_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "grid");
    let keys = ["env.kind=grid", "env.max_turns=3", "checkpoint.every=1", "checkpoint.keep=100"];
    let (metrics, checkpoints) = resumes_alike(config(&data, &keys), folder.path());
    assert!(metrics.iter().any(|row| row["episodes/turns"].as_f64() > Some(1.0)), "{metrics:?}");
    assert!(checkpoints >= 3, "{checkpoints}");
}

/// The plan counts the longest episode, and a device that has no more than that is enough.
#[test]
fn the_memory_plan_counts_the_longest_episode() {
    let device = emulated(KernelSet::Sm80, 0);
    let Device::Gpu(gpu) = &device else { panic!("the emulator is a GPU") };
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "calc");
    let small = ["rl.prompts=2", "rl.group=2", "rl.micro_batch=4", "eval.max_prompts=2"];
    let plan = |limit: &str| {
        let keys = [&small[..], &["env.kind=own", limit]].concat();
        MemoryPlan::new::<f32>(&config(&data, &keys), gpu.info()).unwrap()
    };
    let (short, long) = (plan("env.max_tokens=8"), plan("env.max_tokens=40"));
    assert!(long.sampler > short.sampler && long.activations > short.activations);
    let mut trainer = talking(&[&small[..], &["env.max_tokens=40"]].concat(), 20, &device);
    let arena = trainer.model.allocator.arena().unwrap();
    arena.reserve(long.activations as usize).unwrap();
    trainer.evaluate().unwrap();
    let (_, records, _) = trainer.collect(0).unwrap();
    assert!(records.iter().any(|record| record.ids.len() > 30), "{}", records[0].ids.len());
    trainer.rl_step(0, records).unwrap();
    assert!(arena.peak() as u64 <= long.activations, "{}: {long}", arena.peak());
}

/// As [`Talks`] of three turns in Python, out of order; in some modes something happens to the worker of
/// every third episode in the second turn.
#[cfg(unix)]
const WORLD: &str = r#"
import json, os, sys, threading, time

mode, seeds, lock = sys.argv[1], {}, threading.Lock()

def reply(**kw):
    with lock:
        print(json.dumps(kw), flush=True)

def step(r):
    turn, number, seed = r["turn"], r["episode"] % 2**32, seeds[r["episode"]]
    if turn == 2 and number == 4:
        if mode == "dies":
            print("no more worlds", file=sys.stderr, flush=True)
            os._exit(3)
        if mode == "mute":
            return
        if mode == "garbage":
            with lock:
                print("hello", flush=True)
        if mode == "refuses":
            return reply(id=r["id"], error="not this one")
        if mode == "nan":
            return reply(id=r["id"], reward=float("nan"))
    time.sleep(0.01 * (number * 7 % 5))
    reward = sum("0" <= c <= "O" for c in r["answer"]) / 8 + seed % 4 / 64
    says = {} if turn >= 3 else {"says": f"{turn}:{seed % 100}"}
    reply(id=r["id"], reward=reward, **says)

for line in sys.stdin:
    r = json.loads(line)
    if r["op"] == "begin":
        seeds[r["episode"]] = r["seed"]
        reply(id=r["id"])
    elif r["op"] == "step":
        threading.Thread(target=step, args=(r,)).start()
    elif r["op"] == "end":
        del seeds[r["episode"]]
"#;

/// A program as an environment gives the bits of the same one in Rust, and what happens to a worker happens
/// to its episodes alone.
#[cfg(unix)]
#[test]
fn programs_are_environments() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("world.py");
    std::fs::write(&script, WORLD).unwrap();
    let data = rows(folder.path(), "calc");
    let keys = ["reward.workers=3", "reward.timeout=5", "reward.startup=60"];
    let trainer = |mode: &str| {
        let kind = format!("env.kind=cmd:python3 {} {mode}", script.display());
        let keys = [&keys[..], &[kind.as_str()]].concat();
        Trainer::<f32>::on(config(&data, &keys), Device::Cpu).unwrap()
    };
    let want = Outcome::of(talking(&[], 3, &Device::Cpu));
    Outcome::of(trainer("plain")).assert_is(&want, "a program");
    assert!(want.records[4].answers() > 1, "the episode has a second turn");
    for (mode, all, reason) in [
        ("dies", true, "no more worlds"),
        ("mute", true, "no answer within 5 s"),
        ("garbage", true, "`hello`: not a JSON object"),
        ("refuses", false, "not this one"),
        ("nan", false, "`reward` is"),
    ] {
        let trainer = trainer(mode);
        let (_, records, scores) = trainer.collect(0).unwrap();
        let failed: Vec<usize> = scores.failures.iter().map(|(i, _)| *i).collect();
        assert!(failed.contains(&4) && failed.iter().all(|i| i % 3 == 1), "{mode}: {failed:?}");
        assert!(all || failed == [4], "{mode}: {failed:?}");
        assert!(
            scores.failures.iter().all(|(_, why)| why.contains(reason)),
            "{:?}",
            scores.failures
        );
        for i in (0..12).filter(|i| !failed.contains(i)) {
            assert!(records[i] == want.records[i], "{mode}: {i}");
        }
        // The next episodes begin in a fresh worker.
        let (_, next, scores) = trainer.collect(1).unwrap();
        let failed: Vec<usize> = scores.failures.iter().map(|(i, _)| *i).collect();
        assert!(next.iter().any(|record| record.answers() == 3), "{mode}: {failed:?}");
        assert!(failed.len() < 12, "{mode}: {failed:?}");
    }
    for (kind, words) in [
        ("cmd:no-such-program-here x", "there is no such program"),
        ("cmd:", "names no program"),
        ("cmd:python3 'a", "missing closing quote"),
    ] {
        let mut config = config(&data, &[]);
        config.env.kind = kind.into();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("`env.kind`") && error.contains(words), "{error}");
    }
}
