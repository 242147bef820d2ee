//! Commands as rewards, and all the ways in which they fail.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gradus::Error;
use gradus_rft::reward::command::{CommandOptions, CommandReward};
use gradus_rft::reward::{Outcome, Reward, RewardInput, RewardOutcome, no_fields, score};

/// A worker that does what the completion asks for, and otherwise scores its length.
const WORKER: &str = r#"
import json, os, sys, time

def reply(**kw):
    print(json.dumps(kw), flush=True)

if sys.argv[1:] == ["mute"]:
    print("loading \x1b[31mfor ever\nand ever", file=sys.stderr, flush=True)
    time.sleep(600)
for line in sys.stdin:
    sample = json.loads(line)
    i, text = sample["id"], sample["completion"]
    if text == "hang" or text == "mute":
        time.sleep(600)
    elif text == "exit":
        print("traceback: no such judge", file=sys.stderr)
        sys.exit(3)
    elif text.startswith("once "):
        if not os.path.exists(text[5:]):
            open(text[5:], "w").close()
            os.abort()
        reply(id=i, score=1)
    elif text == "garbage":
        print("hello", flush=True)
    elif text == "twice":
        reply(id=i, score=1)
        reply(id=i, score=2)
    elif text == "other":
        reply(id=i + 1000, score=1)
    elif text == "pid":
        reply(id=i, score=os.getpid())
    elif text == "nan":
        reply(id=i, score=float("nan"))
    elif text == "long":
        print("x" * 5000, flush=True)
    elif text == "flood":
        while True:
            print("y" * 100)
    elif text == "close":
        os.close(1)
        time.sleep(600)
    elif text.startswith("last "):
        with open(text[5:], "w") as file:
            file.write(str(os.getpid()))
        reply(id=i, score=1)
        sys.exit(0)
    elif text == "unplug":
        os.close(0)
        reply(id=i, score=1)
        time.sleep(600)
    elif text == "error":
        reply(id=i, error="cannot judge")
    elif text == "abstain":
        reply(id=i, score=None)
    elif text.startswith("pids "):
        import subprocess
        child = subprocess.Popen(["sleep", "600"])
        with open(text[5:], "w") as file:
            file.write(f"{os.getpid()} {child.pid}")
        reply(id=i, score=1)
    elif text.startswith("deaf "):
        reply(id=i, score=0)
        time.sleep(600)
    else:
        if text == "slow":
            time.sleep(0.05)
        reply(id=i, score=len(text))
"#;

/// The worker's file, in a folder that goes with the test.
struct Worker {
    folder: tempfile::TempDir,
}

impl Worker {
    fn new() -> Worker {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("worker.py"), WORKER).unwrap();
        Worker { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn reward(&self, options: CommandOptions) -> CommandReward {
        self.reward_with(&[], options)
    }

    fn reward_with(&self, arguments: &[&str], options: CommandOptions) -> CommandReward {
        let script = self.path("worker.py").to_str().unwrap().to_string();
        let mut argv = vec![python(), script];
        argv.extend(arguments.iter().map(|argument| argument.to_string()));
        CommandReward::new(argv, options).unwrap()
    }
}

/// The interpreter itself, where `python3` is a script that looks for one.
fn python() -> String {
    static PATH: OnceLock<String> = OnceLock::new();
    let find = || {
        let print = ["-c", "import sys; print(sys.executable)"];
        let output = std::process::Command::new("python3").args(print).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    };
    PATH.get_or_init(find).clone()
}

fn quick() -> CommandOptions {
    CommandOptions {
        workers: 1,
        timeout: Duration::from_secs(10),
        startup: Duration::from_secs(20),
        retries: 0,
        backoff: Duration::from_millis(5),
        max_line: 1000,
    }
}

/// For workers that never answer. Long enough that on a busy machine the others do.
fn hasty() -> CommandOptions {
    CommandOptions { timeout: Duration::from_secs(2), ..quick() }
}

fn ask(reward: &CommandReward, completions: &[&str]) -> Vec<Outcome> {
    let input =
        |&completion| RewardInput { prompt: "p", completion, finished: true, fields: no_fields() };
    reward.score(&completions.iter().map(input).collect::<Vec<_>>())
}

fn one(value: f32) -> Outcome {
    Ok(RewardOutcome::Score(value))
}

/// `text` in the middle of good samples: it fails with `words`, and they do not.
fn fails_alone(text: &str, words: &[&str]) {
    let worker = Worker::new();
    let outcomes = ask(&worker.reward(hasty()), &["a", text, "ab", "abc"]);
    let error = outcomes[1].clone().unwrap_err();
    assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    assert_eq!([&outcomes[0], &outcomes[2], &outcomes[3]], [&one(1.0), &one(2.0), &one(3.0)]);
}

#[test]
fn a_worker_that_ends_is_named_with_its_last_words() {
    fails_alone("exit", &["exit status: 3", "traceback: no such judge"]);
}

#[test]
fn lines_that_are_no_replies() {
    fails_alone("garbage", &["`hello`", "not a JSON object"]);
    fails_alone("long", &["more than 1000 bytes"]);
    fails_alone("other", &["an answer to request 1001, expected 1"]);
}

#[test]
fn silence_floods_and_closed_streams_end() {
    fails_alone("hang", &["no answer within 2 s"]);
    fails_alone("flood", &["not a JSON object"]);
    fails_alone("close", &["before it answered"]);
}

#[test]
fn a_second_reply_is_never_taken_for_the_next_samples() {
    let worker = Worker::new();
    let outcomes = ask(&worker.reward(quick()), &["twice", "ab", "abc"]);
    assert_eq!((&outcomes[0], &outcomes[2]), (&one(1.0), &one(3.0)));
    let error = outcomes[1].clone().unwrap_err();
    assert!(error.contains("an answer to request 0, expected 1"), "{error}");
    let patient = CommandOptions { retries: 1, ..quick() };
    let outcomes = ask(&worker.reward(patient), &["twice", "ab", "abc"]);
    assert_eq!(outcomes, [one(1.0), one(2.0), one(3.0)]);
}

#[test]
fn what_the_command_says_of_a_sample_costs_no_worker() {
    let worker = Worker::new();
    let outcomes = ask(&worker.reward(quick()), &["pid", "error", "abstain", "nan", "a", "pid"]);
    assert_eq!(outcomes[1..3], [Err("cannot judge".into()), Ok(RewardOutcome::Abstain)]);
    let error = outcomes[3].clone().unwrap_err();
    assert_eq!(error, "score NaN, expected a finite number");
    assert_eq!((&outcomes[4], &outcomes[5]), (&one(1.0), &outcomes[0]), "the same process");
}

#[test]
#[cfg(target_os = "linux")]
fn a_worker_may_end_between_samples() {
    let worker = Worker::new();
    let (reward, pid) = (worker.reward(quick()), worker.path("pid"));
    for _ in 0..3 {
        assert_eq!(ask(&reward, &[&format!("last {}", pid.display())]), [one(1.0)]);
        // Until its end is seen, it is a worker that does not answer.
        await_end(&fs::read_to_string(&pid).unwrap());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The action of a signal is the whole process's: this executable again, where SIGPIPE has its default action.
#[test]
fn writing_to_a_closed_input_is_no_signal() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "reward::command::writes_where_the_signal_ends_the_process",
    ]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{:?}: {text}", output.status);
}

#[test]
#[ignore = "run by writing_to_a_closed_input_is_no_signal"]
fn writes_where_the_signal_ends_the_process() {
    // SAFETY: the default action has no handler; every write of the library masks the signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let worker = Worker::new();
    let outcomes = ask(&worker.reward(hasty()), &["unplug", "a", "ab"]);
    assert!(outcomes[0].is_ok() && outcomes[1].is_err(), "{outcomes:?}");
    assert_eq!(outcomes[2], one(2.0));
}

#[test]
fn a_sample_is_asked_again() {
    let worker = Worker::new();
    let text = format!("once {}", worker.path("marker").display());
    let patient = CommandOptions { retries: 1, ..quick() };
    assert_eq!(ask(&worker.reward(patient), &[&text]), [one(1.0)]);
    fs::remove_file(worker.path("marker")).unwrap();
    let error = ask(&worker.reward(quick()), &[&text])[0].clone().unwrap_err();
    assert!(error.contains("signal"), "{error}");
}

#[test]
fn outcomes_do_not_depend_on_the_number_of_workers() {
    let worker = Worker::new();
    let texts: Vec<String> = (0..60)
        .map(|i| match i % 7 {
            0 => "error".into(),
            1 => "slow".into(),
            2 => "abstain".into(),
            _ => "x".repeat(i),
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let with = |workers| ask(&worker.reward(CommandOptions { workers, ..quick() }), &texts);
    let alone = with(1);
    assert_eq!(alone[59], one(59.0));
    assert_eq!((&with(3), &with(100)), (&alone, &alone));
}

/// Neither the worker nor what it started is left, not even as a zombie.
fn assert_gone(pids: &Path) {
    // The grandchild is not ours to reap: whoever adopted it may take a moment.
    fs::read_to_string(pids).unwrap().split(' ').for_each(await_end);
    let worker = fs::read_to_string(pids).unwrap();
    assert_eq!(state(worker.split(' ').next().unwrap()), None, "the worker is not reaped");
}

fn await_end(pid: &str) {
    let begun = Instant::now();
    while !matches!(state(pid), None | Some('Z')) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{pid} lives");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_when_the_reward_is_dropped_or_a_worker_hangs() {
    let worker = Worker::new();
    let pids = worker.path("pids");
    let text = format!("pids {}", pids.display());
    let reward = worker.reward(quick());
    assert_eq!(ask(&reward, &[&text]), [one(1.0)]);
    drop(reward);
    assert_gone(&pids);
    let reward = worker.reward(hasty());
    assert!(ask(&reward, &[&text, "hang"])[1].is_err());
    assert_gone(&pids);
}

#[test]
fn a_worker_that_does_not_read_cannot_block() {
    let worker = Worker::new();
    let reward = worker.reward(hasty());
    let long = "z".repeat(1 << 20);
    let begun = Instant::now();
    let outcomes = ask(&reward, &["deaf ", &long, "a"]);
    assert!(outcomes[1].is_err() && outcomes[0].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    drop(reward);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_lost_batch_is_given_up() {
    let worker = Worker::new();
    let reward = worker.reward(quick());
    let begun = Instant::now();
    let outcomes = ask(&reward, &["exit"; 9]);
    let unasked = |o: &&Outcome| o.as_ref().is_err_and(|e| e.contains("not asked"));
    let skipped = outcomes.iter().filter(unasked);
    assert_eq!(skipped.count(), 4, "after 5 of 9 failed");
    // Whichever of them is shown, it tells why the batch is lost.
    let told = |o: &Outcome| o.as_ref().is_err_and(|e| e.contains("no such judge"));
    assert!(outcomes.iter().all(told), "{outcomes:?}");
    let input = RewardInput { prompt: "", completion: "exit", finished: true, fields: no_fields() };
    let error = score(&reward, &[input]).unwrap_err();
    assert!(
        matches!(error, Error::Reward { .. }) && error.to_string().contains("judge"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// A command that never says a word costs its start once, and not once for each worker and sample.
#[test]
fn a_command_that_never_answers_is_given_up() {
    let worker = Worker::new();
    let options = CommandOptions {
        workers: 2,
        timeout: Duration::from_millis(300),
        startup: Duration::from_secs(5),
        retries: 1,
        ..quick()
    };
    let reward = worker.reward_with(&["mute"], options);
    let begun = Instant::now();
    let input = RewardInput { prompt: "", completion: "a", finished: true, fields: no_fields() };
    let error = score(&reward, &[input; 64]).unwrap_err().to_string();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for part in [
        "64 of 64",
        "no answer within 0.3 s of timeout and 4.",
        "startup over 5 s",
        "loading \\u{1b}[31mfor ever\\nand ever",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains(char::is_control), "{error:?}");
    let outcomes = ask(&reward, &["a"; 8]);
    assert!(outcomes[7].clone().unwrap_err().contains("not asked"), "{outcomes:?}");
}

#[test]
fn programs_must_exist() {
    for (argv, word) in [(vec![], "no program"), (vec!["no-such-program-1"], "no-such-program-1")] {
        let argv = argv.into_iter().map(String::from).collect();
        let error = CommandReward::new(argv, quick()).err().unwrap().to_string();
        assert!(error.contains("config `reward`") && error.contains(word), "{error}");
    }
    let none = CommandOptions { workers: 0, ..quick() };
    assert!(CommandReward::new(vec!["sh".into()], none).is_err());
}

#[test]
fn the_examples_are_rewards() {
    let folder = crate::common::root().join("examples/rewards").display().to_string();
    let run = |script: &str, completion: &str, answer: &str| {
        let argv = vec![python(), format!("{folder}/{script}")];
        let reward = CommandReward::new(argv, quick()).unwrap();
        let fields = serde_json::json!({"answer": answer}).as_object().unwrap().clone();
        let input = RewardInput { prompt: "", completion, finished: true, fields: &fields };
        reward.score(&[input]).remove(0)
    };
    assert_eq!(run("length.py", "", "1"), one(1.0));
    assert_eq!(run("arithmetic.py", "it is 1,000.50", "2001/2"), one(1.0));
    assert_eq!(run("arithmetic.py", "no", "2"), one(0.0));
    assert!(run("arithmetic.py", "2", "two").unwrap_err().contains("no number"));
}

/// Figures for the log: `cargo test --release --test files reward::command -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn times() {
    let worker = Worker::new();
    for workers in [1, 2, 4] {
        let reward = worker.reward(CommandOptions { workers, ..quick() });
        let texts = vec!["some completion of a usual length, say"; 10_000];
        ask(&reward, &texts[..64]);
        let begun = Instant::now();
        assert!(ask(&reward, &texts).iter().all(Result::is_ok));
        let seconds = begun.elapsed().as_secs_f64();
        println!("{workers} workers: {:.0} samples/s", texts.len() as f64 / seconds);
    }
    let reward = worker.reward(hasty());
    ask(&reward, &["a"]);
    let begun = Instant::now();
    assert!(ask(&reward, &["hang"])[0].is_err());
    let late = begun.elapsed() - hasty().timeout;
    println!(
        "a hanging worker: killed and reaped {:.1} ms after its limit",
        late.as_secs_f64() * 1e3
    );
    ask(&reward, &["a"]);
    let begun = Instant::now();
    drop(reward);
    println!("drop: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
}
