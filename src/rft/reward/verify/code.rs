//! Programs, judged by running them.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::unfit;
#[cfg(unix)]
use crate::reward::excerpt;
use crate::reward::{Judgment, Outcome, RewardInput};

/// The share of the row's tests that the completion's last code block passes.
///
/// Tests are `tests`, a list of `{"stdin": …, "stdout": …}` that compare what the program prints
/// (spaces at the ends of lines aside), and `test_code`, a text that is appended to the program and
/// passes if the whole ends with status 0 at its last line. Each test is a fresh process in a fresh
/// folder, with the environment cleared but for the search path, and with limits on time, memory,
/// size of files and processes. A program that fails, crashes or exceeds a limit fails that test; one
/// that leaves something that cannot be removed fails the call. Nothing of it stays in the system's
/// folder for temporary files, however this process ends, where there is a `/bin/sh`.
///
/// The feedback is about the first test that is not passed: the end of the program's standard error, or
/// what it printed in the place of what was expected. LeTI (arXiv:2305.10314) trains on such texts.
///
/// **This limits resources. It is no security sandbox**: the program runs as the user of the
/// trainer, can read that user's files and reach the network, and a child that leaves the session
/// outlives it. Train on code that a policy writes in a container or a machine made for it. Nor is
/// it a protection against cheating: a program can read its own test code, which lies next to it.
///
/// Unix only; elsewhere every call fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    /// Interpreter and its arguments, before the program's file.
    pub interpreter: Vec<String>,
    /// Wall time of a sample, all its tests together; a test's processor time is limited to a second
    /// more. Tests that the time does not reach are not passed.
    pub time: Duration,
    /// Bytes of address space.
    pub memory: u64,
    /// Bytes of the largest file, standard output included.
    pub file: u64,
    /// Processes and threads. The system counts all of the user's, and does not limit root.
    pub processes: u64,
    /// Whether only a program that passes every test scores, 1.
    pub all: bool,
}

impl Default for Code {
    fn default() -> Code {
        Code {
            interpreter: vec!["python3".into()],
            time: Duration::from_secs(30),
            memory: 1 << 30,
            file: 1 << 20,
            processes: 4096,
            all: false,
        }
    }
}

/// A test of a row.
#[cfg_attr(not(unix), allow(dead_code))]
enum Test {
    Prints { stdin: String, stdout: String },
    Appended(String),
}

impl Code {
    /// Judges one completion.
    pub fn check(&self, input: &RewardInput<'_>) -> Outcome {
        let tests = tests(input)?;
        let Some(program) = super::conclusion(input.completion).and_then(code_block) else {
            return judged(0.0, Some("there is no code block that is closed".into()));
        };
        let (mut passed, mut feedback, begun) = (0, None, Instant::now());
        for (i, test) in tests.iter().enumerate() {
            let left = self.time.saturating_sub(begun.elapsed());
            let failed = match left.is_zero() {
                true => Some(LATE.to_string()),
                false => self.failure(program, test, left)?,
            };
            match failed {
                None => passed += 1,
                Some(reason) => {
                    feedback.get_or_insert_with(|| format!("test {}: {reason}", i + 1));
                }
            }
            if self.all && feedback.is_some() {
                return judged(0.0, feedback);
            }
        }
        judged(passed as f32 / tests.len() as f32, feedback)
    }

    /// Whether a row has tests.
    pub fn check_row(&self, fields: &serde_json::Map<String, Value>) -> Result<(), String> {
        tests(&RewardInput { prompt: "", completion: "", finished: true, fields }).map(|_| ())
    }

    /// Why a program does not pass a test; none if it does.
    #[cfg(unix)]
    fn failure(
        &self,
        program: &str,
        test: &Test,
        time: Duration,
    ) -> Result<Option<String>, String> {
        use super::{folder::nonce, sandbox::run};
        if self.interpreter.is_empty() {
            return Err("no interpreter is given".into());
        }
        let failed = |error| format!("cannot run `{}`: {error}", self.interpreter[0]);
        match test {
            Test::Prints { stdin, stdout } => {
                let ran = run(self, program, stdin, time).map_err(failed)?;
                let (said, gold) = (lines(&ran.stdout), lines(stdout));
                Ok(broken(&ran).or_else(|| {
                    let shown = |lines: &[&str]| excerpt(&lines.join("\n"));
                    let reason = format!("expected `{}`, got `{}`", shown(&gold), shown(&said));
                    (said != gold).then_some(reason)
                }))
            }
            Test::Appended(code) => {
                // Ending early with status 0 is not passing: the last line must have been reached.
                let word = format!("{:016x}", nonce());
                let whole = format!("{program}\n{code}\nprint(\"{word}\")\n");
                let ran = run(self, &whole, "", time).map_err(failed)?;
                let reached = ran.stdout.lines().last() == Some(word.as_str());
                let early = || "the program ended before its tests did".to_string();
                Ok(broken(&ran)
                    .map(|reason| reason.replace(&word, ""))
                    .or_else(|| (!reached).then(early)))
            }
        }
    }

    #[cfg(not(unix))]
    fn failure(&self, _: &str, test: &Test, _: Duration) -> Result<Option<String>, String> {
        match test {
            Test::Prints { .. } | Test::Appended(_) => {
                Err("unsupported: running code needs the process limits of Unix".into())
            }
        }
    }
}

/// What is said of a test that the time does not reach.
const LATE: &str = "the time is over";

fn judged(score: f32, feedback: Option<String>) -> Outcome {
    Ok(Judgment { score, parts: Vec::new(), feedback }.into())
}

/// Why a run was none that ended well; none if it was.
#[cfg(unix)]
fn broken(ran: &super::sandbox::Ran) -> Option<String> {
    match (ran.success, ran.in_time) {
        (true, _) => None,
        (false, false) => Some(LATE.into()),
        (false, true) if ran.stderr.is_empty() => Some("the program failed".into()),
        (false, true) => Some(ran.stderr.replace(|c: char| c.is_control() && c != '\n', " ")),
    }
}

/// What a test is.
const TEST: &str =
    "an object `{\"stdin\": …, \"stdout\": …}`; assertions are a text in `test_code`";

fn tests(input: &RewardInput<'_>) -> Result<Vec<Test>, String> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(String::from);
    let mut tests = Vec::new();
    if let Some(code) = text(input.fields.get("test_code")) {
        tests.push(Test::Appended(code));
    }
    for (i, test) in
        input.fields.get("tests").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        if !test.is_object() {
            return Err(unfit(&format!("tests[{i}]"), test, TEST));
        }
        let (stdin, stdout) = (text(test.get("stdin")), text(test.get("stdout")));
        let stdout =
            stdout.ok_or_else(|| format!("row field `tests`: test {i} has no `stdout`"))?;
        tests.push(Test::Prints { stdin: stdin.unwrap_or_default(), stdout });
    }
    match tests.is_empty() {
        true => {
            Err("the row has no tests: neither `tests`, a list, nor `test_code`, a text".into())
        }
        false => Ok(tests),
    }
}

#[cfg(unix)]
fn lines(text: &str) -> Vec<&str> {
    text.trim_end().lines().map(str::trim_end).collect()
}

/// Content of the last closed code fence in `text`. A fence is three backticks at the start of a
/// line; a language may follow.
pub fn code_block(text: &str) -> Option<&str> {
    let (mut at, mut start, mut last) = (0, None, None);
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        if line.trim_start().starts_with("```") {
            start = match start {
                None => Some(at),
                Some(from) => {
                    last = Some(&text[from..begin]);
                    None
                }
            };
        }
    }
    last
}

#[cfg(test)]
mod unit {
    use serde_json::json;

    use super::*;
    use crate::reward::verify::tests::ask;

    #[test]
    fn blocks() {
        for (text, block) in [
            ("```python\na\nb\n```", Some("a\nb\n")),
            ("x\n```\na\n```\ny\n```py\nb\n```\nz", Some("b\n")),
            ("```python\na\n```\n```python\nb", Some("a\n")),
            ("```python\ns = '```'\n```", Some("s = '```'\n")),
            ("```", None),
            ("", None),
        ] {
            assert_eq!(code_block(text), block, "{text}");
        }
    }

    #[test]
    fn rows_without_tests_fail_and_completions_without_code_do_not_pass() {
        let check = |i: &RewardInput<'_>| Code::default().check(i);
        assert!(ask(check, "", &json!({})).unwrap_err().contains("`test_code`"));
        assert!(ask(check, "", &json!({"tests": [{}]})).unwrap_err().contains("`stdout`"));
        let error = ask(check, "", &json!({"tests": ["assert f(2) == 4"]})).unwrap_err();
        assert!(
            error.contains("`tests[0]` is \"assert f(2) == 4\", expected an object"),
            "{error}"
        );
        assert!(error.contains("`test_code`"), "{error}");
        let row = json!({"test_code": "assert f() == 1"});
        let judgment = ask(check, "def f(): return 1", &row).unwrap().judgment().unwrap();
        assert_eq!(judgment.score, 0.0);
        assert!(judgment.feedback.unwrap().contains("no code block"));
    }
}
