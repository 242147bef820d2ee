//! Dequantized values: the rule, the golden files of bitsandbytes, bad input.

use crate::common::devices::on_all;
use crate::common::{Golden, bits, normals, normals_f32, refused};
use crate::quantize::tensors::*;
use gradus::ops::{Nf4Dequantize, nf4_dequantize};
use gradus::quant::{
    Absmax, Nf4Options, Nf4Parts, Nf4Tensor, Nf4View, OwnedAbsmax, QuantType, dynamic_map,
};
use gradus::{DType, Device, View, ViewMut, bf16};

/// The golden file's codes and maxima as a tensor, as a checkpoint loader would build it.
fn golden_tensor(golden: &Golden) -> Nf4Tensor {
    let (options, shape) = (golden_options(golden), golden.shape("weight"));
    let absmax = if options.double_quant {
        OwnedAbsmax::Nested {
            codes: golden.raw("absmax"),
            nested: golden.get("nested_absmax"),
            table: golden.get("nested_code"),
            offset: golden.get::<f32>("offset")[0],
            nested_blocksize: golden.number("nested_blocksize").unwrap() as usize,
        }
    } else {
        OwnedAbsmax::F32(golden.get("absmax"))
    };
    let dtype = match golden.dtype("weight") {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        _ => DType::Bf16,
    };
    let (code, packed) = (golden.get("code"), golden.raw("packed"));
    let (blocksize, quant_type) = (options.blocksize, options.quant_type);
    let (n, k) = (shape[0], shape[1]);
    Nf4Tensor::from_parts(Nf4Parts { packed, absmax, code, n, k, blocksize, dtype, quant_type })
        .unwrap()
}

#[test]
fn nf4_dequantize_equals_the_rule_bit_for_bit() {
    for golden in Golden::family("nf4") {
        let tensor = golden_tensor(&golden);
        let rule = dequantized_by_rule(&tensor);
        assert_eq!(bits(&dequantize(&tensor)), bits(&rule), "{}", golden.name);
    }
}

/// Wherever rows are whole blocks the dequantized values are bitsandbytes' own, bit for bit.
#[test]
fn nf4_dequantize_equals_bitsandbytes() {
    let mut checked = 0;
    for golden in Golden::family("nf4") {
        let tensor = golden_tensor(&golden);
        if tensor.k().is_multiple_of(tensor.parts().blocksize) {
            let peer: Vec<f32> = golden.f64("dequantized").iter().map(|&x| x as f32).collect();
            assert_eq!(bits(&dequantize(&tensor)), bits(&peer), "{}", golden.name);
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}

/// Where K is not a multiple of the block size, bitsandbytes 0.50.2's AVX-512 dequantization takes
/// the wrong block's maximum. Half the widest gap of the code book (0.152) bounds |w − y| /
/// absmax: our values keep the bound everywhere, the peer's break it by far.
#[test]
fn nf4_dequantize_is_right_where_the_peer_mixes_up_blocks() {
    let mut checked = 0;
    for golden in Golden::family("nf4") {
        let tensor = golden_tensor(&golden);
        let p = tensor.parts();
        if p.k.is_multiple_of(p.blocksize) || golden.has("nested_absmax") {
            continue;
        }
        let OwnedAbsmax::F32(absmax) = &p.absmax else { unreachable!() };
        let (weight, ours) = (golden.f64("weight"), dequantize(&tensor));
        let peer = golden.f64("dequantized");
        let worst = |y: &dyn Fn(usize) -> f64| {
            (0..weight.len()).fold(0.0, |worst, i| {
                f64::max(worst, (weight[i] - y(i)).abs() / absmax[i / p.blocksize] as f64)
            })
        };
        let slack = 0.004; // one bf16 rounding of a value up to the maximum
        let ours = worst(&|i| ours[i] as f64);
        assert!(ours <= 0.1520 + slack, "{}: {ours}", golden.name);
        let theirs = worst(&|i| peer[i]);
        assert!(theirs > 0.3, "{}: the peer is right now ({theirs})", golden.name);
        checked += 1;
    }
    assert!(checked > 0);
}

/// The dequantized value passes through the original dtype, whatever type it is asked in.
#[test]
fn nf4_dequantize_rounds_to_the_original_dtype_first() {
    let x: Vec<bf16> = normals(5, 330, 1.0).into_iter().map(bf16::from_f64).collect();
    let opts = Nf4Options::default();
    let t = Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&x, 33).unwrap(), &opts).unwrap();
    let same = |name: &str, ok: bool| assert!(ok, "{name}");
    let narrow: Vec<bf16> = on_all(|d| t.dequantize(d).unwrap(), |n, a, b| same(n, a == b));
    let wide: Vec<f32> = on_all(|d| t.dequantize(d).unwrap(), |n, a, b| same(n, a == b));
    let widest: Vec<f64> = on_all(|d| t.dequantize(d).unwrap(), |n, a, b| same(n, a == b));
    assert!(narrow.iter().zip(&wide).all(|(a, b)| a.to_f32() == *b));
    assert!(wide.iter().zip(&widest).all(|(a, b)| *a as f64 == *b));
}

#[test]
fn nf4_dequantize_refuses_bad_arguments() {
    let tensor = quantize(&normals_f32(8, 96, 1.0), 32, &options(QuantType::Nf4, 32));
    let good = tensor.view();
    let call = |w: Nf4View<'_>, shape: [i64; 2], arg: &str| {
        let mut y = vec![f32::NAN; 96];
        let y_view = ViewMut::new(&mut y, &shape).unwrap();
        refused(nf4_dequantize(&Device::Cpu, Nf4Dequantize { w, y: y_view }), arg);
        assert!(y.iter().all(|v| v.is_nan()), "{arg}: written");
    };
    let (packed, floats, codes) = ([0u8; 47], [0f32; 255], [0u8; 3]);
    call(Nf4View { packed: packed[..].into(), ..good }, [3, 32], "w.packed");
    call(Nf4View { code: floats[..15].into(), ..good }, [3, 32], "w.code");
    call(Nf4View { blocksize: 33, ..good }, [3, 32], "w.blocksize");
    call(Nf4View { dtype: DType::F64, ..good }, [3, 32], "w.dtype");
    call(Nf4View { n: usize::MAX, ..good }, [3, 32], "w");
    call(Nf4View { absmax: Absmax::F32(floats[..2].into()), ..good }, [3, 32], "w.absmax");
    call(good, [32, 3], "y");
    let nested = |codes, nested, table, offset, nested_blocksize| Nf4View {
        absmax: Absmax::Nested { codes, nested, table, offset, nested_blocksize },
        ..good
    };
    let table = dynamic_map(true)[..].into();
    let (c, one) = (View::from(&codes[..]), View::from(&floats[..1]));
    call(nested(codes[..2].into(), one, table, 0.0, 256), [3, 32], "w.absmax.codes");
    call(nested(c, floats[..2].into(), table, 0.0, 256), [3, 32], "w.absmax.nested");
    call(nested(c, one, floats[..].into(), 0.0, 256), [3, 32], "w.absmax.table");
    call(nested(c, one, table, f32::NAN, 256), [3, 32], "w.absmax.offset");
    call(nested(c, one, table, 0.0, 0), [3, 32], "w.absmax.nested_blocksize");
}
