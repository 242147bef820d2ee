//! Moves, selections, comparisons.

use super::lanes::*;
use super::{Decode, Execute, Ops};
use crate::machine::Flow;
use crate::machine::counters::Work;
use crate::num::{self, Bf16, F16, Half};
use crate::text::ast::{Class, Operand, Reg, type_bits, type_of};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let run = match ops.name() {
        "mov" => mov(ops)?,
        "selp" => select(ops)?,
        "setp" => setp(ops)?,
        "set" => return ops.unknown(),
        "slct" => slct(ops)?,
        _ => prmt(ops)?,
    };
    Ok((Work::Move, run))
}

fn mov(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.only(&[])?;
    ops.count(2)?;
    if ops.ty() == "pred" {
        return mov_predicate(ops);
    }
    let bits = type_bits(ops.ty()).ok_or("this type is not supported")?;
    match (ops.operand(0)?.clone(), ops.operand(1)?.clone()) {
        (Operand::Vector(parts), _) => unpack(ops, bits, &parts),
        (_, Operand::Vector(parts)) => pack(ops, bits, &parts),
        (_, Operand::Special(name)) if dynamic(&name) => special(ops, &name),
        _ if bits == 64 => w_w(ops, |a| a),
        _ => n_n(ops, |a| a),
    }
}

fn mov_predicate(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let d = ops.dst(0, Class::Predicate)?;
    if let Operand::Int(n) = ops.operand(1)? {
        let value = if *n != 0 { u32::MAX } else { 0 };
        return Ok(Box::new(move |c, mask| {
            c.warp.registers.set_predicate(d, value, mask, mask);
            Ok(Flow::Next)
        }));
    }
    not_or_same(ops, d, false)
}

/// `not.pred`.
pub(super) fn not_predicate(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let d = ops.dst(0, Class::Predicate)?;
    not_or_same(ops, d, true)
}

fn not_or_same(ops: &mut Ops<'_, '_, '_, '_>, d: usize, flip: bool) -> Result<Execute, String> {
    let (a, negated) = ops.predicate(1)?;
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let value = if negated != flip { !r.predicate[a] } else { r.predicate[a] };
        let known = r.known(Class::Predicate, a);
        r.set_predicate(d, value, mask, known);
        Ok(Flow::Next)
    }))
}

/// Special registers that change while a warp runs.
fn dynamic(name: &str) -> bool {
    matches!(name, "%clock" | "%clock64" | "%globaltimer" | "%smid" | "%nsmid")
}

fn special(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<Execute, String> {
    match name {
        "%clock64" | "%globaltimer" => {
            let d = ops.dst(0, Class::Wide)?;
            Ok(Box::new(move |c, mask| {
                let now = c.warp.executed;
                c.warp.registers.set_wide(d, &[now; 32], mask, mask);
                Ok(Flow::Next)
            }))
        }
        _ => {
            let (d, clock) = (ops.dst(0, Class::Narrow)?, name == "%clock");
            Ok(Box::new(move |c, mask| {
                let value = if clock { c.warp.executed as u32 } else { 0 };
                c.warp.registers.set_narrow(d, &[value; 32], mask, mask);
                Ok(Flow::Next)
            }))
        }
    }
}

/// `mov.b64 {a, b}, c`: the lowest bits go to the first part; `_` drops its part.
fn unpack(ops: &mut Ops<'_, '_, '_, '_>, bits: u8, parts: &[Operand]) -> Result<Execute, String> {
    let part_bits = bits as u32 / parts.len() as u32;
    let part_mask = u64::MAX >> (64 - part_bits);
    let mut targets = Vec::new();
    for part in parts {
        targets.push(match part {
            Operand::Reg(reg) => Some(ops.reg(*reg, Class::Narrow)?),
            Operand::Symbol(name) if name == "_" => None,
            other => return Err(format!("unpacking into {other:?}")),
        });
    }
    let wide = bits == 64;
    let source = if wide { ops.wide(1)? } else { ops.narrow(1)? };
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let known = r.known(if wide { Class::Wide } else { Class::Narrow }, source);
        let value = |r: &crate::machine::registers::Registers, lane: usize| match wide {
            true => r.wide[source][lane],
            false => r.narrow[source][lane] as u64,
        };
        let all: [u64; 32] = std::array::from_fn(|lane| value(r, lane));
        for (i, target) in targets.iter().enumerate() {
            if let Some(d) = *target {
                let row = std::array::from_fn(|lane| {
                    (all[lane] >> (i as u32 * part_bits) & part_mask) as u32
                });
                r.set_narrow(d, &row, mask, known);
            }
        }
        Ok(Flow::Next)
    }))
}

/// `mov.b64 c, {a, b}`.
fn pack(ops: &mut Ops<'_, '_, '_, '_>, bits: u8, parts: &[Operand]) -> Result<Execute, String> {
    let part_bits = bits as u32 / parts.len() as u32;
    let part_mask = u64::MAX >> (64 - part_bits);
    let sources: Vec<usize> = parts.iter().map(|p| ops.narrow_of(p)).collect::<Result<_, _>>()?;
    let wide = bits == 64;
    let d = ops.dst(0, if wide { Class::Wide } else { Class::Narrow })?;
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let (mut row, mut known) = ([0u64; 32], u32::MAX);
        for (i, &source) in sources.iter().enumerate() {
            known &= r.known(Class::Narrow, source);
            for lane in 0..32 {
                row[lane] |= (r.narrow[source][lane] as u64 & part_mask) << (i as u32 * part_bits);
            }
        }
        if wide {
            r.set_wide(d, &row, mask, known);
        } else {
            r.set_narrow(d, &row.map(|x| x as u32), mask, known);
        }
        Ok(Flow::Next)
    }))
}

/// `selp`: only the picked operand has to be defined.
fn select(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    ops.only(&[])?;
    ops.count(4)?;
    let (p, negated) = ops.predicate(3)?;
    let wide = type_bits(ops.ty()).ok_or("this type is not supported")? == 64;
    let class = if wide { Class::Wide } else { Class::Narrow };
    let (a, b) = if wide { (ops.wide(1)?, ops.wide(2)?) } else { (ops.narrow(1)?, ops.narrow(2)?) };
    let d = ops.dst(0, class)?;
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let first = if negated { !r.predicate[p] } else { r.predicate[p] };
        let known = r.known(Class::Predicate, p)
            & ((r.known(class, a) & first) | (r.known(class, b) & !first));
        let pick = |lane: usize| first >> lane & 1 != 0;
        if wide {
            let row = std::array::from_fn(|l| if pick(l) { r.wide[a][l] } else { r.wide[b][l] });
            r.set_wide(d, &row, mask, known);
        } else {
            let row =
                std::array::from_fn(|l| if pick(l) { r.narrow[a][l] } else { r.narrow[b][l] });
            r.set_narrow(d, &row, mask, known);
        }
        Ok(Flow::Next)
    }))
}

fn slct(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let by_float = ops.ty() == "f32";
    let first = move |c: u32| if by_float { f32::from_bits(c) >= 0.0 } else { (c as i32) >= 0 };
    nnn_n(ops, move |a, b, c| if first(c) { a } else { b })
}

fn prmt(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    if ops.ty() != "b32" {
        let mode = ops.ty().to_string();
        return Err(format!("`prmt` mode `.{mode}` is not supported"));
    }
    nnn_n(ops, |a, b, selector| {
        let bytes = (b as u64) << 32 | a as u64;
        (0..4).fold(0, |out, i| {
            let pick = selector >> (4 * i) & 15;
            let byte = (bytes >> (8 * (pick & 7))) as u8;
            let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
            out | (byte as u32) << (8 * i)
        })
    })
}

/// A comparison: what holds for less, equal, greater, unordered.
fn relation(name: &str) -> Option<[bool; 4]> {
    Some(match name {
        "eq" => [false, true, false, false],
        "ne" => [true, false, true, false],
        "lt" | "lo" => [true, false, false, false],
        "le" | "ls" => [true, true, false, false],
        "gt" | "hi" => [false, false, true, false],
        "ge" | "hs" => [false, true, true, false],
        "equ" => [false, true, false, true],
        "neu" => [true, false, true, true],
        "ltu" => [true, false, false, true],
        "leu" => [true, true, false, true],
        "gtu" => [false, false, true, true],
        "geu" => [false, true, true, true],
        "num" => [true, true, true, false],
        "nan" => [false, false, false, true],
        _ => return None,
    })
}

/// How two operands compare: an index into a relation.
fn order<T: PartialOrd>(a: T, b: T) -> usize {
    match a.partial_cmp(&b) {
        Some(std::cmp::Ordering::Less) => 0,
        Some(std::cmp::Ordering::Equal) => 1,
        Some(std::cmp::Ordering::Greater) => 2,
        None => 3,
    }
}

/// `setp.lt.and.s32 p|q, a, b, c`.
fn setp(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let modifiers: Vec<String> = ops.modifiers().iter().map(|m| m.to_string()).collect();
    let holds =
        relation(&modifiers[0]).ok_or(format!("comparison `{}` is not supported", modifiers[0]))?;
    let inner = &modifiers[1..modifiers.len() - 1];
    let (mut combine, mut ftz) = (None, false);
    for m in inner {
        match m.as_str() {
            "and" | "or" | "xor" => combine = Some(m.clone()),
            "ftz" => ftz = true,
            _ => return ops.unknown(),
        }
    }
    ops.count(if combine.is_some() { 4 } else { 3 })?;
    let other = if combine.is_some() { Some(ops.predicate(3)?) } else { None };
    let (first, second) = predicate_targets(ops)?;
    let compare = comparison(ops, holds, ftz)?;
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let (value, mut known) = compare(r);
        let (mut yes, mut no) = (value, !value);
        if let Some((p, negated)) = other {
            let q = if negated { !r.predicate[p] } else { r.predicate[p] };
            known &= r.known(Class::Predicate, p);
            let apply = |v: u32| match combine.as_deref() {
                Some("and") => v & q,
                Some("or") => v | q,
                _ => v ^ q,
            };
            (yes, no) = (apply(value), apply(!value));
        }
        if let Some(d) = first {
            r.set_predicate(d, yes, mask, known);
        }
        if let Some(d) = second {
            r.set_predicate(d, no, mask, known);
        }
        Ok(Flow::Next)
    }))
}

type Targets = (Option<usize>, Option<usize>);

fn predicate_targets(ops: &Ops<'_, '_, '_, '_>) -> Result<Targets, String> {
    let target = |reg: &Option<Reg>| reg.map(|r| ops.reg(r, Class::Predicate)).transpose();
    match ops.operand(0)? {
        Operand::Pair(a, b) => Ok((target(a)?, target(b)?)),
        _ => Ok((Some(ops.dst(0, Class::Predicate)?), None)),
    }
}

type Compare = Box<dyn Fn(&crate::machine::registers::Registers) -> (u32, u32) + Send + Sync>;

macro_rules! compare_rows {
    (@element narrow) => { u32 };
    (@element wide) => { u64 };
    ($file:ident, $class:ident, $a:ident, $b:ident, $holds:ident, |$x:ident| $value:expr) => {
        Box::new(move |r| {
            let known = r.known(Class::$class, $a) & r.known(Class::$class, $b);
            let (ra, rb) = (&r.$file[$a], &r.$file[$b]);
            let read = |$x: compare_rows!(@element $file)| $value;
            let mut out = 0u32;
            for lane in 0..32 {
                out |= ($holds[order(read(ra[lane]), read(rb[lane]))] as u32) << lane;
            }
            (out, known)
        })
    };
}

fn comparison(
    ops: &mut Ops<'_, '_, '_, '_>,
    holds: [bool; 4],
    ftz: bool,
) -> Result<Compare, String> {
    let ty = ops.ty().to_string();
    if matches!(ty.as_str(), "f64" | "b64" | "u64" | "s64") {
        let (a, b) = (ops.wide(1)?, ops.wide(2)?);
        return Ok(match ty.as_str() {
            "f64" => compare_rows!(wide, Wide, a, b, holds, |x| f64::from_bits(x)),
            "s64" => compare_rows!(wide, Wide, a, b, holds, |x| x as i64),
            _ => compare_rows!(wide, Wide, a, b, holds, |x| x),
        });
    }
    let (a, b) = (ops.narrow(1)?, ops.narrow(2)?);
    Ok(match ty.as_str() {
        "f32" if ftz => {
            compare_rows!(narrow, Narrow, a, b, holds, |x| num::flush(f32::from_bits(x)))
        }
        "f32" => compare_rows!(narrow, Narrow, a, b, holds, |x| f32::from_bits(x)),
        "f16" => compare_rows!(narrow, Narrow, a, b, holds, |x| F16::widen(x as u16)),
        "bf16" => compare_rows!(narrow, Narrow, a, b, holds, |x| Bf16::widen(x as u16)),
        _ => match type_of(&ty) {
            Some((32, true)) => compare_rows!(narrow, Narrow, a, b, holds, |x| x as i32),
            Some((32, false)) => compare_rows!(narrow, Narrow, a, b, holds, |x| x),
            Some((16, true)) => compare_rows!(narrow, Narrow, a, b, holds, |x| x as u16 as i16),
            Some((16, false)) => compare_rows!(narrow, Narrow, a, b, holds, |x| x as u16),
            _ => return ops.unknown(),
        },
    })
}
