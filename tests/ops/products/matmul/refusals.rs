//! Matrix products and bad input: every argument wrong once, the message names it, and the outputs
//! keep what they held.

use gradus::ops::{
    Head, LinearLogProb, LinearLogProbBwd, LogitTransform, Lora, LoraGrad, Matmul, MatmulDw,
    MatmulDx, Nf4Dequantize, Nf4Matmul, Nf4MatmulDx, Nf4MatmulGrouped, Nf4MatmulGroupedDx,
    linear_logprob, linear_logprob_bwd, lora_grad, matmul, matmul_dw, matmul_dx, nf4_dequantize,
    nf4_matmul, nf4_matmul_dx, nf4_matmul_grouped, nf4_matmul_grouped_dx,
};
use gradus::quant::{Absmax, Nf4View};
use gradus::{DType, Device, Result, View, ViewMut};

const CPU: Device = Device::Cpu;
const M: usize = 3;
const N: usize = 4;
const K: usize = 32;
const R: usize = 2;
static ONES: [f32; 256] = [1.0; 256];
static CODES: [u8; 256] = [0; 256];

fn ones(shape: &[i64]) -> View<'static, f32> {
    View::new(&ONES, shape).unwrap()
}

/// Columns before rows: the last dimension is not contiguous.
fn transposed(rows: i64, cols: i64) -> View<'static, f32> {
    View::strided(&ONES, &[rows, cols], &[1, rows]).unwrap()
}

fn good_lora() -> Lora<'static, f32> {
    Lora { a: ones(&[2, 32]), b: ones(&[4, 2]), scale: 1.0 }
}

fn refused(result: Result<()>, op: &str, arg: &str) {
    let text = result.expect_err(&format!("{op} took a bad `{arg}`")).to_string();
    assert!(text.starts_with(&format!("{op}: argument `{arg}`: got ")), "{text}");
}

/// An argument and how to spoil it.
type Changes<'c, F> = &'c [(&'static str, F)];

/// Wrong adapters and what they are called: adapters, row indices, argument.
type BadAdapters = (Vec<Lora<'static, f32>>, Option<Vec<i32>>, &'static str);

fn bad_adapters() -> Vec<BadAdapters> {
    let good = good_lora();
    vec![
        (vec![Lora { a: ones(&[2, 31]), ..good }], None, "lora[0].a"),
        (vec![Lora { a: ones(&[64]), ..good }], None, "lora[0].a"),
        (vec![Lora { a: View::new(&[], &[0, 32]).unwrap(), ..good }], None, "lora[0].a"),
        (vec![Lora { a: transposed(2, 32), ..good }], None, "lora[0].a"),
        (vec![good, Lora { a: ones(&[3, 32]), b: ones(&[4, 3]), scale: 1.0 }], None, "lora[1].a"),
        (vec![Lora { b: ones(&[4, 3]), ..good }], None, "lora[0].b"),
        (vec![Lora { b: transposed(4, 2), ..good }], None, "lora[0].b"),
        (vec![Lora { scale: f64::NAN, ..good }], None, "lora[0].scale"),
        (vec![good, Lora { scale: f64::INFINITY, ..good }], None, "lora[1].scale"),
        (vec![good], Some(vec![0, -1]), "adapter"),
        (vec![good], Some(vec![0, -1, 1]), "adapter"),
        (vec![good], Some(vec![0, -2, 0]), "adapter"),
        (vec![], Some(vec![-1, 0, -1]), "adapter"),
    ]
}

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

#[test]
fn lora_grad_refuses_bad_input() {
    let changes: Changes<'_, fn(&mut LoraGrad<'_, f32>)> = &[
        ("x", |a| a.x = ones(&[96])),
        ("x", |a| a.x = View::new(&[], &[3, 0]).unwrap()),
        ("dy", |a| a.dy = ones(&[2, 4])),
        ("dy", |a| a.dy = View::new(&[], &[3, 0]).unwrap()),
        ("dy", |a| a.dy = transposed(3, 4)),
        ("s", |a| a.s = ones(&[3, 3])),
        ("s", |a| a.s = transposed(3, 2)),
        ("lora.a", |a| a.lora.a = ones(&[2, 31])),
        ("lora.b", |a| a.lora.b = ones(&[2, 4])),
        ("lora.scale", |a| a.lora.scale = f64::NEG_INFINITY),
        ("adapter", |a| a.adapter = Some(View::new(&[0, 0], &[2]).unwrap())),
        ("adapter", |a| a.adapter = Some(View::new(&[0, -2, 0], &[3]).unwrap())),
        ("index", |a| a.index = -1),
        ("index", |a| a.index = 1),
        ("da", |a| a.da = ViewMut::new(&mut [], &[0, 32]).unwrap()),
        ("db", |a| a.db = ViewMut::new(&mut [], &[0, 2]).unwrap()),
    ];
    for (arg, change) in changes {
        let (mut da, mut db) = ([5f32; R * K], [5f32; N * R]);
        let mut args = LoraGrad {
            x: ones(&[3, 32]),
            dy: ones(&[3, 4]),
            s: ones(&[3, 2]),
            lora: good_lora(),
            adapter: None,
            index: 0,
            da: ViewMut::rows_of(&mut da, K).unwrap(),
            db: ViewMut::rows_of(&mut db, R).unwrap(),
        };
        change(&mut args);
        refused(lora_grad(&CPU, args), "lora_grad", arg);
        assert_eq!((da, db), ([5.0; R * K], [5.0; N * R]), "{arg}");
    }
}

fn codes(n: i64) -> View<'static, u8> {
    View::new(&CODES, &[n]).unwrap()
}

fn good_nf4() -> Nf4View<'static> {
    let absmax = Absmax::Nested {
        codes: codes(4),
        nested: ones(&[1]),
        table: ones(&[256]),
        offset: 0.0,
        nested_blocksize: 256,
    };
    let (n, k, dtype) = (N, K, DType::Bf16);
    Nf4View { packed: codes(64), absmax, code: ones(&[16]), n, k, blocksize: 32, dtype }
}

/// Wrong 4-bit weights and what is wrong with them.
fn bad_weights() -> Vec<(Nf4View<'static>, &'static str)> {
    let good = good_nf4();
    let nested = |codes_len, nested_len, table_len, offset, nested_blocksize| Absmax::Nested {
        codes: codes(codes_len),
        nested: ones(&[nested_len]),
        table: ones(&[table_len]),
        offset,
        nested_blocksize,
    };
    vec![
        (Nf4View { n: 0, ..good }, "w"),
        (Nf4View { k: 0, ..good }, "w"),
        (Nf4View { n: usize::MAX, ..good }, "w"),
        (Nf4View { n: 1 << 60, k: 8, ..good }, "w"),
        (Nf4View { blocksize: 0, ..good }, "w.blocksize"),
        (Nf4View { blocksize: 16, ..good }, "w.blocksize"),
        (Nf4View { blocksize: 48, ..good }, "w.blocksize"),
        (Nf4View { blocksize: 8192, ..good }, "w.blocksize"),
        (Nf4View { dtype: DType::I32, ..good }, "w.dtype"),
        (Nf4View { dtype: DType::F64, ..good }, "w.dtype"),
        (Nf4View { packed: codes(63), ..good }, "w.packed"),
        (Nf4View { packed: View::strided(&CODES, &[64], &[2]).unwrap(), ..good }, "w.packed"),
        (Nf4View { code: ones(&[15]), ..good }, "w.code"),
        (Nf4View { absmax: Absmax::F32(ones(&[3])), ..good }, "w.absmax"),
        (Nf4View { absmax: nested(3, 1, 256, 0.0, 256), ..good }, "w.absmax.codes"),
        (Nf4View { absmax: nested(4, 2, 256, 0.0, 256), ..good }, "w.absmax.nested"),
        (Nf4View { absmax: nested(4, 1, 16, 0.0, 256), ..good }, "w.absmax.table"),
        (Nf4View { absmax: nested(4, 1, 256, f32::NAN, 256), ..good }, "w.absmax.offset"),
        (Nf4View { absmax: nested(4, 1, 256, 0.0, 0), ..good }, "w.absmax.nested_blocksize"),
    ]
}

#[test]
fn nf4_products_refuse_bad_input() {
    let forward = |w, x, lora: &[_], adapter: Option<&[i32]>, arg| {
        let mut y = [5f32; M * N];
        let (adapter, out) = (adapter.map(View::from), ViewMut::rows_of(&mut y, N).unwrap());
        let args = Nf4Matmul { x, w, bias: None, lora, adapter, s: None, residual: None, y: out };
        refused(nf4_matmul(&CPU, args), "nf4_matmul", arg);
        assert_eq!(y, [5.0; M * N], "{arg}");
    };
    let backward = |w, dy, lora: &[_], adapter: Option<&[i32]>, arg| {
        let mut dx = [5f32; M * K];
        let (adapter, dx_view) = (adapter.map(View::from), ViewMut::rows_of(&mut dx, K).unwrap());
        let args = Nf4MatmulDx { dy, w, lora, adapter, accumulate: true, dx: dx_view };
        refused(nf4_matmul_dx(&CPU, args), "nf4_matmul_dx", arg);
        assert_eq!(dx, [5.0; M * K], "{arg}");
    };
    for (w, arg) in bad_weights() {
        forward(w, ones(&[3, 32]), &[], None, arg);
        backward(w, ones(&[3, 4]), &[], None, arg);
    }
    for (lora, adapter, arg) in bad_adapters() {
        forward(good_nf4(), ones(&[3, 32]), &lora, adapter.as_deref(), arg);
        backward(good_nf4(), ones(&[3, 4]), &lora, adapter.as_deref(), arg);
    }
    forward(good_nf4(), ones(&[3, 31]), &[], None, "x");
    forward(good_nf4(), ones(&[4, 32]), &[], None, "y");
    backward(good_nf4(), ones(&[3, 5]), &[], None, "dy");
    backward(good_nf4(), ones(&[2, 4]), &[], None, "dx");
}

/// Every op that takes a 4-bit weight has the same check: what one refuses, all refuse.
#[test]
fn every_op_with_a_4_bit_weight_refuses_the_same_ones() {
    for (w, arg) in bad_weights() {
        let (mut y, mut dx, mut logp) = ([5f32; M * N], [5f32; M * K], [5f32; M]);
        let offsets = View::from(&[0i64, M as i64][..]);
        let args = Nf4MatmulGrouped { x: ones(&[3, 32]), offsets, w: &[w], y: rows(&mut y, N) };
        refused(nf4_matmul_grouped(&CPU, args), "nf4_matmul_grouped", arg);
        let (dy, accumulate) = (ones(&[3, 4]), true);
        let args = Nf4MatmulGroupedDx { dy, offsets, w: &[w], accumulate, dx: rows(&mut dx, K) };
        refused(nf4_matmul_grouped_dx(&CPU, args), "nf4_matmul_grouped_dx", arg);
        let (targets, head) = (View::from(&[0i32, 1, 2][..]), Head::Nf4(w));
        // A matrix without values is no weight of a product, but may be expanded.
        let empty = w.n == 0 || w.k == 0;
        if !empty {
            let args = Nf4Dequantize { w, y: rows(&mut y, N) };
            refused(nf4_dequantize(&CPU, args), "nf4_dequantize", arg);
            let named = arg.replacen('w', "head", 1);
            let args =
                LinearLogProb::new(ones(&[3, 32]), head, targets, ViewMut::from(&mut logp[..]));
            refused(linear_logprob(&CPU, args), "linear_logprob", &named);
            let args = LinearLogProbBwd {
                hidden: ones(&[3, 32]),
                head,
                lora: &[],
                targets,
                vocab: 4,
                transform: LogitTransform::default(),
                dlogp: ones(&[3]),
                dentropy: None,
                dhidden: rows(&mut dx, K),
                dweight: None,
            };
            refused(linear_logprob_bwd(&CPU, args), "linear_logprob_bwd", &named);
        }
        assert_eq!((y, dx, logp), ([5.0; M * N], [5.0; M * K], [5.0; M]), "{arg}");
    }
}

fn rows(values: &mut [f32], width: usize) -> ViewMut<'_, f32> {
    ViewMut::rows_of(values, width).unwrap()
}
