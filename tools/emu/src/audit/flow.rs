//! Which registers an instruction reads and writes.

use super::{has, is};
use crate::text::ast::{Base, Instruction, Operand, Reg};

/// Opcodes whose first operand is read.
const NO_RESULT: [&str; 17] = [
    "st",
    "red",
    "bra",
    "bar",
    "barrier",
    "cp",
    "ret",
    "exit",
    "fence",
    "membar",
    "stmatrix",
    "prefetch",
    "prefetchu",
    "nanosleep",
    "trap",
    "griddepcontrol",
    "setmaxnreg",
];

/// Whether the first operand is a result.
fn has_result(i: &Instruction) -> bool {
    if NO_RESULT.contains(&i.opcode[0].as_str()) {
        return has(i, "red") && !is(i, "cp") && !is(i, "red");
    }
    if is(i, "mbarrier") {
        return matches!(i.operands.first(), Some(Operand::Reg(_)));
    }
    !is(i, "wgmma") || has(i, "mma_async")
}

/// All registers of an operand.
pub(crate) fn registers(operand: &Operand, out: &mut Vec<Reg>) {
    match operand {
        Operand::Reg(r) | Operand::Not(r) | Operand::Address(Base::Reg(r), _) => out.push(*r),
        Operand::Pair(a, b) => out.extend(a.iter().chain(b)),
        Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|o| registers(o, out)),
        Operand::Tensor(map, list) => {
            registers(map, out);
            list.iter().for_each(|o| registers(o, out));
        }
        Operand::Int(_)
        | Operand::F32(_)
        | Operand::F64(_)
        | Operand::Special(_)
        | Operand::Symbol(_)
        | Operand::Address(Base::Symbol(_) | Base::Absolute, _)
        | Operand::Label(_) => {}
    }
}

/// Registers that are written.
pub(crate) fn destinations(i: &Instruction) -> Vec<Reg> {
    let mut out = Vec::new();
    if has_result(i)
        && let Some(first) = i.operands.first()
    {
        registers(first, &mut out);
    }
    out
}

/// Registers that are read, the guard among them. The accumulators of a warpgroup's product are both.
pub(crate) fn sources(i: &Instruction) -> Vec<Reg> {
    let mut out: Vec<Reg> = i.guard.iter().map(|(r, _)| *r).collect();
    let skip = usize::from(has_result(i) && !is(i, "wgmma"));
    i.operands.iter().skip(skip).for_each(|o| registers(o, &mut out));
    out
}
