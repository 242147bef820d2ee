//! `cvt`: between integers, floats and packed pairs.

use super::lanes::*;
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::num::{self, Bf16, F16, Half, Round};
use crate::text::ast::type_of;

/// A type of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ty {
    Int { bits: u32, signed: bool },
    F16,
    Bf16,
    F32,
    F64,
}

impl Ty {
    fn named(name: &str) -> Option<Ty> {
        Some(match name {
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => {
                let (bits, signed) = type_of(name)?;
                Ty::Int { bits, signed }
            }
        })
    }

    fn is_float(self) -> bool {
        !matches!(self, Ty::Int { .. })
    }

    fn wide(self) -> bool {
        matches!(self, Ty::F64 | Ty::Int { bits: 64, .. })
    }
}

/// To an integral value, in a direction: `.rni` and its like.
fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

struct Conversion {
    from: Ty,
    to: Ty,
    round: Round,
    /// Rounds to an integral value.
    to_integral: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
}

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let modifiers: Vec<String> = ops.modifiers().iter().map(|m| m.to_string()).collect();
    if modifiers.len() >= 2 && modifiers[modifiers.len() - 2].ends_with("x2") {
        return Ok((Work::Convert, pack(ops, &modifiers)?));
    }
    if ops.ty().starts_with("e4m3") || ops.ty().starts_with("e5m2") {
        return ops.unknown();
    }
    let (Some(from), Some(to)) = (
        Ty::named(ops.ty()),
        modifiers.len().checked_sub(2).and_then(|i| Ty::named(&modifiers[i])),
    ) else {
        return ops.unknown();
    };
    let (mut round, mut to_integral) = (Round::Nearest, false);
    let (mut ftz, mut sat, mut relu) = (false, false, false);
    for m in &modifiers[..modifiers.len() - 2] {
        match m.as_str() {
            "rn" | "rni" => round = Round::Nearest,
            "rz" | "rzi" => round = Round::Zero,
            "rm" | "rmi" => round = Round::Down,
            "rp" | "rpi" => round = Round::Up,
            "ftz" => ftz = true,
            "sat" => sat = true,
            "relu" => relu = true,
            _ => return ops.unknown(),
        }
        to_integral |= m.ends_with('i');
    }
    ops.count(2)?;
    let conversion = Conversion { from, to, round, to_integral, ftz, sat, relu };
    let usual = ops.in_wide(1).is_none_or(|w| w == from.wide());
    // The common conversions without a general detour.
    let run = match (from, to, to_integral || sat || ftz || relu || !usual, round) {
        (Ty::F32, Ty::Bf16, false, Round::Nearest) => n_n(ops, |a| bf16_nearest(a) as u32),
        (Ty::F64, Ty::F32, false, Round::Nearest) => {
            w_n(ops, |a| one_nan(num::narrow(f64::from_bits(a), Round::Nearest)))
        }
        (Ty::F32, Ty::F64, false, _) => n_w(ops, |a| widen64(f32::from_bits(a))),
        (Ty::Int { bits: 32, signed: true }, Ty::Int { bits: 64, .. }, false, _) => {
            n_w(ops, |a| a as i32 as i64 as u64)
        }
        (Ty::Int { bits: 32, .. }, Ty::Int { bits: 64, .. }, false, _) => n_w(ops, |a| a as u64),
        (Ty::Int { bits: 64, .. }, Ty::Int { bits: 32, .. }, false, _) => w_n(ops, |a| a as u32),
        // A value may stand in a register wider than its type.
        _ => match (ops.in_wide(1).unwrap_or(from.wide()), ops.in_wide(0).unwrap_or(to.wide())) {
            (false, false) => n_n(ops, move |a| conversion.apply(a as u64) as u32),
            (false, true) => n_w(ops, move |a| conversion.apply(a as u64)),
            (true, false) => w_n(ops, move |a| conversion.apply(a) as u32),
            (true, true) => w_w(ops, move |a| conversion.apply(a)),
        },
    };
    Ok((Work::Convert, run?))
}

fn widen64(x: f32) -> u64 {
    one_nan64(x as f64)
}

/// f32 to bf16 in integer arithmetic.
#[inline(always)]
fn bf16_nearest(bits: u32) -> u16 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return Bf16::NAN;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

impl Conversion {
    fn apply(&self, bits: u64) -> u64 {
        match (self.from.is_float(), self.to.is_float()) {
            (false, false) => self.int_to_int(bits),
            (false, true) => self.int_to_float(bits),
            (true, false) => self.float_to_int(self.source(bits)),
            (true, true) => self.float_to_float(self.source(bits)),
        }
    }

    fn source(&self, bits: u64) -> f64 {
        match self.from {
            Ty::F16 => F16::widen(bits as u16) as f64,
            Ty::Bf16 => Bf16::widen(bits as u16) as f64,
            Ty::F32 => {
                let x = f32::from_bits(bits as u32);
                (if self.ftz { num::flush(x) } else { x }) as f64
            }
            _ => f64::from_bits(bits),
        }
    }

    fn integer(&self, bits: u64) -> i128 {
        let Ty::Int { bits: width, signed } = self.from else { return 0 };
        let shift = 64 - width;
        if signed {
            (((bits << shift) as i64) >> shift) as i128
        } else {
            ((bits << shift) >> shift) as i128
        }
    }

    fn int_to_int(&self, bits: u64) -> u64 {
        let value = self.integer(bits);
        let value = if self.sat { self.clamp(value) } else { value };
        self.in_register(value as u64)
    }

    fn clamp(&self, value: i128) -> i128 {
        let Ty::Int { bits, signed } = self.to else { return value };
        let (low, high) = match signed {
            true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
            false => (0, (1i128 << bits) - 1),
        };
        value.clamp(low, high)
    }

    /// A result narrower than its register is extended into it.
    fn in_register(&self, value: u64) -> u64 {
        let Ty::Int { bits, signed } = self.to else { return value };
        let shift = 64 - bits;
        if signed { (((value << shift) as i64) >> shift) as u64 } else { (value << shift) >> shift }
    }

    fn int_to_float(&self, bits: u64) -> u64 {
        let value = self.integer(bits);
        if self.to == Ty::F64 {
            return directed(value, self.round).to_bits();
        }
        if self.to == Ty::F32 && self.round == Round::Nearest {
            return (value as f32).to_bits() as u64;
        }
        // f64 cut towards zero with its last bit set if inexact, then the final rounding.
        let cut = directed(value, Round::Zero);
        let odd = if cut as i128 == value { cut } else { f64::from_bits(cut.to_bits() | 1) };
        self.encode(odd)
    }

    fn encode(&self, x: f64) -> u64 {
        match self.to {
            Ty::F16 => F16::encode(x, self.round) as u64,
            Ty::Bf16 => Bf16::encode(x, self.round) as u64,
            Ty::F32 => {
                let y = num::narrow(x, self.round);
                one_nan(if self.ftz { num::flush(y) } else { y }) as u64
            }
            _ => one_nan64(x),
        }
    }

    fn float_to_int(&self, x: f64) -> u64 {
        let Ty::Int { bits, .. } = self.to else { return 0 };
        if x.is_nan() {
            let wide = bits == 64 || self.from == Ty::F64;
            return if wide { self.in_register(1 << (bits - 1)) } else { 0 };
        }
        let limited = integral(x, self.round).clamp(-1e30, 1e30);
        self.in_register(self.clamp(limited as i128) as u64)
    }

    fn float_to_float(&self, x: f64) -> u64 {
        let mut x = if self.to_integral { integral(x, self.round) } else { x };
        if self.sat {
            x = if x > 0.0 { x.min(1.0) } else { 0.0 };
        }
        if self.relu && x < 0.0 {
            x = 0.0;
        }
        self.encode(x)
    }
}

/// An integer as f64 in a direction.
fn directed(value: i128, round: Round) -> f64 {
    let near = value as f64;
    let lack = value - near as i128;
    match round {
        Round::Down if lack < 0 => near.next_down(),
        Round::Up if lack > 0 => near.next_up(),
        Round::Zero if value > 0 && lack < 0 => near.next_down(),
        Round::Zero if value < 0 && lack > 0 => near.next_up(),
        _ => near,
    }
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a in the upper half, b in the lower.
fn pack(ops: &mut Ops<'_, '_, '_, '_>, modifiers: &[String]) -> Result<Execute, String> {
    let (to, from) = (modifiers[modifiers.len() - 2].as_str(), ops.ty().to_string());
    let (mut round, mut relu) = (Round::Nearest, false);
    for m in &modifiers[..modifiers.len() - 2] {
        match m.as_str() {
            "rn" => {}
            "rz" => round = Round::Zero,
            "relu" => relu = true,
            _ => return ops.unknown(),
        }
    }
    let encode: fn(f64, Round) -> u16 = match (to, from.as_str()) {
        ("bf16x2", "f32") => Bf16::encode,
        ("f16x2", "f32") => F16::encode,
        _ => return ops.unknown(),
    };
    if to == "bf16x2" && round == Round::Nearest && !relu {
        return nn_n(ops, |a, b| (bf16_nearest(a) as u32) << 16 | bf16_nearest(b) as u32);
    }
    let half = move |bits: u32| {
        let x = f32::from_bits(bits) as f64;
        encode(if relu && x < 0.0 { 0.0 } else { x }, round) as u32
    };
    nn_n(ops, move |a, b| half(a) << 16 | half(b))
}
