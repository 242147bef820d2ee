//! Matrix products and bad input: every argument wrong once, the message names it, and the outputs
//! keep what they held.

use crate::products::arguments::*;
use gradus::ops::{Matmul, MatmulDw, MatmulDx, matmul, matmul_dw, matmul_dx};
use gradus::{View, ViewMut};

#[test]
fn matmul_refuses_bad_input() {
    let changes: Changes<'_, fn(&mut Matmul<'_, f32>)> = &[
        ("x", |a| a.x = ones(&[96])),
        ("x", |a| a.x = transposed(3, 32)),
        ("w", |a| a.w = ones(&[4, 31])),
        ("w", |a| a.w = ones(&[4, 4, 8])),
        ("w", |a| a.w = View::new(&[], &[0, 32]).unwrap()),
        ("w", |a| a.w = transposed(4, 32)),
        ("bias", |a| a.bias = Some(ones(&[5]))),
        ("residual", |a| a.residual = Some(ones(&[4, 3]))),
        ("residual", |a| a.residual = Some(ones(&[12]))),
        ("residual", |a| a.residual = Some(transposed(3, 4))),
        ("s", |a| a.lora = &[]),
    ];
    for (arg, change) in changes {
        let (lora, mut s, mut y) = ([good_lora()], [5f32; M * R], [5f32; M * N]);
        let mut args = Matmul {
            x: ones(&[3, 32]),
            w: ones(&[4, 32]),
            bias: None,
            lora: &lora,
            adapter: None,
            s: Some(ViewMut::rows_of(&mut s, R).unwrap()),
            residual: None,
            y: ViewMut::rows_of(&mut y, N).unwrap(),
        };
        change(&mut args);
        refused(matmul(&CPU, args), "matmul", arg);
        assert_eq!((s, y), ([5.0; M * R], [5.0; M * N]), "{arg}");
    }
    for (lora, adapter, arg) in bad_adapters() {
        let mut y = [5f32; M * N];
        let (x, w, bias, s) = (ones(&[3, 32]), ones(&[4, 32]), None, None);
        let adapter = adapter.as_ref().map(View::from);
        let out = ViewMut::rows_of(&mut y, N).unwrap();
        refused(
            matmul(&CPU, Matmul { x, w, bias, lora: &lora, adapter, s, residual: None, y: out }),
            "matmul",
            arg,
        );
        assert_eq!(y, [5.0; M * N], "{arg}");
    }
}

#[test]
fn matmul_refuses_bad_outputs() {
    let run = |s_shape: &[i64], y_shape: &[i64], arg| {
        let (lora, mut s, mut y) = ([good_lora()], [5f32; 16], [5f32; 16]);
        let args = Matmul {
            x: ones(&[3, 32]),
            w: ones(&[4, 32]),
            bias: None,
            lora: &lora,
            adapter: None,
            s: Some(ViewMut::new(&mut s, s_shape).unwrap()),
            residual: None,
            y: ViewMut::new(&mut y, y_shape).unwrap(),
        };
        refused(matmul(&CPU, args), "matmul", arg);
        assert_eq!((s, y), ([5.0; 16], [5.0; 16]), "{arg}");
    };
    run(&[3, 3], &[3, 4], "s");
    run(&[6], &[3, 4], "s");
    run(&[3, 2], &[4, 3], "y");
    run(&[3, 2], &[12], "y");
}

#[test]
fn matmul_dx_refuses_bad_input() {
    let changes: Changes<'_, fn(&mut MatmulDx<'_, f32>)> = &[
        ("dy", |a| a.dy = ones(&[12])),
        ("dy", |a| a.dy = transposed(3, 4)),
        ("w", |a| a.w = ones(&[5, 32])),
        ("w", |a| a.w = View::new(&[], &[4, 0]).unwrap()),
        ("dx", |a| a.w = ones(&[4, 31])),
    ];
    let run = |change: &dyn Fn(&mut MatmulDx<'_, f32>), arg| {
        let mut dx = [5f32; M * K];
        let mut args = MatmulDx {
            dy: ones(&[3, 4]),
            w: ones(&[4, 32]),
            lora: &[],
            adapter: None,
            accumulate: true,
            dx: ViewMut::rows_of(&mut dx, K).unwrap(),
        };
        change(&mut args);
        refused(matmul_dx(&CPU, args), "matmul_dx", arg);
        assert_eq!(dx, [5.0; M * K], "{arg}");
    };
    changes.iter().for_each(|(arg, change)| run(change, arg));
    for (lora, adapter, arg) in bad_adapters() {
        let mut dx = [5f32; M * K];
        let args = MatmulDx {
            dy: ones(&[3, 4]),
            w: ones(&[4, 32]),
            lora: &lora,
            adapter: adapter.as_ref().map(View::from),
            accumulate: true,
            dx: ViewMut::rows_of(&mut dx, K).unwrap(),
        };
        refused(matmul_dx(&CPU, args), "matmul_dx", arg);
        assert_eq!(dx, [5.0; M * K], "{arg}");
    }
}

#[test]
fn matmul_dw_refuses_bad_input() {
    let changes: Changes<'_, fn(&mut MatmulDw<'_, f32>)> = &[
        ("dy", |a| a.dy = ones(&[3, 2, 2])),
        ("dy", |a| a.dy = View::new(&[], &[3, 0]).unwrap()),
        ("x", |a| a.x = ones(&[2, 32])),
        ("x", |a| a.x = View::new(&[], &[3, 0]).unwrap()),
        ("x", |a| a.x = transposed(3, 32)),
        ("dw", |a| a.dy = ones(&[3, 5])),
        ("dbias", |a| a.dbias = Some(ViewMut::new(&mut [], &[0]).unwrap())),
    ];
    for (arg, change) in changes {
        let (mut dw, mut dbias) = ([5f32; N * K], [5f32; N]);
        let mut args = MatmulDw {
            dy: ones(&[3, 4]),
            x: ones(&[3, 32]),
            dw: ViewMut::rows_of(&mut dw, K).unwrap(),
            dbias: Some(ViewMut::new(&mut dbias, &[4]).unwrap()),
        };
        change(&mut args);
        refused(matmul_dw(&CPU, args), "matmul_dw", arg);
        assert_eq!((dw, dbias), ([5.0; N * K], [5.0; N]), "{arg}");
    }
}
