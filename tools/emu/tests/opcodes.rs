//! Every arithmetic opcode on many operands.

mod common;

use common::lanes;
use common::opcodes::{Case, cases, operands};

/// Approximate results may be one ulp beside the oracle's: both are rounded from f64.
fn agrees(case: &Case, got: u64, want: u64) -> bool {
    got == want || (case.approximate.is_some() && (got as i64 - want as i64).abs() <= 1)
}

#[test]
fn opcodes_give_closed_form_answers() {
    for case in cases() {
        for seed in 1..=8 {
            let [a, b, c] = operands(case.inputs, seed);
            let got = lanes(case.body, &a, &b, &c).unwrap_or_else(|f| panic!("{f}\n{}", case.body));
            for lane in 0..32 {
                let want = (case.want)(a[lane], b[lane], c[lane]);
                assert!(
                    agrees(&case, got[lane], want),
                    "{}\na {:#x} b {:#x} c {:#x}: got {:#x}, want {want:#x}",
                    case.body,
                    a[lane],
                    b[lane],
                    c[lane],
                    got[lane]
                );
            }
        }
    }
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    for (body, part) in [
        ("mad.lo.s32 %r1, %r0, %r0;", "operand 3 is missing"),
        ("add.s32.wrong %r1, %r0, %r0;", "not supported"),
        ("frobnicate.b32 %r1, %r0;", "not supported"),
        ("add.f32 %f1, %f2, %rd1;", "register"),
        ("ld.global.fancy.u32 %r1, [%rd1];", "modifier"),
        ("mov.u32 %r1, %nosuch;", "special register"),
        ("bra NOWHERE;", "label"),
        ("add.s32 %r99, %r0, %r0;", "register"),
        ("setp.wrong.s32 %p1, %r0, %r0;", "comparison"),
    ] {
        let mut machine = gradus_emu::Machine::default();
        let error = gradus_emu::Module::load(&common::lane_kernel(body), &mut machine).err();
        let error = error.unwrap_or_else(|| panic!("accepted: {body}"));
        assert!(error.contains("line ") && error.contains(part), "{body}: {error}");
    }
}
