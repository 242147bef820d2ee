//! f32 and f64 arithmetic. The approximate functions are computed in f64 and rounded once: hardware
//! is within 2 ulp of that, so tests of kernels that use them compare with a tolerance.

use super::lanes::*;
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::num::{self, Round};

/// The rounding modifier; nearest if there is none.
pub(super) fn rounding(ops: &Ops<'_, '_, '_, '_>) -> Round {
    for m in ops.modifiers() {
        match m {
            "rz" => return Round::Zero,
            "rm" => return Round::Down,
            "rp" => return Round::Up,
            _ => {}
        }
    }
    Round::Nearest
}

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let name = ops.name().to_string();
    if ops.ty() == "f64" {
        return double(ops, &name);
    }
    if ops.has("approx") || name == "sin" || name == "cos" || ops.has("full") {
        return Ok((Work::Special, approximate(ops, &name)?));
    }
    let special = name == "div" || name == "sqrt" || name == "rcp";
    let work = if special { Work::Special } else { Work::Float };
    Ok((work, single(ops, &name)?))
}

fn single(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<Execute, String> {
    let (round, ftz, sat) = (rounding(ops), ops.has("ftz"), ops.has("sat"));
    let i = move |x: f32| if ftz { num::flush(x) } else { x };
    let o = move |x: f32| {
        let x = if ftz { num::flush(x) } else { x };
        if sat { num::saturate(x) } else { x }
    };
    let plain = !ftz && !sat && round == Round::Nearest;
    match name {
        "add" | "sub" | "mul" | "fma" | "mad" => {
            ops.only(&["rn", "rz", "rm", "rp", "ftz", "sat"])?
        }
        "div" | "sqrt" | "rcp" => ops.only(&["rn", "rz", "rm", "rp", "ftz"])?,
        "min" | "max" => ops.only(&["ftz", "NaN", "xorsign", "abs"])?,
        "copysign" => ops.only(&[])?,
        _ => ops.only(&["ftz"])?,
    }
    match name {
        "add" if plain => ff_f(ops, |a, b| num::add32(a, b, Round::Nearest)),
        "sub" if plain => ff_f(ops, |a, b| num::add32(a, -b, Round::Nearest)),
        "mul" if plain => ff_f(ops, |a, b| num::mul32(a, b, Round::Nearest)),
        "fma" | "mad" if plain => fff_f(ops, |a, b, c| num::fma32(a, b, c, Round::Nearest)),
        "add" => ff_f(ops, move |a, b| o(num::add32(i(a), i(b), round))),
        "sub" => ff_f(ops, move |a, b| o(num::add32(i(a), -i(b), round))),
        "mul" => ff_f(ops, move |a, b| o(num::mul32(i(a), i(b), round))),
        "fma" | "mad" => fff_f(ops, move |a, b, c| o(num::fma32(i(a), i(b), i(c), round))),
        "div" => ff_f(ops, move |a, b| o(num::div32(i(a), i(b), round))),
        "rcp" => f_f(ops, move |a| o(num::div32(1.0, i(a), round))),
        "sqrt" => f_f(ops, move |a| o(num::sqrt32(i(a), round))),
        "neg" => {
            n_n(ops, move |a| if ftz { i(-f32::from_bits(a)).to_bits() } else { a ^ 0x8000_0000 })
        }
        "abs" => n_n(
            ops,
            move |a| if ftz { i(f32::from_bits(a).abs()).to_bits() } else { a & 0x7fff_ffff },
        ),
        "min" | "max" => {
            let (max, nan, xorsign) = (name == "max", ops.has("NaN"), ops.has("xorsign"));
            ff_f(ops, move |a, b| {
                let (a, b) = (i(a), i(b));
                if xorsign {
                    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
                    let m = num::extreme(a.abs() as f64, b.abs() as f64, max, nan) as f32;
                    return f32::from_bits(m.to_bits() | sign);
                }
                let m = num::extreme(a as f64, b as f64, max, nan);
                m as f32
            })
        }
        "copysign" => nn_n(ops, |a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        "testp" => ops.unknown(),
        _ => ops.unknown(),
    }
}

fn approximate(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Result<Execute, String> {
    ops.only(&["approx", "ftz", "full"])?;
    let ftz = ops.has("ftz");
    let i = move |x: f32| if ftz { num::flush(x) } else { x };
    let o = move |x: f64| {
        let y = num::narrow(x, Round::Nearest);
        if ftz { num::flush(y) } else { y }
    };
    match name {
        "ex2" => f_f(ops, move |a| o(num::exp2(i(a) as f64))),
        "lg2" => f_f(ops, move |a| o((i(a) as f64).log2())),
        "rcp" => f_f(ops, move |a| o(1.0 / i(a) as f64)),
        "rsqrt" => f_f(ops, move |a| o(1.0 / (i(a) as f64).sqrt())),
        "sqrt" => f_f(ops, move |a| o((i(a) as f64).sqrt())),
        "sin" => f_f(ops, move |a| o((i(a) as f64).sin())),
        "cos" => f_f(ops, move |a| o((i(a) as f64).cos())),
        "tanh" => f_f(ops, move |a| o((i(a) as f64).tanh())),
        "div" => ff_f(ops, move |a, b| o(i(a) as f64 / i(b) as f64)),
        _ => ops.unknown(),
    }
}

fn double(ops: &mut Ops<'_, '_, '_, '_>, name: &str) -> Decode {
    let round = rounding(ops);
    if ops.has("approx") {
        // 20 good bits of the high word, the low word zero.
        let cut = |x: f64| f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000);
        let run = match name {
            "rcp" => d_d(ops, move |a| cut(1.0 / a)),
            "rsqrt" => d_d(ops, move |a| cut(1.0 / a.sqrt())),
            _ => ops.unknown(),
        };
        return Ok((Work::Special, run?));
    }
    ops.only(&["rn", "rz", "rm", "rp"])?;
    let run = match name {
        "add" => dd_d(ops, move |a, b| num::add64(a, b, round)),
        "sub" => dd_d(ops, move |a, b| num::add64(a, -b, round)),
        "mul" => dd_d(ops, move |a, b| num::mul64(a, b, round)),
        "fma" | "mad" if round == Round::Nearest => ddd_d(ops, num::fma64),
        "div" => dd_d(ops, move |a, b| num::div64(a, b, round)),
        "rcp" => d_d(ops, move |a| num::div64(1.0, a, round)),
        "sqrt" => d_d(ops, move |a| num::sqrt64(a, round)),
        "neg" => w_w(ops, |a| a ^ (1 << 63)),
        "abs" => w_w(ops, |a| a & !(1 << 63)),
        "min" | "max" => {
            let max = name == "max";
            dd_d(ops, move |a, b| num::extreme(a, b, max, false))
        }
        "copysign" => ww_w(ops, |a, b| (b & !(1 << 63)) | (a & (1 << 63))),
        _ => ops.unknown(),
    };
    Ok((Work::Double, run?))
}
