//! The gate on bytes: all launches of an op together move at most 1.2 of what the op cannot do without, with
//! nothing in the L2 before the first. What is over it stands in `tests/device/gates/list.txt`, to which
//! `GRADUS_WRITE=1` writes the new values of lines that are there.

use std::path::PathBuf;

use gradus::device::TimedLaunches;
use gradus::device::timing::rates::H200;
use gradus::{Result, bf16};

use super::{Recorder, halves};
use crate::bench::case::Case;
use crate::bench::vocabulary::{Pass, head};
use crate::bench::{optim, policy};

/// Percent of the least that need no reason.
const MOST: u64 = 120;

/// A line of the list: a row's name, or the first letters of several and a `*`; percent of the least.
struct Exception {
    rows: String,
    most: u64,
    /// The line without its value.
    line: [String; 2],
}

impl Exception {
    fn read(line: &str) -> Option<Exception> {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["bytes", rows, most, since, reason] = cells[..] else { return None };
        assert!(reason.len() > 20 && since.len() == 10, "list.txt: a reason and a date: {line}");
        let most = most.parse().unwrap_or_else(|_| panic!("list.txt: a number: {line}"));
        let line = [format!("bytes | {rows} | "), format!(" | {since} | {reason}")];
        Some(Exception { rows: rows.into(), most, line })
    }

    fn fits(&self, row: &str) -> bool {
        self.rows.strip_suffix('*').map_or(self.rows == row, |start| row.starts_with(start))
    }
}

fn list() -> (PathBuf, String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/device/gates/list.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    (path, text)
}

/// What is wrong with rows and the percent of the least that they move; and what lines say now.
fn judge(list: &[Exception], found: &[(String, u64)]) -> (Vec<String>, Vec<u64>) {
    let mut wrong = Vec::new();
    for (row, percent) in found.iter().filter(|(_, percent)| *percent > MOST) {
        let lines = list.iter().filter(|line| line.fits(row)).count();
        if lines != 1 {
            wrong.push(format!("{row}: {percent} %, expected at most {MOST}; {lines} lines"));
        }
    }
    let mut now = Vec::new();
    for line in list {
        let its = found.iter().filter(|(row, _)| line.fits(row)).map(|(_, percent)| *percent);
        let most = its.max().unwrap_or(0);
        if line.most != most || most <= MOST {
            wrong.push(format!("{}: list.txt says {} %, now {most}", line.rows, line.most));
        }
        now.push(most);
    }
    (wrong, now)
}

/// Percent of the least that a row moves.
fn percent(case: &Case) -> Result<u64> {
    Ok((100.0 * memory_bytes(case)? / case.bytes as f64).round() as u64)
}

/// Bytes of all launches of a call, with nothing in the L2 before. A first call makes tables and scratch memory.
fn memory_bytes(case: &Case) -> Result<f64> {
    let recorder = Recorder::new()?;
    recorder.record_only(TimedLaunches::Nothing);
    let mut body = (case.make)(recorder.device())?;
    body(recorder.device())?;
    recorder.record_only(TimedLaunches::All);
    let recorded = recorder.record(true, &mut body)?;
    Ok(recorded.launches.iter().map(|launch| launch.memory_bytes(&H200, true)).sum())
}

/// What an op does in 16 bits, and what there is in f32 only.
fn rows() -> Vec<Case> {
    let mut rows = halves();
    rows.extend(optim::cases());
    rows.extend(policy::cases());
    // As many rows and words as in training, fewer columns: 4 chunks, whose logits no L2 holds. The gradients'
    // products over all words would take minutes to record.
    rows.push(head::<bf16>(HEAD, Pass::Forward));
    rows
}

/// Ops whose call judges its results, of which a device that records has none.
const REFUSED: [&str; 1] = ["sparsity_stats"];

/// Rows, hidden size, vocabulary.
const HEAD: [usize; 3] = [8192, 256, 128_256];

/// The head of before, whose chunks had 2^22 logits: 32 rows of a large vocabulary, each of which read all of the
/// head again. No line of the list that fits the head of today lets it pass.
#[test]
fn a_head_in_short_chunks_does_not_pass() {
    let [rows, chunk, vocab] = [256, 32, HEAD[2]];
    let [whole, part] = [rows, chunk].map(|n| head::<bf16>([n, HEAD[1], vocab], Pass::Forward));
    let chunks = (rows / chunk) as f64;
    let before = (100.0 * chunks * memory_bytes(&part).unwrap() / whole.bytes as f64) as u64;
    let today = percent(&whole).unwrap();
    assert!(before > 2 * today, "{before} % in chunks of {chunk}, {today} % now");
    let line = format!("bytes | {} | {today} | 2026-12-01 | {}", whole.name(), "x".repeat(30));
    let list = [Exception::read(&line).unwrap()];
    let judged = |percent: u64| judge(&list, &[(whole.name(), percent)]).0;
    assert!(judged(today).is_empty());
    assert_eq!(judged(before).len(), 1);
}

/// More than the limit needs a line; a line with another value, or that is not needed, is wrong.
#[test]
fn rows_over_the_limit_need_a_line_with_their_value() {
    let of = |lines: &[&str], percent: u64| {
        let reason = "x".repeat(30);
        let lines = lines.iter().map(|line| format!("{line} | 2026-12-01 | {reason}"));
        let list: Vec<Exception> = lines.filter_map(|line| Exception::read(&line)).collect();
        judge(&list, &[("op 4 x 4 bf16".into(), percent)]).0.len()
    };
    assert_eq!((of(&[], 120), of(&[], 121)), (0, 1));
    let (line, start) = ("bytes | op 4 x 4 bf16 | 150", "bytes | op * | 150");
    for line in [line, start] {
        assert_eq!([150, 149, 151, 110].map(|percent| of(&[line], percent)), [0, 1, 1, 1]);
    }
    assert_eq!(of(&[line, start], 150), 1, "two lines");
    assert_eq!(of(&["load rounds | op * | 150"], 150), 1, "of another gate");
}

#[test]
fn ops_move_little_more_than_they_have_to() {
    let (path, text) = list();
    let lines: Vec<Exception> = text.lines().filter_map(Exception::read).collect();
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for case in rows() {
        match percent(&case) {
            Ok(percent) => {
                println!("{percent:>6} {}", case.name());
                found.push((case.name(), percent));
            }
            Err(error) => {
                println!("{}: {error}", case.name());
                refused.push(case.op);
            }
        }
    }
    assert_eq!(refused, REFUSED, "ops that cannot be recorded");
    let (wrong, now) = judge(&lines, &found);
    if std::env::var_os("GRADUS_WRITE").is_some() {
        let mut now = now.into_iter();
        let line = |line: &str| match Exception::read(line) {
            Some(Exception { line: [before, after], .. }) => {
                let most = now.next().unwrap_or(0);
                if most > MOST { format!("{before}{most}{after}\n") } else { String::new() }
            }
            None => format!("{line}\n"),
        };
        std::fs::write(path, text.lines().map(line).collect::<String>()).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "bytes, in percent of the least:\n{}", wrong.join("\n"));
}
