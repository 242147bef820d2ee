//! f16 and bf16 arithmetic, one value or two in a register.

use super::lanes::*;
use super::{Decode, Execute, Ops};
use crate::machine::counters::Work;
use crate::num::{self, Bf16, F16, Half, Round};

pub(super) fn decode(ops: &mut Ops<'_, '_, '_, '_>) -> Decode {
    let run = match ops.ty() {
        "f16" | "f16x2" => typed::<F16>(ops),
        _ => typed::<Bf16>(ops),
    };
    Ok((Work::Float, run?))
}

fn typed<H: Half + 'static>(ops: &mut Ops<'_, '_, '_, '_>) -> Result<Execute, String> {
    let pair = ops.ty().ends_with("x2");
    let (relu, sat, nan) = (ops.has("relu"), ops.has("sat"), ops.has("NaN"));
    ops.only(&["rn", "relu", "sat", "NaN", "ftz", "approx"])?;
    let finish = move |x: u16| {
        let value = H::widen(x);
        if relu && value.is_nan() {
            return H::NAN;
        }
        if (relu && value < 0.0) || (sat && (value <= 0.0 || value.is_nan())) {
            return 0;
        }
        if sat && value > 1.0 { H::encode(1.0, Round::Nearest) } else { x }
    };
    let name = ops.name().to_string();
    match name.as_str() {
        "add" => two(ops, pair, move |a, b| finish(num::add16::<H>(a, b))),
        "sub" => two(ops, pair, move |a, b| finish(num::add16::<H>(a, b ^ 0x8000))),
        "mul" => two(ops, pair, move |a, b| finish(num::mul16::<H>(a, b))),
        "fma" => three(ops, pair, move |a, b, c| finish(num::fma16::<H>(a, b, c))),
        "min" | "max" => {
            let max = name == "max";
            two(ops, pair, move |a, b| {
                let m = num::extreme(H::widen(a) as f64, H::widen(b) as f64, max, nan);
                H::encode(m, Round::Nearest)
            })
        }
        "neg" => one(ops, pair, |a| a ^ 0x8000),
        "abs" => one(ops, pair, |a| a & 0x7fff),
        "ex2" => one(ops, pair, |a| H::encode(num::exp2(H::widen(a) as f64), Round::Nearest)),
        "tanh" => one(ops, pair, |a| H::encode((H::widen(a) as f64).tanh(), Round::Nearest)),
        _ => ops.unknown(),
    }
}

fn join(lo: u16, hi: u16) -> u32 {
    lo as u32 | (hi as u32) << 16
}

fn one(
    ops: &mut Ops<'_, '_, '_, '_>,
    pair: bool,
    f: impl Fn(u16) -> u16 + Send + Sync + 'static,
) -> Result<Execute, String> {
    n_n(ops, move |a| join(f(a as u16), if pair { f((a >> 16) as u16) } else { 0 }))
}

fn two(
    ops: &mut Ops<'_, '_, '_, '_>,
    pair: bool,
    f: impl Fn(u16, u16) -> u16 + Send + Sync + 'static,
) -> Result<Execute, String> {
    nn_n(ops, move |a, b| {
        join(f(a as u16, b as u16), if pair { f((a >> 16) as u16, (b >> 16) as u16) } else { 0 })
    })
}

fn three(
    ops: &mut Ops<'_, '_, '_, '_>,
    pair: bool,
    f: impl Fn(u16, u16, u16) -> u16 + Send + Sync + 'static,
) -> Result<Execute, String> {
    nnn_n(ops, move |a, b, c| {
        let high = |f: &dyn Fn(u16, u16, u16) -> u16| {
            f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)
        };
        join(f(a as u16, b as u16, c as u16), if pair { high(&f) } else { 0 })
    })
}
