//! 4-bit weights and bad input: every argument wrong once, the message names it, and the outputs keep what they held.

use crate::products::arguments::*;
use gradus::ops::{
    Head, LinearLogProb, LinearLogProbBwd, LogitTransform, Nf4Dequantize, Nf4Matmul, Nf4MatmulDx,
    Nf4MatmulGrouped, Nf4MatmulGroupedDx, linear_logprob, linear_logprob_bwd, nf4_dequantize,
    nf4_matmul, nf4_matmul_dx, nf4_matmul_grouped, nf4_matmul_grouped_dx,
};
use gradus::quant::{Absmax, Nf4View};
use gradus::{DType, View, ViewMut};

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
