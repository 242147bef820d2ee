//! What can be said of a kernel's speed from its text alone: work between a load and the product
//! that waits for it, loads that wait for each other, long loops, divisions that are calls.
//!
//! Text order stands for the order of issue. The compiler lays the common way straight, so what is
//! found here was slow wherever it was measured; a kernel that passes may still be slow.

mod flow;

use std::collections::{HashMap, HashSet};

use crate::text;
use crate::text::ast::{Class, Function, Instruction, Operand, Reg, Statement};
pub(crate) use flow::{destinations, sources};

/// What the text of one kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The kernel's name.
    pub kernel: String,
    /// Times that a load of global memory waits for an earlier one, before the first load of 16 bytes
    /// or asynchronous copy is issued, on the way to it with the fewest; in a kernel without one,
    /// before its end, on the way with the most.
    pub load_rounds: usize,
    /// Line of that first load, if there is one.
    pub first_bulk: Option<u32>,
    /// Lines of branches between a load and a product that uses it, inside a loop.
    pub branches_before_products: Vec<u32>,
    /// Lines of 64-bit divisions and remainders by numbers that are not constant, inside a loop.
    pub divisions_in_loops: Vec<u32>,
    /// Innermost loops, in the order of the text.
    pub loops: Vec<Loop>,
}

/// An innermost loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Lines of its first and last instruction.
    pub lines: [u32; 2],
    /// Instructions in it.
    pub instructions: usize,
    /// Products of tensor cores in it.
    pub products: usize,
    /// Loads of global memory and copies into shared memory in it.
    pub loads: usize,
    /// Stores into shared memory in it, copies left out.
    pub shared_stores: usize,
}

/// Audits every kernel of a PTX file, by name.
///
/// # Errors
/// What the parser says of text that it cannot read.
pub fn audit(ptx: &str) -> Result<Vec<Audit>, String> {
    let source = text::parse(ptx)?;
    let mut found: Vec<Audit> =
        source.functions.iter().filter(|f| f.entry).map(|f| Body::of(f).audit()).collect();
    found.sort_by(|a, b| a.kernel.cmp(&b.kernel));
    Ok(found)
}

/// A kernel's instructions, and where its branches lead.
struct Body<'a> {
    name: &'a str,
    list: Vec<&'a Instruction>,
    /// (branch, target) of branches that lead back: each is a loop from target to branch.
    back: Vec<(usize, usize)>,
    /// Branches with a guard that lead forward.
    forward: Vec<usize>,
    /// Where branches lead.
    targets: HashMap<usize, usize>,
}

/// A way through a kernel up to an instruction.
#[derive(Clone, Default)]
struct Way {
    at: usize,
    /// How often a load has waited for another.
    round: usize,
    /// The round in which a register's value was asked for.
    asked: HashMap<(Class, u32), usize>,
}

impl Way {
    /// Goes past an instruction. A value that is used has arrived, and so have all that were asked
    /// for before it.
    fn pass(&mut self, i: &Instruction) {
        let used = sources(i).iter().filter_map(|r| self.asked.get(&key(r)).copied()).max();
        if let Some(used) = used {
            self.round = self.round.max(used + 1);
        }
        for r in destinations(i) {
            if is_global_load(i) {
                self.asked.insert(key(&r), self.round);
            } else {
                self.asked.remove(&key(&r));
            }
        }
    }
}

impl<'a> Body<'a> {
    fn of(function: &'a Function) -> Body<'a> {
        let (mut list, mut labels) = (Vec::new(), HashMap::new());
        for statement in &function.body {
            match statement {
                Statement::Label { name } => drop(labels.insert(name.as_str(), list.len())),
                Statement::Instruction(i) => list.push(i),
            }
        }
        let (mut back, mut forward, mut targets) = (Vec::new(), Vec::new(), HashMap::new());
        for (at, i) in list.iter().enumerate() {
            let (true, Some(Operand::Label(label))) = (is(i, "bra"), i.operands.first()) else {
                continue;
            };
            let Some(&target) = labels.get(label.as_str()) else { continue };
            targets.insert(at, target);
            if target <= at {
                back.push((at, target));
            } else if i.guard.is_some() {
                forward.push(at);
            }
        }
        Body { name: &function.name, list, back, forward, targets }
    }

    fn audit(&self) -> Audit {
        let (load_rounds, first_bulk) = self.load_rounds();
        let division = |at: &usize| {
            matches!(self.list[*at].opcode[0].as_str(), "div" | "rem")
                && self.list[*at].opcode.last().is_some_and(|ty| ty == "s64" || ty == "u64")
        };
        let looped = |at: &usize| self.back.iter().any(|(end, start)| (start..=end).contains(&at));
        let divisions = (0..self.list.len()).filter(|at| division(at) && looped(at));
        Audit {
            kernel: self.name.to_string(),
            load_rounds,
            first_bulk,
            branches_before_products: self.branches_before_products(),
            divisions_in_loops: divisions.map(|at| self.list[at].line).collect(),
            loops: self.innermost().map(|(end, start)| self.describe(start, end)).collect(),
        }
    }

    /// Loops without another one in them.
    fn innermost(&self) -> impl Iterator<Item = (usize, usize)> {
        let inside = |inner: &(usize, usize), outer: &(usize, usize)| {
            inner != outer && inner.0 <= outer.0 && inner.1 >= outer.1
        };
        let list = self.back.iter().filter(move |l| !self.back.iter().any(|m| inside(m, l)));
        list.copied()
    }

    fn describe(&self, start: usize, end: usize) -> Loop {
        let body = &self.list[start..=end];
        let count = |test: fn(&Instruction) -> bool| body.iter().filter(|i| test(i)).count();
        Loop {
            lines: [self.list[start].line, self.list[end].line],
            instructions: body.len(),
            products: count(is_product),
            loads: count(|i| is_global_load(i) || is_copy(i)),
            shared_stores: count(|i| is(i, "st") && has(i, "shared")),
        }
    }

    /// How often a load has to wait for one before it, on the way to a bulk load that waits least.
    fn load_rounds(&self) -> (usize, Option<u32>) {
        let mut open = vec![Way::default()];
        let mut seen = HashSet::new();
        let mut end = None;
        while let Some(best) = (0..open.len()).min_by_key(|&w| (open[w].round, open[w].at)) {
            let mut way = open.swap_remove(best);
            while seen.insert(way.at) {
                let Some(i) = self.list.get(way.at) else { break };
                if is_copy(i) || (is_global_load(i) && bytes(i) >= 16) {
                    return (way.round, Some(i.line));
                }
                way.pass(i);
                if is(i, "ret") || is(i, "exit") {
                    end = end.max(Some(way.round));
                }
                let target = self.targets.get(&way.at).copied();
                match (target, i.guard) {
                    (Some(target), None) => way.at = target,
                    (Some(target), Some(_)) => {
                        open.push(Way { at: target, ..way.clone() });
                        way.at += 1;
                    }
                    (None, None) if is(i, "ret") || is(i, "exit") || is(i, "trap") => break,
                    (None, _) => way.at += 1,
                }
            }
        }
        (end.unwrap_or(0), None)
    }

    /// Branches between a load and the product that uses its value, in the smallest loop around the
    /// product.
    fn branches_before_products(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for (start, end) in self.product_loops() {
            // The first load from which a register's value comes, in this turn of the loop.
            let mut born: HashMap<(Class, u32), usize> = HashMap::new();
            for at in start..=end {
                let i = self.list[at];
                let from = sources(i).iter().filter_map(|r| born.get(&key(r)).copied()).min();
                if is_product(i) {
                    let first = from.unwrap_or(at);
                    let between = self.forward.iter().filter(|b| (first..at).contains(*b));
                    found.extend(between.map(|&b| self.list[b].line));
                }
                let from = if is_fragment_load(i) || is_global_load(i) { Some(at) } else { from };
                for r in destinations(i) {
                    match from.filter(|_| !is_product(i)) {
                        Some(first) => born.insert(key(&r), first),
                        None => born.remove(&key(&r)),
                    };
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The smallest loop around each product.
    fn product_loops(&self) -> Vec<(usize, usize)> {
        let products = (0..self.list.len()).filter(|&at| is_product(self.list[at]));
        let around = |at: usize| {
            let holds = self.back.iter().filter(move |(end, start)| (*start..=*end).contains(&at));
            holds.map(|&(end, start)| (start, end)).min_by_key(|(start, end)| end - start)
        };
        let mut loops: Vec<(usize, usize)> = products.filter_map(around).collect();
        loops.sort_unstable();
        loops.dedup();
        loops
    }
}

fn key(r: &Reg) -> (Class, u32) {
    (r.class, r.index)
}

pub(crate) fn is(i: &Instruction, name: &str) -> bool {
    i.opcode[0] == name
}

pub(crate) fn has(i: &Instruction, modifier: &str) -> bool {
    i.opcode[1..].iter().any(|m| m == modifier || m.starts_with(&format!("{modifier}::")))
}

fn is_product(i: &Instruction) -> bool {
    is(i, "mma") || (is(i, "wgmma") && has(i, "mma_async"))
}

/// Loads of global memory, also by generic addresses, which kernels use for nothing else.
fn is_global_load(i: &Instruction) -> bool {
    let other = ["shared", "local", "param", "const"].iter().any(|space| has(i, space));
    (is(i, "ld") && !other) || is(i, "atom")
}

/// Loads of operands of products out of shared memory.
fn is_fragment_load(i: &Instruction) -> bool {
    is(i, "ldmatrix") || (is(i, "ld") && has(i, "shared"))
}

/// Copies from global to shared memory that do not wait.
fn is_copy(i: &Instruction) -> bool {
    is(i, "cp")
        && has(i, "async")
        && (has(i, "global") || has(i, "bulk"))
        && !has(i, "commit_group")
}

/// Bytes that a load moves for a lane.
fn bytes(i: &Instruction) -> usize {
    let bits = i.opcode.last().and_then(|ty| text::ast::type_bits(ty)).unwrap_or(0) as usize;
    let count = if has(i, "v4") {
        4
    } else if has(i, "v2") {
        2
    } else {
        1
    };
    bits / 8 * count
}

#[cfg(test)]
mod tests;
