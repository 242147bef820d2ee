//! Limits on what the text of a kernel says.

use gradus::device::shipped_ptx;
use gradus_emu::audit::{Audit, audit};

use super::{GATES, Gate, judge};
use crate::common::root;

fn value(gate: Gate, found: &Audit) -> u64 {
    let value = match gate {
        Gate::BranchBeforeProduct => found.branches_before_products.len(),
        Gate::DivisionInLoop => found.divisions_in_loops.len(),
        // Without a bulk load there is nothing that could have been on its way meanwhile.
        Gate::LoadRounds => found.first_bulk.map_or(0, |_| found.load_rounds),
        Gate::AtomicsPerBlock | Gate::InstructionsPerStage | Gate::Bytes => {
            panic!("{gate:?} is counted, not read")
        }
    };
    value as u64
}

/// Every kernel that ships, in both sets.
fn shipped(gate: Gate) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for (op, set, ptx) in shipped_ptx().unwrap() {
        let found = audit(ptx).unwrap_or_else(|e| panic!("{op} {}: {e}", set.name()));
        all.extend(found.iter().map(|k| (k.kernel.clone(), value(gate, k))));
    }
    all
}

#[test]
fn loads_and_products_have_no_branch_between_them() {
    judge(Gate::BranchBeforeProduct, &shipped(Gate::BranchBeforeProduct));
}

#[test]
fn loops_divide_no_64_bit_numbers() {
    judge(Gate::DivisionInLoop, &shipped(Gate::DivisionInLoop));
}

#[test]
fn the_first_bulk_load_waits_for_one_load_at_most() {
    judge(Gate::LoadRounds, &shipped(Gate::LoadRounds));
}

/// Excerpts of kernels that were slow on an H200, as they were on 2026-11-30: each is over its limit.
#[test]
fn kernels_that_were_slow_are_found() {
    for (file, gate) in [
        ("attention_mma", Gate::BranchBeforeProduct),
        ("rope", Gate::DivisionInLoop),
        ("nf4_matmul_few8", Gate::LoadRounds),
    ] {
        let path = root().join(format!("tests/device/gates/old/{file}.ptx"));
        let found = audit(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (.., most) = GATES.into_iter().find(|(g, ..)| *g == gate).unwrap();
        assert!(value(gate, &found[0]) > most, "{file}: {found:?}");
    }
}
