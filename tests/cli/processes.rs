//! Runs of the binary among other processes: signals that stop them, reward commands that hang or
//! outlive them, limits that the system sets, and secrets that they are told.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use super::runs::{gradus, latest, must, outcome, read_of, text};

/// A run of seconds; what a test is about comes on top.
const SMALL: &[&str] = &[
    "model.hidden=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.head_dim=16",
    "model.ffn=64",
    "sft.demos=128",
    "sft.epochs=1",
    "rl.steps=6",
    "rl.prompts=8",
    "rl.group=4",
    "rl.micro_batch=8",
    "lora.rank=4",
    "eval.max_prompts=16",
    "eval.samples=1",
    "eval.every=2",
    "checkpoint.every=3",
    "checkpoint.keep=3",
    "threads=2",
];

fn train(out: &Path, extra: &[&str]) -> Command {
    let mut command = gradus(&["train", "--out", out.to_str().unwrap()]);
    let more: Vec<&str> =
        extra.iter().copied().filter(|word| word.starts_with("phases=")).collect();
    for set in read_of(SMALL, &more) {
        command.args(["--set", &set]);
    }
    command.args(extra);
    command
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a plain system call; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

/// The output of a child that has to end within a few seconds.
fn ends(child: Child) -> Output {
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {}", begun.elapsed(), text(&output));
    output
}

fn await_file(path: &Path) -> String {
    let begun = Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no {}", path.display());
    }
}

/// A reward command that hangs, and a process that it starts; their numbers go to `pids`.
fn hanging(folder: &Path) -> (String, PathBuf) {
    let (script, pids) = (folder.join("hang.sh"), folder.join("pids"));
    let text = format!("sleep 600 &\necho $$ $! > {}\necho waiting >&2\nwait\n", pids.display());
    std::fs::write(&script, text).unwrap();
    (format!("cmd:sh {}", script.display()), pids)
}

fn all_gone(pids: &str) {
    let begun = Instant::now();
    for pid in pids.split_whitespace() {
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let lives = || !stat().is_empty() && !stat().contains(") Z ");
        while lives() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{pid} lives");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A run whose reward command hangs, once it does.
fn hung(folder: &Path, extra: &[&str]) -> (Child, String) {
    let (reward, pids) = hanging(folder);
    let mut all = vec!["--reward", &reward, "--set", "phases=quantize,rl"];
    all.extend(["--set", "reward.workers=1", "--set", "reward.timeout=300"]);
    all.extend(extra);
    let child = train(&folder.join("runs"), &all).spawn().unwrap();
    let pids = await_file(&pids);
    (child, pids)
}

#[test]
fn each_signal_is_heard_while_a_reward_hangs_and_is_named() {
    for (number, name) in
        [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGHUP, "SIGHUP")]
    {
        let folder = tempfile::tempdir().unwrap();
        let (child, pids) = hung(folder.path(), &[]);
        // `timeout` sends the signal to its child and to its group: twice in one moment.
        signal(&child, number);
        signal(&child, number);
        let output = ends(child);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(128 + number), "{shown}");
        assert!(
            shown.contains(&format!("stopped by {name}")) && shown.contains("--resume"),
            "{shown}"
        );
        let run = latest(&folder.path().join("runs"));
        assert!(run.join("checkpoints/LATEST").exists(), "{shown}");
        all_gone(&pids);
    }
}

#[test]
fn a_signal_is_heard_while_a_service_keeps_silent() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reward = format!("http://{}/", listener.local_addr().unwrap());
    let sets = ["--set", "phases=quantize,rl", "--set", "reward.timeout=300"];
    let mut all = vec!["--reward", &reward];
    all.extend(sets);
    let child = train(&folder.path().join("runs"), &all).spawn().unwrap();
    // Accepted, and kept open without a word.
    let connection = listener.accept().unwrap();
    signal(&child, libc::SIGTERM);
    assert_eq!(ends(child).status.code(), Some(143));
    drop(connection);
}

/// A signal after the first second ends a process that does not stop, and what it started with it.
#[test]
#[cfg(target_os = "linux")]
fn a_second_request_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (script, pids) = (folder.path().join("reply.sh"), folder.path().join("pids"));
    let body = format!(
        "sleep 600 &\nread line\necho '{{\"id\":0,\"score\":1}}'\necho $$ $! > {}\nwait\n",
        pids.display()
    );
    std::fs::write(&script, body).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "processes::never_stops"])
        .env("GRADUS_TEST_WORKER", &script);
    let mut child = command.spawn().unwrap();
    let all = await_file(&pids);
    signal(&child, libc::SIGTERM);
    signal(&child, libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(1300));
    assert!(child.try_wait().unwrap().is_none(), "two signals of one moment are one request");
    signal(&child, libc::SIGTERM);
    assert_eq!(ends(child).status.code(), Some(143));
    all_gone(&all);
}

#[test]
#[ignore = "run by a_second_request_ends_at_once"]
fn never_stops() {
    use gradus_rft::reward::command::{CommandOptions, CommandReward};
    use gradus_rft::reward::{Reward, RewardInput, no_fields};
    let script = std::env::var("GRADUS_TEST_WORKER").unwrap();
    let options = CommandOptions { workers: 1, ..CommandOptions::default() };
    let reward = CommandReward::new(vec!["sh".into(), script], options).unwrap();
    let _listening = gradus_rft::io::interrupt::listen().unwrap();
    let input = RewardInput { prompt: "", completion: "", finished: true, fields: no_fields() };
    assert!(reward.score(&[input])[0].is_ok());
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
#[cfg(target_os = "linux")]
fn reward_commands_end_with_a_run_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (child, pids) = hung(folder.path(), &[]);
    signal(&child, libc::SIGKILL);
    assert_eq!(ends(child).status.signal(), Some(libc::SIGKILL));
    all_gone(&pids);
}

#[test]
#[cfg(target_os = "linux")]
fn programs_that_are_judged_end_with_a_run_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let pids = folder.path().join("pids");
    // The interpreter is one that ignores the program and hangs.
    let script = folder.path().join("interpreter.sh");
    let body = format!("sleep 600 &\necho $$ $! > {}\nwait\n", pids.display());
    std::fs::write(&script, body).unwrap();
    let child = judge(folder.path(), &temporary, &script).spawn().unwrap();
    let all = await_file(&pids);
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 1);
    signal(&child, libc::SIGKILL);
    ends(child);
    all_gone(&all);
    let begun = Instant::now();
    while std::fs::read_dir(&temporary).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the program's folder stays");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This executable again, as a process that judges a program with the interpreter `script`.
fn judge(folder: &Path, temporary: &Path, script: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "processes::judges_a_program_for_ever"])
        .current_dir(folder);
    command.env("TMPDIR", temporary).env("GRADUS_TEST_INTERPRETER", script);
    command
}

#[test]
#[ignore = "run by programs_that_are_judged_end_with_a_run_that_is_killed"]
fn judges_a_program_for_ever() {
    use gradus_rft::reward::verify::Code;
    use gradus_rft::reward::{Reward, RewardInput};
    let script = std::env::var("GRADUS_TEST_INTERPRETER").unwrap();
    let code = Code {
        interpreter: vec!["sh".into(), script],
        time: Duration::from_secs(300),
        ..Code::default()
    };
    let row = serde_json::json!({"tests": [{"stdout": "b"}]});
    let (completion, fields) = ("```\nb\n```\n", row.as_object().unwrap());
    code.score(&[RewardInput { prompt: "", completion, finished: true, fields }]);
}

/// A hanging command stops the run by itself, soon, and says why.
#[test]
fn a_reward_command_that_hangs_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (reward, _) = hanging(folder.path());
    let sets = ["--set", "phases=quantize,rl", "--set", "reward.timeout=1"];
    let begun = Instant::now();
    let mut all = vec!["--reward", &reward];
    all.extend(sets);
    let output = train(&folder.path().join("runs"), &all).output().unwrap();
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    for part in [
        "no answer within 1 s of timeout and ",
        "its standard error ends: waiting",
        "startup over 2 s",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

/// `nohup` ignores SIGHUP for the program it starts, and so does the program.
#[test]
fn an_ignored_hangup_stays_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (reward, pids) = hanging(folder.path());
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    let sets = ["--set", "phases=quantize,rl", "--set", "reward.timeout=300"];
    let extra = [&["--reward", &reward][..], &sets].concat();
    let inner = train(&folder.path().join("runs"), &extra);
    command.arg(inner.get_program()).args(inner.get_args());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    await_file(&pids);
    signal(&child, libc::SIGHUP);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, libc::SIGTERM);
    assert_eq!(ends(child).status.code(), Some(143));
}

/// Stopped again and again, in whatever it does: the end is that of the run nobody disturbed.
#[test]
fn a_run_that_is_stopped_anywhere_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let long = [
        ["--set", "eval.max_prompts=96"],
        ["--set", "rl.updates_per_batch=2"],
        ["--set", "rl.steps=40"],
    ]
    .concat();
    let begun = Instant::now();
    must(train(&whole, &long));
    let took = begun.elapsed();
    let mut resumes = vec!["--resume", "auto"];
    resumes.extend(&long);
    let mut stops = 0;
    for i in 0.. {
        assert!(i < 200, "no end");
        let mut child = train(&cut, &resumes).spawn().unwrap();
        // Past the start, into another moment each time.
        std::thread::sleep(took.mul_f64(0.2 + 0.13 * (i % 4) as f64));
        if child.try_wait().unwrap().is_none() {
            signal(&child, libc::SIGTERM);
        }
        let output = ends(child);
        match (output.status.code(), output.status.signal()) {
            (Some(143), _) => stops += 1,
            // Before there is anything to save, a signal does what it always does.
            (_, Some(libc::SIGTERM)) => {}
            (Some(0), _) => break,
            other => panic!("{other:?}: {}", text(&output)),
        }
    }
    assert!(stops >= 2, "the run was over before it could be stopped");
    let (want, got) = (outcome(&latest(&whole)), outcome(&latest(&cut)));
    for (got, want) in got.1.iter().zip(&want.1) {
        assert_eq!(got, want);
    }
    assert_eq!((got.1.len(), got.0), (want.1.len(), want.0));
    let summary = |run: PathBuf| {
        let text = std::fs::read(run.join("summary.json")).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        ["base_accuracy", "sft_accuracy", "quantized_accuracy", "final_accuracy", "steps"]
            .map(|key| value[key].clone())
    };
    assert_eq!(summary(latest(&cut)), summary(latest(&whole)));
}

/// SIGXFSZ would end the process without a word.
#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 16; exec \"$@\"", "sh"]);
    let inner = train(&folder.path().join("runs"), &[]);
    command.arg(inner.get_program()).args(inner.get_args());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output).contains("ulimit -f"), "{}", text(&output));
}

#[test]
fn passwords_are_neither_printed_nor_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heads = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>()
    });
    let out = folder.path().join("runs");
    let reward = format!("http://judge:s3cr3t@{address}/?api_key=k3y");
    let sets = ["--set", "phases=quantize,rl", "--set", "reward.retries=0"];
    let mut all = vec!["--reward", &reward];
    all.extend(sets);
    let output = train(&out, &all).output().unwrap();
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains(&format!("http://***@{address}/?api_key=***")), "{shown}");
    let heads = heads.join().unwrap();
    assert!(heads.iter().any(|line| line == "authorization: Basic anVkZ2U6czNjcjN0"), "{heads:?}");
    let run = latest(&out);
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("http://***@"), "{config}");
    for part in ["s3cr3t", "k3y"] {
        assert!(!shown.contains(part) && !config.contains(part), "{part}: {shown}");
    }
    // What was left out is asked for, and not sent.
    let again = ["config", "--config", run.join("config.toml").to_str().unwrap()].map(String::from);
    let again = again.iter().map(String::as_str).collect::<Vec<_>>();
    let output = gradus(&again).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let shown = text(&output);
    assert!(shown.contains("http://***@") && shown.contains("left out"), "{shown}");
    let config = run.join("config.toml");
    let given = ["--config", config.to_str().unwrap(), sets[0], sets[1]];
    let output = train(&out, &given).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("left out"), "{}", text(&output));
    // A variable of the environment can be written down.
    let named = format!("http://judge:$GRADUS_TEST_PASSWORD@{address}/");
    let mut command = train(&out, &["--reward", &named, sets[0], sets[1], sets[2], sets[3]]);
    let output = command.env("GRADUS_TEST_PASSWORD", "s3cr3t").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let config = std::fs::read_to_string(latest(&out).join("config.toml")).unwrap();
    assert!(config.contains("$GRADUS_TEST_PASSWORD") && !text(&output).contains("s3cr3t"));
    let output = train(&out, &["--reward", &named]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("`GRADUS_TEST_PASSWORD`"), "{}", text(&output));
}
