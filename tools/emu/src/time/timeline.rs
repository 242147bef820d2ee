//! What the replay knows of a program's instructions beside their effects.

use std::collections::HashSet;
use std::ops::Range;

use super::cost::{Kind, Port, Unit, kind};
use crate::audit::{destinations, has, is, sources};
use crate::text::ast::{Instruction, Operand, Reg};

/// What an instruction has to do with work under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flight {
    None,
    CommitCopies,
    /// Waits until at most so many groups of copies are under way.
    WaitCopies(usize),
    CommitProducts,
    WaitProducts(usize),
    /// A fence of device scope.
    Fence,
    /// A fence that shows writes to the async proxy.
    Proxy,
    /// `griddepcontrol.wait`: what comes before overlaps the launch before this one.
    Grid,
}

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub kind: Kind,
    pub flight: Flight,
    /// Where its registers stand in [`Timeline::operands`].
    reads: Range<u32>,
    writes: Range<u32>,
    /// A product of a warpgroup.
    pub warpgroup: bool,
    /// Shared memory of another block.
    pub remote: bool,
    /// A sum with a constant, or the lower half of a number: as an address it costs nothing.
    offset: bool,
    /// Where a branch goes, and whether it has a condition.
    target: Option<(usize, bool)>,
}

/// Instructions that a branch skips at most where the assembler makes them conditional and leaves the branch
/// out. Counted in machine code (ptxas 12.8): of the branches of `matmul_f32`, 147 in PTX, 83 are left, and 77 skip
/// no more than 7 instructions, none of which is a branch or a barrier; of `rmsnorm_bwd_f32`, 188, 88 and 75.
const CONDITIONAL: usize = 7;

/// The instructions of a program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    pub steps: Vec<Step>,
    /// Registers: the class in the two highest bits.
    operands: Vec<u32>,
}

/// A register of a class as a number.
fn number(r: &Reg, base: [u32; 3]) -> u32 {
    (r.class as u32) << 30 | (base[r.class as usize] + r.index)
}

impl Timeline {
    /// Adds the next instruction, whose function's registers begin at `base`; a branch goes to `target`.
    pub fn push(&mut self, i: &Instruction, base: [u32; 3], target: Option<usize>) {
        let mut add = |list: Vec<Reg>| {
            let first = self.operands.len() as u32;
            self.operands.extend(list.iter().map(|r| number(r, base)));
            first..self.operands.len() as u32
        };
        let warpgroup = is(i, "wgmma") && has(i, "mma_async");
        // The accumulators of a warpgroup's products are in the tensor core until they are waited for.
        let (reads, writes) = if warpgroup {
            (add(descriptors(i)), 0..0)
        } else {
            (add(sources(i)), add(destinations(i)))
        };
        let remote = i.opcode.iter().any(|m| m == "shared::cluster");
        let constant = matches!(i.operands.get(2), Some(Operand::Int(_)));
        let offset = (is(i, "add") && constant) || (is(i, "cvt") && has(i, "u64")) || is(i, "mov");
        let (kind, flight) = (kind(i), flight(i));
        let target = target.map(|pc| (pc, i.guard.is_some()));
        self.steps.push(Step { kind, flight, reads, writes, warpgroup, remote, offset, target });
    }

    /// Short branches forward become conditions of what they skip.
    pub fn make_conditional(&mut self) {
        let targets: HashSet<usize> =
            self.steps.iter().filter_map(|step| Some(step.target?.0)).collect();
        for pc in 0..self.steps.len() {
            let Some((target, true)) = self.steps[pc].target else { continue };
            let mut skipped = pc + 1..target.max(pc + 1);
            let short = target > pc && skipped.len() <= CONDITIONAL;
            if short && skipped.all(|at| !self.steps[at].fixed() && !targets.contains(&at)) {
                self.steps[pc].kind = Kind::NOTHING;
            }
        }
    }

    /// Where a branch goes that is a condition of what it skips.
    pub fn skips_to(&self, pc: usize) -> Option<usize> {
        let step = &self.steps[pc];
        let (target, _) = step.target?;
        (step.kind == Kind::NOTHING).then_some(target)
    }

    /// Sums with a constant that are nothing but addresses become offsets of their accesses.
    pub fn fold(&mut self) {
        // Registers that something else than an address reads.
        let mut values: HashSet<u32> = HashSet::new();
        for pc in (0..self.steps.len()).rev() {
            let folds =
                self.steps[pc].offset && self.writes(pc).iter().all(|r| !values.contains(r));
            let address = self.steps[pc].kind.port != Port::None;
            if folds {
                self.steps[pc].kind = Kind::NOTHING;
            } else if !address {
                values.extend(self.reads(pc).to_vec());
            }
        }
    }

    pub fn reads(&self, pc: usize) -> &[u32] {
        let Range { start, end } = self.steps[pc].reads;
        &self.operands[start as usize..end as usize]
    }

    pub fn writes(&self, pc: usize) -> &[u32] {
        let Range { start, end } = self.steps[pc].writes;
        &self.operands[start as usize..end as usize]
    }
}

/// What a product reads but its accumulators.
fn descriptors(i: &Instruction) -> Vec<Reg> {
    let rest = Instruction { operands: i.operands.iter().skip(1).cloned().collect(), ..i.clone() };
    let mut all = destinations(&rest);
    all.extend(sources(&rest));
    all
}

fn flight(i: &Instruction) -> Flight {
    let keep = match i.operands.first() {
        Some(Operand::Int(n)) => *n as usize,
        _ => 0,
    };
    match i.opcode[0].as_str() {
        "cp" if has(i, "commit_group") => Flight::CommitCopies,
        "cp" if has(i, "wait_group") => Flight::WaitCopies(keep),
        "cp" if has(i, "wait_all") => Flight::WaitCopies(0),
        "wgmma" if has(i, "commit_group") => Flight::CommitProducts,
        "wgmma" if has(i, "wait_group") => Flight::WaitProducts(keep),
        "membar" | "fence" if has(i, "gl") || has(i, "gpu") || has(i, "sys") => Flight::Fence,
        "fence" if has(i, "proxy") => Flight::Proxy,
        "griddepcontrol" if has(i, "wait") => Flight::Grid,
        _ => Flight::None,
    }
}

impl Step {
    /// Work that others may not be moved across: all but arithmetic.
    pub fn fixed(&self) -> bool {
        self.flight != Flight::None || self.warpgroup || self.kind.unit == Unit::Control
    }

    pub fn stores(&self) -> bool {
        matches!(self.kind.port, Port::Store | Port::Atomic | Port::Copy | Port::Bulk)
    }
}
