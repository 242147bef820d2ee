//! Floating-point arithmetic and comparisons.

use super::values::{
    b16, d, f, flush, h16, lo, out, out64, put_b16, put_h16, s, toward, unordered,
};
use super::{Case, Inputs};

/// All cases.
pub fn cases() -> Vec<Case> {
    [single(), double(), halves(), comparisons()].into_iter().flatten().collect()
}

fn single() -> Vec<Case> {
    vec![
        case!(F32, f2!("add.f32"), |a, b, _| out(f(a) + f(b))),
        case!(F32, f2!("sub.f32"), |a, b, _| out(f(a) - f(b))),
        case!(F32, f2!("mul.f32"), |a, b, _| out(f(a) * f(b))),
        case!(F32, f2!("mul.ftz.f32"), |a, b, _| out(flush(flush(f(a)) * flush(f(b))))),
        case!(F32, f2!("add.ftz.f32"), |a, b, _| out(flush(flush(f(a)) + flush(f(b))))),
        case!(F32, f2!("add.sat.f32"), |a, b, _| {
            let x = f(a) + f(b);
            out(if x > 0.0 { x.min(1.0) } else { 0.0 })
        }),
        case!(F32, f2!("div.rn.f32"), |a, b, _| out(f(a) / f(b))),
        case!(F32, f1!("sqrt.rn.f32"), |a, _, _| out(f(a).sqrt())),
        case!(F32, f1!("rcp.rn.f32"), |a, _, _| out(1.0 / f(a))),
        case!(F32, f3!("fma.rn.f32"), |a, b, c| out(f(a).mul_add(f(b), f(c)))),
        case!(F32, f2!("mul.rp.f32"), |a, b, _| {
            let (exact, near) = (f(a) as f64 * f(b) as f64, f(a) * f(b));
            out(if near.is_infinite() && exact.is_finite() && exact < 0.0 {
                f32::MIN
            } else {
                toward(near, exact - near as f64, true)
            })
        }),
        case!(F32, f2!("mul.rm.f32"), |a, b, _| {
            let (exact, near) = (f(a) as f64 * f(b) as f64, f(a) * f(b));
            out(if near.is_infinite() && exact.is_finite() && exact > 0.0 {
                f32::MAX
            } else {
                toward(near, exact - near as f64, false)
            })
        }),
        case!(F32, f2!("min.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            out(if x == y { if x.is_sign_negative() { x } else { y } } else { x.min(y) })
        }),
        case!(F32, f2!("max.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            out(if x == y { if x.is_sign_negative() { y } else { x } } else { x.max(y) })
        }),
        case!(F32, f2!("max.NaN.f32"), |a, b, _| {
            let (x, y) = (f(a), f(b));
            if x.is_nan() || y.is_nan() {
                0x7fff_ffff
            } else if x == y {
                out(if x.is_sign_negative() { y } else { x })
            } else {
                out(x.max(y))
            }
        }),
        case!(F32, f1!("neg.f32"), |a, _, _| a ^ 0x8000_0000),
        case!(F32, f1!("abs.f32"), |a, _, _| a & 0x7fff_ffff),
        case!(F32, f2!("copysign.f32"), |a, b, _| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        case!(~ F32, f1!("ex2.approx.ftz.f32"), |a, _, _| out(flush((flush(f(a)) as f64).exp2() as f32))),
        case!(~ [2.4e-7, 2.4e-7] F32, f1!("lg2.approx.ftz.f32"), |a, _, _| out(flush((flush(f(a)) as f64).log2() as f32))),
        case!(~ F32, f1!("rcp.approx.ftz.f32"), |a, _, _| out(flush(1.0 / flush(f(a))))),
        case!(~ F32, f1!("rsqrt.approx.ftz.f32"), |a, _, _| out((1.0 / (flush(f(a)) as f64).sqrt()) as f32)),
        case!(~ [4.9e-4, 0.0] F32, f1!("tanh.approx.f32"), |a, _, _| out((f(a) as f64).tanh() as f32)),
    ]
}

fn double() -> Vec<Case> {
    vec![
        case!(F64, d2!("add.f64"), |a, b, _| out64(d(a) + d(b))),
        case!(F64, d2!("sub.f64"), |a, b, _| out64(d(a) - d(b))),
        case!(F64, d2!("mul.f64"), |a, b, _| out64(d(a) * d(b))),
        case!(F64, d2!("div.rn.f64"), |a, b, _| out64(d(a) / d(b))),
        case!(F64, d1!("sqrt.rn.f64"), |a, _, _| out64(d(a).sqrt())),
        case!(F64, d1!("neg.f64"), |a, _, _| a ^ (1 << 63)),
        case!(F64, d1!("abs.f64"), |a, _, _| a & !(1 << 63)),
        case!(F64, d2!("max.f64"), |a, b, _| {
            let (x, y) = (d(a), d(b));
            out64(if x == y { if x.is_sign_negative() { y } else { x } } else { x.max(y) })
        }),
        case!(
            F64,
            "ld.global.f64 %fd1, [%rd1];\nld.global.f64 %fd2, [%rd2];\nld.global.f64 %fd4, [%rd3];\nfma.rn.f64 %fd3, %fd1, %fd2, %fd4;\nst.global.f64 [%rd0], %fd3;",
            |a, b, c| out64(d(a).mul_add(d(b), d(c)))
        ),
    ]
}

fn halves() -> Vec<Case> {
    let mut list = Vec::new();
    macro_rules! both {
        ($op:literal, $inputs:ident, $get:ident, $put:ident, $f:expr) => {
            list.push(case!($inputs, n2!($op), |a, b, _| {
                let g: fn(f64, f64) -> f64 = $f;
                $put(g($get(a, false), $get(b, false)))
                    | $put(g($get(a, true), $get(b, true))) << 16
            }));
        };
    }
    both!("add.f16x2", F16x2, h16, put_h16, |a, b| a + b);
    both!("mul.f16x2", F16x2, h16, put_h16, |a, b| a * b);
    both!("sub.f16x2", F16x2, h16, put_h16, |a, b| a - b);
    both!("add.rn.bf16x2", Bf16x2, b16, put_b16, |a, b| a + b);
    both!("mul.rn.bf16x2", Bf16x2, b16, put_b16, |a, b| a * b);
    both!("max.bf16x2", Bf16x2, b16, put_b16, |a, b| a.max(b));
    list.push(case!(Bf16x2, n3!("fma.rn.bf16x2"), |a, b, c| {
        put_b16(b16(a, false) * b16(b, false) + b16(c, false))
            | put_b16(b16(a, true) * b16(b, true) + b16(c, true)) << 16
    }));
    list.push(case!(F16x2, n3!("fma.rn.f16x2"), |a, b, c| {
        put_h16(h16(a, false) * h16(b, false) + h16(c, false))
            | put_h16(h16(a, true) * h16(b, true) + h16(c, true)) << 16
    }));
    list
}

fn comparisons() -> Vec<Case> {
    vec![
        case!(F32, compare!("f32", "%f", "lt"), |a, b, _| (f(a) < f(b)) as u64),
        case!(F32, compare!("f32", "%f", "ne"), |a, b, _| (f(a) < f(b) || f(a) > f(b)) as u64),
        case!(F32, compare!("f32", "%f", "neu"), |a, b, _| (f(a) != f(b)) as u64),
        case!(F32, compare!("f32", "%f", "equ"), |a, b, _| !(f(a) < f(b) || f(a) > f(b)) as u64),
        case!(F32, compare!("f32", "%f", "ltu"), |a, b, _| (f(a) < f(b) || unordered(a, b)) as u64),
        case!(F32, compare!("f32", "%f", "geu"), |a, b, _| (f(a) >= f(b) || unordered(a, b))
            as u64),
        case!(F32, compare!("f32", "%f", "num"), |a, b, _| (!f(a).is_nan() && !f(b).is_nan())
            as u64),
        case!(F32, compare!("f32", "%f", "nan"), |a, b, _| (f(a).is_nan() || f(b).is_nan()) as u64),
        case!(F64, compare!("f64", "%fd", "le"), |a, b, _| (d(a) <= d(b)) as u64),
        case!(F64, compare!("f64", "%fd", "gtu"), |a, b, _| (d(a) > d(b)
            || d(a).is_nan()
            || d(b).is_nan()) as u64),
        case!(Bits, compare!("s32", "%r", "ge"), |a, b, _| (s(a) >= s(b)) as u64),
        case!(Bits, compare!("u32", "%r", "gt"), |a, b, _| (lo(a) > lo(b)) as u64),
        case!(Bits, compare!("s64", "%rd1", "lt"), |a, b, _| ((a as i64) < b as i64) as u64),
        case!(Bits, compare!("u64", "%rd1", "ls"), |a, b, _| (a <= b) as u64),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nsetp.lt.u32 %p2, %r1, 1000;\nsetp.gt.and.s32 %p1|%p3, %r1, %r2, %p2;\nselp.u64 %rd9, 1, 0, %p1;\nselp.u64 %rd10, 2, 0, %p3;\nadd.s64 %rd9, %rd9, %rd10;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| {
                let (p, q) = (s(a) > s(b), lo(a) < 1000);
                (p && q) as u64 + 2 * (!p && q) as u64
            }
        ),
        case!(
            Bits,
            "ld.global.u32 %r1, [%rd1];\nld.global.u32 %r2, [%rd2];\nsetp.lt.u32 %p1, %r1, %r2;\nmov.u64 %rd9, 7;\n@%p1 mov.u64 %rd9, 1;\n@!%p1 add.s64 %rd9, %rd9, 2;\nst.global.u64 [%rd0], %rd9;",
            |a, b, _| if lo(a) < lo(b) { 1 } else { 9 }
        ),
    ]
}
