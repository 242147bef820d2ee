//! Scalar functions lifted to warps: the shapes an arithmetic instruction can have. `n` is a
//! 32-bit operand, `w` a 64-bit one; the last letter is the result.

use super::{Execute, Ops};
use crate::machine::Flow;
use crate::machine::registers::{Row, Row64};
use crate::num;
use crate::text::ast::Class::{Narrow, Predicate, Wide};

type Made = Result<Execute, String>;

macro_rules! lift {
    ($name:ident, [$($arg:ident : $class:ident $kind:ty),+], $out:ty, $result:ident, $rows:ident, $setter:ident) => {
        pub(crate) fn $name(ops: &mut Ops<'_, '_, '_, '_>, f: impl Fn($($kind),+) -> $out + Send + Sync + 'static) -> Made {
            let mut at = 0;
            $( at += 1; let $arg = lift!(@source ops, at, $class); )+
            ops.count(at + 1)?;
            let d = ops.dst(0, $result)?;
            Ok(Box::new(move |c, mask| {
                let r = &mut c.warp.registers;
                let mut known = u32::MAX;
                $( known &= r.known($class, $arg); )+
                let mut out: $rows = [0; 32];
                {
                    $( let $arg = lift!(@row r, $arg, $class); )+
                    for lane in 0..32 {
                        out[lane] = f($($arg[lane]),+);
                    }
                }
                r.$setter(d, &out, mask, known);
                Ok(Flow::Next)
            }))
        }
    };
    (@source $ops:ident, $at:expr, Narrow) => { $ops.narrow($at)? };
    (@source $ops:ident, $at:expr, Wide) => { $ops.wide($at)? };
    (@row $r:ident, $i:ident, Narrow) => { &$r.narrow[$i] };
    (@row $r:ident, $i:ident, Wide) => { &$r.wide[$i] };
}

lift!(n_n, [a: Narrow u32], u32, Narrow, Row, set_narrow);
lift!(nn_n, [a: Narrow u32, b: Narrow u32], u32, Narrow, Row, set_narrow);
lift!(nnn_n, [a: Narrow u32, b: Narrow u32, c: Narrow u32], u32, Narrow, Row, set_narrow);
lift!(nnnn_n, [a: Narrow u32, b: Narrow u32, c: Narrow u32, e: Narrow u32], u32, Narrow, Row, set_narrow);
lift!(w_w, [a: Wide u64], u64, Wide, Row64, set_wide);
lift!(ww_w, [a: Wide u64, b: Wide u64], u64, Wide, Row64, set_wide);
lift!(www_w, [a: Wide u64, b: Wide u64, c: Wide u64], u64, Wide, Row64, set_wide);
lift!(wn_w, [a: Wide u64, b: Narrow u32], u64, Wide, Row64, set_wide);
lift!(wnn_w, [a: Wide u64, b: Narrow u32, c: Narrow u32], u64, Wide, Row64, set_wide);
lift!(wwnn_w, [a: Wide u64, b: Wide u64, c: Narrow u32, e: Narrow u32], u64, Wide, Row64, set_wide);
lift!(nn_w, [a: Narrow u32, b: Narrow u32], u64, Wide, Row64, set_wide);
lift!(nnw_w, [a: Narrow u32, b: Narrow u32, c: Wide u64], u64, Wide, Row64, set_wide);
lift!(n_w, [a: Narrow u32], u64, Wide, Row64, set_wide);
lift!(w_n, [a: Wide u64], u32, Narrow, Row, set_narrow);

/// The one NaN of f32 arithmetic, chosen as an integer: between floats the compiler may keep any.
#[inline(always)]
pub(crate) fn one_nan(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { num::NAN32 } else { bits }
}

#[inline(always)]
pub(crate) fn one_nan64(x: f64) -> u64 {
    let bits = x.to_bits();
    if bits & !(1 << 63) > 0x7ff0_0000_0000_0000 { num::NAN64 } else { bits }
}

/// Narrow function of f32 values.
pub(crate) fn f_f(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Made {
    n_n(ops, move |a| one_nan(f(f32::from_bits(a))))
}

pub(crate) fn ff_f(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
) -> Made {
    nn_n(ops, move |a, b| one_nan(f(f32::from_bits(a), f32::from_bits(b))))
}

pub(crate) fn fff_f(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
) -> Made {
    nnn_n(ops, move |a, b, c| one_nan(f(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c))))
}

/// Wide function of f64 values.
pub(crate) fn d_d(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Made {
    w_w(ops, move |a| one_nan64(f(f64::from_bits(a))))
}

pub(crate) fn dd_d(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f64, f64) -> f64 + Send + Sync + 'static,
) -> Made {
    ww_w(ops, move |a, b| one_nan64(f(f64::from_bits(a), f64::from_bits(b))))
}

pub(crate) fn ddd_d(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(f64, f64, f64) -> f64 + Send + Sync + 'static,
) -> Made {
    www_w(ops, move |a, b, c| one_nan64(f(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c))))
}

/// Logic of predicates.
pub(crate) fn pp_p(
    ops: &mut Ops<'_, '_, '_, '_>,
    f: impl Fn(u32, u32) -> u32 + Send + Sync + 'static,
) -> Made {
    ops.count(3)?;
    let (d, (a, not_a), (b, not_b)) =
        (ops.dst(0, Predicate)?, ops.predicate(1)?, ops.predicate(2)?);
    Ok(Box::new(move |c, mask| {
        let r = &mut c.warp.registers;
        let flip = |value: u32, not: bool| if not { !value } else { value };
        let value = f(flip(r.predicate[a], not_a), flip(r.predicate[b], not_b));
        let known = r.known(Predicate, a) & r.known(Predicate, b);
        r.set_predicate(d, value, mask, known);
        Ok(Flow::Next)
    }))
}
