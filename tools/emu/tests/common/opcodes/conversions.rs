//! `cvt` between types.

use super::values::{b16, d, f, h16, lo, out, out64, put_b16, put_h16, s};
use super::{Case, Inputs};

/// All cases.
pub fn cases() -> Vec<Case> {
    [integers_to_floats(), floats_to_integers(), floats(), integers(), halves()]
        .into_iter()
        .flatten()
        .collect()
}

macro_rules! convert {
    ($op:literal, $from:literal, $fr:literal, $to:literal) => {
        concat!("ld.global.", $from, " ", $fr, "1, [%rd1];\n", $op, " ", $to, "3, ", $fr, "1;\n")
    };
}
macro_rules! to_f32 {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%f"),
            "mov.b32 %r3, %f3;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! to_r32 {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%r"),
            "cvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}
macro_rules! to_h {
    ($op:literal, $from:literal, $fr:literal) => {
        concat!(
            convert!($op, $from, $fr, "%h"),
            "cvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;"
        )
    };
}

fn integers_to_floats() -> Vec<Case> {
    vec![
        case!(Bits, to_f32!("cvt.rn.f32.s32", "u32", "%r"), |a, _, _| out(s(a) as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.u32", "u32", "%r"), |a, _, _| out(lo(a) as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.s64", "u64", "%rd1"), |a, _, _| out(a as i64 as f32)),
        case!(Bits, to_f32!("cvt.rn.f32.u64", "u64", "%rd1"), |a, _, _| out(a as f32)),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.rn.f64.s64 %fd3, %rd4;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(a as i64 as f64)
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.rn.f64.u64 %fd3, %rd4;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(a as f64)
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.rn.f64.s32 %fd3, %r1;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(s(a) as f64)
        ),
    ]
}

fn floats_to_integers() -> Vec<Case> {
    vec![
        case!(F32, to_r32!("cvt.rzi.s32.f32", "f32", "%f"), |a, _, _| f(a) as i32 as u32 as u64),
        case!(F32, to_r32!("cvt.rzi.u32.f32", "f32", "%f"), |a, _, _| f(a) as u32 as u64),
        case!(
            F32,
            to_r32!("cvt.rni.s32.f32", "f32", "%f"),
            |a, _, _| f(a).round_ties_even() as i32 as u32 as u64
        ),
        case!(F32, to_r32!("cvt.rmi.s32.f32", "f32", "%f"), |a, _, _| f(a).floor() as i32 as u32
            as u64),
        case!(F32, to_r32!("cvt.rpi.s32.f32", "f32", "%f"), |a, _, _| f(a).ceil() as i32 as u32
            as u64),
        case!(F64, to_r32!("cvt.rzi.s32.f64", "f64", "%fd"), |a, _, _| {
            if d(a).is_nan() { 0x8000_0000 } else { d(a) as i32 as u32 as u64 }
        }),
    ]
}

fn floats() -> Vec<Case> {
    vec![
        case!(F32, to_f32!("cvt.rni.f32.f32", "f32", "%f"), |a, _, _| out(f(a).round_ties_even())),
        case!(F32, to_f32!("cvt.sat.f32.f32", "f32", "%f"), |a, _, _| out(if f(a) > 0.0 {
            f(a).min(1.0)
        } else {
            0.0
        })),
        case!(F64, to_f32!("cvt.rn.f32.f64", "f64", "%fd"), |a, _, _| out(d(a) as f32)),
        case!(F64, to_f32!("cvt.rz.f32.f64", "f64", "%fd"), |a, _, _| {
            let y = d(a) as f32;
            if y.is_infinite() && d(a).is_finite() {
                return out(f32::MAX.copysign(y));
            }
            out(if (y as f64).abs() > d(a).abs() { f32::from_bits(y.to_bits() - 1) } else { y })
        }),
        case!(
            F32,
            "ld.global.f32 %f1, [%rd1];\ncvt.f64.f32 %fd3, %f1;\nst.global.f64 [%rd0], %fd3;",
            |a, _, _| out64(f(a) as f64)
        ),
    ]
}

fn integers() -> Vec<Case> {
    vec![
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.s64.s32 %rd6, %r1;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| s(a) as i64 as u64
        ),
        case!(
            Bits,
            "ld.global.u64 %rd4, [%rd1];\ncvt.u32.u64 %r3, %rd4;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a & 0xffff_ffff
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.s16.s32 %h1, %r1;\ncvt.s32.s16 %r3, %h1;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| a as i16 as i32 as u32 as u64
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\ncvt.sat.u8.s32 %r3, %r1;\ncvt.u64.u32 %rd6, %r3;\nst.global.u64 [%rd0], %rd6;",
            |a, _, _| s(a).clamp(0, 255) as u64
        ),
    ]
}

/// f16 and bf16.
fn halves() -> Vec<Case> {
    vec![
        case!(F16x2, to_f32!("cvt.f32.f16", "u16", "%h"), |a, _, _| out(h16(a, false) as f32)),
        case!(F16x2, to_f32!("cvt.f32.bf16", "u16", "%h"), |a, _, _| out(f32::from_bits(
            lo(a) << 16
        ))),
        case!(
            F16x2,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\ncvt.f32.f16 %f1, %h1;\ncvt.f32.f16 %f2, %h2;\nmul.f32 %f3, %f1, %f2;\ncvt.rn.f16.f32 %h3, %f3;\ncvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| put_h16(h16(a, false) * h16(b, false))
        ),
        case!(
            Bf16x2,
            "ld.global.u16 %h1, [%rd1];\nld.global.u16 %h2, [%rd2];\ncvt.f32.bf16 %f1, %h1;\ncvt.f32.bf16 %f2, %h2;\nmul.f32 %f3, %f1, %f2;\ncvt.rn.bf16.f32 %h3, %f3;\ncvt.u64.u16 %rd9, %h3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| put_b16(b16(a, false) * b16(b, false))
        ),
        case!(F32, to_h!("cvt.rn.bf16.f32", "f32", "%f"), |a, _, _| {
            let x = f(a);
            if x.is_nan() {
                return 0x7fff;
            }
            let bits = lo(a);
            ((bits as u64 + 0x7fff + (bits >> 16 & 1) as u64) >> 16) & 0xffff
        }),
        case!(
            F32,
            "ld.global.f32 %f1, [%rd1];\nld.global.f32 %f2, [%rd2];\ncvt.rn.bf16x2.f32 %r3, %f1, %f2;\ncvt.u64.u32 %rd9, %r3;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| {
                let one = |x: u64| {
                    if f(x).is_nan() {
                        0x7fff
                    } else {
                        ((lo(x) as u64 + 0x7fff + (lo(x) >> 16 & 1) as u64) >> 16) & 0xffff
                    }
                };
                one(a) << 16 | one(b)
            }
        ),
    ]
}
