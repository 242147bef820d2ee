//! Branches, exits, barriers and fences.

use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::machine::fault::{Fault, Kind};
use crate::machine::warp::join;
use crate::machine::{Arrival, Context, Flow, Reduction};
use crate::text::ast::{Class, Operand};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let name = ops.name().to_string();
    let run: Execute = match name.as_str() {
        "bra" => {
            let target = ops.target(0)?;
            Box::new(move |_, mask| Ok(Flow::Branch { taken: mask, target }))
        }
        "ret" => match ops.frame_end() {
            Some(target) => Box::new(move |_, mask| Ok(Flow::Branch { taken: mask, target })),
            None => Box::new(|_, mask| Ok(Flow::Exit(mask))),
        },
        "exit" => Box::new(|_, mask| Ok(Flow::Exit(mask))),
        "trap" => Box::new(|_, _| Err(Fault::new(Kind::Trap, "`trap` was executed"))),
        "bar" | "barrier" => barrier(ops)?,
        "membar" | "fence" => fence(ops)?,
        "nanosleep" => Box::new(|_, _| Ok(Flow::Yield)),
        // Hints: registers are virtual here, caches are not modelled.
        "setmaxnreg" | "prefetch" | "prefetchu" | "griddepcontrol" => {
            Box::new(|_, _| Ok(Flow::Next))
        }
        _ => return ops.unknown(),
    };
    Ok((Work::Control, run))
}

fn barrier(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let modifiers: Vec<String> = ops.modifiers().iter().map(|m| m.to_string()).collect();
    let has = |m: &str| modifiers.iter().any(|x| x == m);
    if has("warp") {
        return warp_barrier(ops);
    }
    if has("cluster") {
        let (arrive, wait) = (has("arrive"), has("wait"));
        return Ok(Box::new(move |_, _| Ok(Flow::ClusterBarrier { arrive, wait })));
    }
    let known = ["cta", "sync", "arrive", "red", "popc", "and", "or", "aligned", "u32", "pred"];
    if let Some(m) = modifiers.iter().find(|m| !known.contains(&m.as_str())) {
        return Err(format!("barrier modifier `.{m}` is not supported"));
    }
    // `bar` is `barrier` with all threads of the warp together.
    let aligned = ops.name() == "bar" || has("aligned");
    let reduction = match (has("red"), has("popc"), has("and")) {
        (false, ..) => None,
        (_, true, _) => Some(Reduction::Popc),
        (_, _, true) => Some(Reduction::And),
        _ => Some(Reduction::Or),
    };
    let first = reduction.is_some() as usize;
    let id = ops.narrow(first)?;
    let operands = ops.instruction.operands.len() - reduction.is_some() as usize;
    let threads = if operands > first + 1 { Some(ops.narrow(first + 1)?) } else { None };
    let predicate = match reduction {
        Some(_) => Some(ops.predicate(ops.instruction.operands.len() - 1)?),
        None => None,
    };
    let destination = match reduction {
        Some(Reduction::Popc) => ops.dst(0, Class::Narrow)? as u32,
        Some(_) => ops.dst(0, Class::Predicate)? as u32,
        None => 0,
    };
    let wait = !has("arrive");
    Ok(Box::new(move |c, mask| {
        let r = &c.warp.registers;
        let lane = mask.trailing_zeros() as usize;
        let barrier = r.narrow[id][lane];
        if barrier > 15 {
            return Err(Fault::new(Kind::Misuse, format!("barrier {barrier}, expected 0 to 15")));
        }
        let threads = threads.map(|t| r.narrow[t][lane]);
        if let Some(n) = threads.filter(|n| *n == 0 || !n.is_multiple_of(32)) {
            return Err(Fault::new(
                Kind::Misuse,
                format!("a barrier of {n} threads, expected whole warps"),
            ));
        }
        let holds = predicate.map_or(0, |(p, negated)| {
            mask & if negated { !r.predicate[p] } else { r.predicate[p] }
        });
        let reduction = reduction.map(|kind| (kind, holds, destination));
        Ok(Flow::Barrier(Arrival { barrier, threads, wait, aligned, reduction }))
    }))
}

/// `bar.warp.sync`: orders the memory accesses of the lanes it names.
fn warp_barrier(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let members = ops.narrow(0)?;
    Ok(Box::new(move |c, mask| {
        let members = c.warp.registers.narrow[members][mask.trailing_zeros() as usize];
        if members & c.warp.live & !mask != 0 {
            return Ok(Flow::Converge(members));
        }
        c.warp.tick();
        Ok(Flow::Next)
    }))
}

fn fence(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    if ops.has("proxy") {
        if ops.has("async") || ops.instruction.opcode.iter().any(|m| m.starts_with("async")) {
            return Ok(Box::new(|c, _| {
                c.show_barriers();
                let now = c.warp.clock.clone();
                join(&mut c.warp.proxy, &now);
                c.warp.tick();
                Ok(Flow::Next)
            }));
        }
        return ops.unknown();
    }
    if ops.has("mbarrier_init") {
        return Ok(Box::new(|c, _| {
            c.show_barriers();
            c.warp.tick();
            Ok(Flow::Next)
        }));
    }
    if !ops.instruction.operands.is_empty() {
        return ops.unknown();
    }
    let device = ops.has("gl") || ops.has("gpu") || ops.has("sys") || ops.has("cluster");
    Ok(Box::new(move |c, _| {
        if device {
            device_fence(c);
        }
        Ok(Flow::Next)
    }))
}

/// What came before may be published by the next atomic; what earlier atomics met is taken in.
pub(super) fn device_fence(c: &mut Context<'_>) {
    for address in std::mem::take(&mut c.warp.unfenced_atomics) {
        acquire(c, address);
    }
    c.warp.fenced = Some(c.warp.clock.clone());
    c.warp.tick();
}

/// Takes in what others published at an address.
pub(super) fn acquire(c: &mut Context<'_>, address: u64) {
    let Some(published) = c.memory.published.get(&address) else { return };
    for (&cluster, clock) in published {
        if cluster == c.cluster.index {
            join(&mut c.warp.clock, clock);
        } else {
            join(c.cluster.acquired.entry(cluster).or_default(), clock);
        }
    }
}

/// Publishes a clock, and everything acquired from other clusters, at an address.
pub(super) fn publish(c: &mut Context<'_>, address: u64, clock: &[u32]) {
    let at = c.memory.published.entry(address).or_default();
    join(at.entry(c.cluster.index).or_default(), clock);
    for (&cluster, clock) in &c.cluster.acquired {
        join(at.entry(cluster).or_default(), clock);
    }
}

impl Ops<'_, '_, '_, '_> {
    fn frame_end(&self) -> Option<usize> {
        self.frame.end
    }
}

/// The value of an immediate operand.
pub(super) fn immediate(operand: &Operand) -> Result<u64, String> {
    match operand {
        Operand::Int(n) => Ok(*n),
        other => Err(format!("{other:?} where a constant belongs")),
    }
}
