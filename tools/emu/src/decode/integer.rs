//! Integer arithmetic and logic. 16-bit values live in the low half of a 32-bit register.

use super::lanes::*;
use super::{Decode, Ops};
use crate::machine::counters::Work;
use crate::text::ast::type_of;

/// Sign or zero extension of 16-bit operands, the identity for 32 bits.
fn extend(bits: u32, signed: bool) -> impl Fn(u32) -> u32 + Copy {
    move |x| match (bits, signed) {
        (16, true) => x as u16 as i16 as i32 as u32,
        (16, false) => x as u16 as u32,
        _ => x,
    }
}

fn cut(bits: u32) -> impl Fn(u32) -> u32 + Copy {
    move |x| if bits == 16 { x & 0xffff } else { x }
}

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let name = ops.name().to_string();
    let run = match name.as_str() {
        "and" | "or" | "xor" | "not" | "shl" | "shr" | "lop3" | "cnot" => logic(ops, &name),
        "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "bmsk" | "fns" | "szext" | "shf"
        | "prmt" | "dp4a" | "dp2a" => bits(ops, &name),
        _ => arithmetic(ops, &name),
    }?;
    Ok((Work::Integer, run))
}

fn arithmetic(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<super::Execute, String> {
    let (bits, signed) = type_of(ops.ty()).ok_or("this type is not supported")?;
    if bits == 64 {
        return arithmetic64(ops, name, signed);
    }
    let (x, c) = (extend(bits, signed), cut(bits));
    match name {
        "add" if ops.has("sat") => nn_n(ops, |a, b| (a as i32).saturating_add(b as i32) as u32),
        "sub" if ops.has("sat") => nn_n(ops, |a, b| (a as i32).saturating_sub(b as i32) as u32),
        "mul" | "mad" => multiply(ops, name, bits, signed),
        "mul24" | "mad24" => ops.unknown(),
        _ => {
            ops.only(&[])?;
            match name {
                "add" => nn_n(ops, move |a, b| c(a.wrapping_add(b))),
                "sub" => nn_n(ops, move |a, b| c(a.wrapping_sub(b))),
                "neg" => n_n(ops, move |a| c(a.wrapping_neg())),
                "abs" => n_n(ops, move |a| c((x(a) as i32).unsigned_abs())),
                "min" if signed => nn_n(ops, move |a, b| c((x(a) as i32).min(x(b) as i32) as u32)),
                "max" if signed => nn_n(ops, move |a, b| c((x(a) as i32).max(x(b) as i32) as u32)),
                "min" => nn_n(ops, move |a, b| x(a).min(x(b))),
                "max" => nn_n(ops, move |a, b| x(a).max(x(b))),
                "div" if signed => nn_n(ops, move |a, b| {
                    let (a, b) = (x(a) as i32, x(b) as i32);
                    c(if b == 0 { u32::MAX } else { a.wrapping_div(b) as u32 })
                }),
                "div" => nn_n(ops, move |a, b| c(x(a).checked_div(x(b)).unwrap_or(u32::MAX))),
                "rem" if signed => nn_n(ops, move |a, b| {
                    let (a, b) = (x(a) as i32, x(b) as i32);
                    c(if b == 0 { a as u32 } else { a.wrapping_rem(b) as u32 })
                }),
                // What an H200 leaves after a division by 0; PTX promises nothing.
                "rem" => nn_n(ops, move |a, b| c(x(a).checked_rem(x(b)).unwrap_or(u32::MAX))),
                "sad" if signed => {
                    nnn_n(ops, move |a, b, d| d.wrapping_add((x(a) as i32).abs_diff(x(b) as i32)))
                }
                "sad" => nnn_n(ops, move |a, b, d| d.wrapping_add(x(a).abs_diff(x(b)))),
                _ => ops.unknown(),
            }
        }
    }
}

fn arithmetic64(
    ops: &mut Ops<'_, '_, '_, '_>,
    name: &str,
    signed: bool,
) -> Result<super::Execute, String> {
    if name == "mul" || name == "mad" {
        ops.only(&["lo", "hi"])?;
        let high = move |a: u64, b: u64| {
            if signed {
                ((a as i64 as i128 * b as i64 as i128) >> 64) as u64
            } else {
                ((a as u128 * b as u128) >> 64) as u64
            }
        };
        return match (name, ops.has("hi"), ops.has("lo")) {
            ("mul", false, true) => ww_w(ops, |a, b| a.wrapping_mul(b)),
            ("mul", true, false) => ww_w(ops, high),
            ("mad", false, true) => www_w(ops, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            ("mad", true, false) => www_w(ops, move |a, b, c| high(a, b).wrapping_add(c)),
            _ => ops.unknown(),
        };
    }
    ops.only(&[])?;
    match name {
        "add" => ww_w(ops, |a, b| a.wrapping_add(b)),
        "sub" => ww_w(ops, |a, b| a.wrapping_sub(b)),
        "neg" => w_w(ops, |a| a.wrapping_neg()),
        "abs" => w_w(ops, |a| (a as i64).unsigned_abs()),
        "min" if signed => ww_w(ops, |a, b| (a as i64).min(b as i64) as u64),
        "max" if signed => ww_w(ops, |a, b| (a as i64).max(b as i64) as u64),
        "min" => ww_w(ops, |a, b| a.min(b)),
        "max" => ww_w(ops, |a, b| a.max(b)),
        "div" if signed => {
            ww_w(
                ops,
                |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 },
            )
        }
        "div" => ww_w(ops, |a, b| a.checked_div(b).unwrap_or(u64::MAX)),
        "rem" if signed => {
            ww_w(ops, |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 })
        }
        "rem" => ww_w(ops, |a, b| a.checked_rem(b).unwrap_or(u64::MAX)),
        _ => ops.unknown(),
    }
}

fn multiply(
    ops: &mut Ops<'_, '_, '_, '_>,
    name: &str,
    bits: u32,
    signed: bool,
) -> Result<super::Execute, String> {
    ops.only(&["lo", "hi", "wide"])?;
    let (x, c) = (extend(bits, signed), cut(bits));
    let full = move |a: u32, b: u32| -> u64 {
        if signed {
            (x(a) as i32 as i64 * x(b) as i32 as i64) as u64
        } else {
            x(a) as u64 * x(b) as u64
        }
    };
    match (name, ops.instruction.opcode[1].as_str()) {
        ("mul", "lo") => nn_n(ops, move |a, b| c(a.wrapping_mul(b))),
        ("mul", "hi") => nn_n(ops, move |a, b| c((full(a, b) >> bits) as u32)),
        ("mul", "wide") if bits == 16 => nn_n(ops, move |a, b| full(a, b) as u32),
        ("mul", "wide") => nn_w(ops, full),
        ("mad", "lo") => nnn_n(ops, move |a, b, d| c(a.wrapping_mul(b).wrapping_add(d))),
        ("mad", "hi") => {
            nnn_n(ops, move |a, b, d| c(((full(a, b) >> bits) as u32).wrapping_add(d)))
        }
        ("mad", "wide") if bits == 16 => {
            nnn_n(ops, move |a, b, d| (full(a, b) as u32).wrapping_add(d))
        }
        ("mad", "wide") => nnw_w(ops, move |a, b, d| full(a, b).wrapping_add(d)),
        _ => ops.unknown(),
    }
}

fn logic(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<super::Execute, String> {
    ops.only(&[])?;
    if ops.ty() == "pred" {
        return match name {
            "and" => pp_p(ops, |a, b| a & b),
            "or" => pp_p(ops, |a, b| a | b),
            "xor" => pp_p(ops, |a, b| a ^ b),
            "not" => super::moves::not_predicate(ops),
            _ => ops.unknown(),
        };
    }
    let (bits, signed) = type_of(ops.ty()).ok_or("this type is not supported")?;
    if bits == 64 {
        return match name {
            "and" => ww_w(ops, |a, b| a & b),
            "or" => ww_w(ops, |a, b| a | b),
            "xor" => ww_w(ops, |a, b| a ^ b),
            "not" => w_w(ops, |a| !a),
            "cnot" => w_w(ops, |a| (a == 0) as u64),
            "shl" => wn_w(ops, |a, n| if n > 63 { 0 } else { a << n }),
            "shr" if signed => wn_w(ops, |a, n| ((a as i64) >> n.min(63)) as u64),
            "shr" => wn_w(ops, |a, n| if n > 63 { 0 } else { a >> n }),
            _ => ops.unknown(),
        };
    }
    let (x, c) = (extend(bits, signed), cut(bits));
    match name {
        "and" => nn_n(ops, |a, b| a & b),
        "or" => nn_n(ops, |a, b| a | b),
        "xor" => nn_n(ops, |a, b| a ^ b),
        "not" => n_n(ops, move |a| c(!a)),
        "cnot" => n_n(ops, move |a| (x(a) == 0) as u32),
        // Counts beyond the width shift everything out.
        "shl" => nn_n(ops, move |a, n| if n >= bits { 0 } else { c(a << n) }),
        "shr" if signed => nn_n(ops, move |a, n| c(((x(a) as i32) >> n.min(31)) as u32)),
        "shr" => nn_n(ops, move |a, n| if n > 31 { 0 } else { x(a) >> n }),
        "lop3" => {
            ops.count(5)?;
            let table = match ops.operand(4)? {
                super::Operand::Int(n) => *n as u32,
                other => return Err(format!("lop3 table {other:?}")),
            };
            nnnn_n(ops, move |a, b, d, _| {
                (0..8).filter(|i| table >> i & 1 != 0).fold(0, |r, i| {
                    let pick = |v: u32, bit: u32| if i & bit != 0 { v } else { !v };
                    r | (pick(a, 4) & pick(b, 2) & pick(d, 1))
                })
            })
        }
        _ => ops.unknown(),
    }
}

fn bits(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<super::Execute, String> {
    if name == "shf" {
        ops.only(&["l", "r", "wrap", "clamp"])?;
        let (left, wrap) = (ops.has("l"), ops.has("wrap"));
        return nnn_n(ops, move |lo, hi, n| {
            let n = if wrap { n & 31 } else { n.min(32) };
            let pair = (hi as u64) << 32 | lo as u64;
            if left { ((pair << n) >> 32) as u32 } else { (pair >> n) as u32 }
        });
    }
    if name == "dp4a" {
        let kinds: Vec<&str> = ops.modifiers();
        let [a_signed, b_signed] = match kinds.as_slice() {
            [a, b] => [*a == "s32", *b == "s32"],
            _ => return ops.unknown(),
        };
        let byte = |v: u32, i: u32, signed: bool| {
            let b = (v >> (8 * i)) as u8;
            if signed { b as i8 as i32 } else { b as i32 }
        };
        return nnn_n(ops, move |a, b, c| {
            (0..4).fold(c, |s, i| {
                s.wrapping_add((byte(a, i, a_signed) * byte(b, i, b_signed)) as u32)
            })
        });
    }
    let (width, signed) = type_of(ops.ty()).ok_or("this type is not supported")?;
    let amount = ops.has("shiftamt");
    ops.only(&["shiftamt"])?;
    match (name, width) {
        ("popc", 32) => n_n(ops, |a| a.count_ones()),
        ("popc", 64) => w_n(ops, |a| a.count_ones()),
        ("clz", 32) => n_n(ops, |a| a.leading_zeros()),
        ("clz", 64) => w_n(ops, |a| a.leading_zeros()),
        ("brev", 32) => n_n(ops, |a| a.reverse_bits()),
        ("brev", 64) => w_w(ops, |a| a.reverse_bits()),
        ("bfind", 32) => n_n(ops, move |a| {
            let a = if signed && (a as i32) < 0 { !a } else { a };
            find(a as u64, 32, amount)
        }),
        ("bfind", 64) => w_n(ops, move |a| {
            let a = if signed && (a as i64) < 0 { !a } else { a };
            find(a, 64, amount)
        }),
        ("bfe", 32) => {
            nnn_n(ops, move |a, p, n| extract(a as i32 as i64 as u64, 32, p, n, signed) as u32)
        }
        ("bfe", 64) => wnn_w(ops, move |a, p, n| extract(a, 64, p, n, signed)),
        ("bfi", 32) => nnnn_n(ops, |a, b, p, n| insert(a as u64, b as u64, 32, p, n) as u32),
        ("bfi", 64) => wwnn_w(ops, |a, b, p, n| insert(a, b, 64, p, n)),
        _ => ops.unknown(),
    }
}

/// Position of the highest set bit, or its distance from the top; all ones if there is none.
fn find(a: u64, width: u32, amount: bool) -> u32 {
    if a == 0 {
        return u32::MAX;
    }
    let position = 63 - a.leading_zeros();
    if amount { width - 1 - position } else { position }
}

/// `bfe`: position and length are the low 8 bits; bits above the value are its sign or zero.
fn extract(a: u64, width: u32, position: u32, length: u32, signed: bool) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let a = if width == 32 { a & 0xffff_ffff } else { a };
    let sign_at = (position + length).wrapping_sub(1).min(width - 1);
    let sign = signed && length > 0 && a >> sign_at & 1 != 0;
    (0..width).fold(0, |out, i| {
        let bit =
            if i < length && position + i < width { a >> (position + i) & 1 != 0 } else { sign };
        out | (bit as u64) << i
    })
}

/// `bfi`: the low bits of `a` placed into `b`.
fn insert(a: u64, b: u64, width: u32, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    (0..length).take_while(|i| position + i < width).fold(b, |out, i| {
        let bit = 1u64 << (position + i);
        if a >> i & 1 != 0 { out | bit } else { out & !bit }
    })
}
