//! Limits on the kernels that ship: what is known to be slow on hardware does not come in again.
//!
//! `list.txt` has the kernels that are over a limit, each with the reason. A value that grows fails,
//! and so does one that has shrunk: `GRADUS_WRITE=1` writes the new values and leaves out lines that
//! are no longer needed. A kernel that is over a limit and not in the list fails either way.

mod counted;
mod text;

use std::fmt::Write;

use crate::common::root;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// Branches between the loads and the products of a loop: nothing can be issued ahead across one.
    BranchBeforeProduct,
    /// 64-bit divisions in a loop: each is a call of about 70 instructions.
    DivisionInLoop,
    /// Loads that wait for each other before the first bulk load: each is a latency of memory.
    LoadRounds,
    /// Atomics of one block to one address: they are done one after the other.
    AtomicsPerBlock,
    /// Instructions of the busiest warp in a stage of 64 steps of a tile's products.
    InstructionsPerStage,
    /// Percent of the bytes that an op cannot do without: judged beside the rows of the benchmark, in
    /// `src/rft/bench/predict/bytes.rs`.
    Bytes,
}

/// Name in the list, and the most that needs no reason.
const GATES: [(Gate, &str, u64); 6] = [
    (Gate::BranchBeforeProduct, "branch before product", 0),
    (Gate::DivisionInLoop, "64-bit division in loop", 0),
    (Gate::LoadRounds, "load rounds", 1),
    (Gate::AtomicsPerBlock, "atomics per block", 1),
    // 64 steps of a tile of 128 x 128 take 512 clocks of the tensor cores; a warp issues an instruction
    // every 4.4 (measured: one producer warp for each scheduler, H200).
    (Gate::InstructionsPerStage, "instructions per stage", 116),
    (Gate::Bytes, "bytes", 120),
];

/// A line of the list.
struct Exception {
    gate: Gate,
    /// A name, or the first letters of several and a `*`.
    kernels: String,
    most: u64,
    since: String,
    reason: String,
}

impl Exception {
    fn fits(&self, gate: Gate, kernel: &str) -> bool {
        let name = match self.kernels.strip_suffix('*') {
            Some(start) => kernel.starts_with(start),
            None => kernel == self.kernels,
        };
        self.gate == gate && name
    }
}

fn list_path() -> std::path::PathBuf {
    root().join("tests/device/gates/list.txt")
}

fn list() -> Vec<Exception> {
    let text = std::fs::read_to_string(list_path()).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let read = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [gate, kernels, most, since, reason] = cells[..] else { panic!("list.txt: {line}") };
        let gate = GATES.iter().find(|(_, name, _)| *name == gate);
        let (gate, ..) = *gate.unwrap_or_else(|| panic!("list.txt: no such gate: {line}"));
        assert!(reason.len() > 20 && since.len() == 10, "list.txt: a reason and a date: {line}");
        Exception {
            gate,
            kernels: kernels.into(),
            most: most.parse().unwrap(),
            since: since.into(),
            reason: reason.into(),
        }
    };
    lines.map(read).collect()
}

/// Compares what was found, (kernel, value), with the gate's limit and the list.
fn judge(gate: Gate, found: &[(String, u64)]) {
    let (_, name, most) = GATES.into_iter().find(|(g, ..)| *g == gate).unwrap();
    assert!(!found.is_empty(), "{name}: nothing was looked at");
    let list = list();
    let mut wrong = String::new();
    for (kernel, value) in found.iter().filter(|(_, value)| *value > most) {
        let fitting = list.iter().filter(|line| line.fits(gate, kernel)).count();
        if fitting != 1 {
            let _ = writeln!(
                wrong,
                "{name}: {kernel} has {value}, expected at most {most}; {fitting} lines of list.txt are about it"
            );
        }
    }
    let mut now = Vec::new();
    for line in &list {
        let mut value = line.most;
        if line.gate == gate {
            let fits = found.iter().filter(|(kernel, _)| line.fits(gate, kernel));
            value = fits.map(|(_, value)| *value).max().unwrap_or(0);
            if value != line.most {
                let _ = writeln!(
                    wrong,
                    "{name}: {} has {value}, list.txt says {}",
                    line.kernels, line.most
                );
            }
        }
        now.push(value);
    }
    if std::env::var_os("GRADUS_WRITE").is_some() {
        return write(gate, most, &list, &now);
    }
    assert!(wrong.is_empty(), "{wrong}GRADUS_WRITE=1 writes new values of lines that are there");
}

fn write(gate: Gate, most: u64, list: &[Exception], now: &[u64]) {
    let old = std::fs::read_to_string(list_path()).unwrap();
    let head: String =
        old.lines().take_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    let mut text = head;
    for (line, &value) in list.iter().zip(now) {
        if line.gate != gate || value > most {
            let (_, name, _) = GATES.iter().find(|(g, ..)| *g == line.gate).unwrap();
            let _ = writeln!(
                text,
                "{name} | {} | {value} | {} | {}",
                line.kernels, line.since, line.reason
            );
        }
    }
    std::fs::write(list_path(), text).unwrap();
}
