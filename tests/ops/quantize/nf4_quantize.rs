//! 4-bit quantization: golden files of bitsandbytes, nearest codes, layout, invariances, bad input.

use crate::common::devices::executors;
use crate::common::{Golden, bits, normals, normals_f32, refused};
use crate::quantize::tensors::*;
use gradus::dtype::Float;
use gradus::ops::{
    Nf4Dequantize, Nf4Quantize, Nf4QuantizeAbsmax, nf4_dequantize, nf4_quantize,
    nf4_quantize_absmax,
};
use gradus::quant::{
    NF4_CODE, Nf4Options, Nf4Parts, Nf4Tensor, OwnedAbsmax, QuantType, dynamic_map,
};
use gradus::{DType, Device, Error, View, ViewMut, bf16, f16};
use proptest::prelude::*;

/// Codes, maxima, nested maxima, nested codes, tables and offset: all equal bit for bit.
fn check_golden<T: Float>(golden: &Golden) {
    for executor in executors() {
        check_golden_on::<T>(&executor.device, golden);
    }
}

fn check_golden_on<T: Float>(device: &Device, golden: &Golden) {
    let (name, shape) = (&golden.name, golden.shape("weight"));
    let weight: Vec<T> = golden.get("weight");
    let x = View::rows_of(&weight, shape[1]).unwrap();
    let tensor = Nf4Tensor::quantize(device, x, &golden_options(golden)).unwrap();
    let parts = tensor.parts();
    assert_eq!(parts.packed, golden.raw("packed"), "{name}: packed");
    assert_eq!(bits(&parts.code), bits(&golden.get::<f32>("code")), "{name}: code");
    match &parts.absmax {
        OwnedAbsmax::F32(absmax) => {
            assert_eq!(bits(absmax), bits(&golden.get("absmax")), "{name}: absmax");
        }
        OwnedAbsmax::Nested { codes, nested, table, offset, .. } => {
            assert_eq!(bits(&[*offset]), bits(&golden.get("offset")), "{name}: offset");
            assert_eq!(bits(nested), bits(&golden.get("nested_absmax")), "{name}: nested");
            assert_eq!(bits(table), bits(&golden.get("nested_code")), "{name}: table");
            assert_eq!(codes, &golden.raw("absmax"), "{name}: absmax codes");
        }
    }
}

#[test]
fn nf4_quantize_equals_bitsandbytes_bit_for_bit() {
    for golden in Golden::family("nf4") {
        match golden.dtype("weight") {
            safetensors::Dtype::F32 => check_golden::<f32>(&golden),
            safetensors::Dtype::F16 => check_golden::<f16>(&golden),
            safetensors::Dtype::BF16 => check_golden::<bf16>(&golden),
            other => panic!("{other:?}"),
        }
    }
}

/// Every block size, every kind of tail: codes are nearest in f64 up to f32 rounding of the scaled
/// value, maxima exact.
#[test]
fn nf4_codes_are_the_nearest_for_every_block_and_tail_size() {
    for quant_type in [QuantType::Nf4, QuantType::Fp4] {
        for blocksize in [32, 64, 128, 256, 512, 1024, 2048, 4096] {
            for n in [1, 2, 31, blocksize - 1, blocksize, blocksize + 1, 2 * blocksize + 17] {
                let x = normals_f32(n as u64, n, 1.0);
                let tensor = quantize(&x, n, &options(quant_type, blocksize));
                check_nearest(&x, &tensor);
            }
        }
    }
}

fn check_nearest(x: &[f32], tensor: &Nf4Tensor) {
    let p = tensor.parts();
    let OwnedAbsmax::F32(absmax) = &p.absmax else { unreachable!() };
    assert_eq!(absmax.len(), x.len().div_ceil(p.blocksize));
    assert_eq!(p.packed.len(), x.len().div_ceil(2));
    for (block, values) in x.chunks(p.blocksize).enumerate() {
        let max = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert_eq!(absmax[block], max);
        for (i, &v) in values.iter().enumerate() {
            let chosen = p.code[nibble(&p.packed, block * p.blocksize + i)] as f64;
            let scaled = v as f64 / max as f64;
            let best =
                p.code.iter().map(|&c| (scaled - c as f64).abs()).fold(f64::INFINITY, f64::min);
            assert!((scaled - chosen).abs() <= best + 2e-7, "{v} / {max} got {chosen}");
        }
    }
}

/// A full block multiplies by the reciprocal, a short one divides. Values next to a threshold,
/// where the two round apart, tell which.
#[test]
fn nf4_scales_full_blocks_by_reciprocal_and_short_ones_by_division() {
    let bounds: Vec<f32> = NF4_CODE.windows(2).map(|c| (c[0] + c[1]) / 2.0).collect();
    let rank = |scaled: f32| bounds.iter().filter(|&&bound| scaled > bound).count();
    let mut apart = 0;
    for step in 0..200 {
        let max = 1.0 + step as f32 * 0.00731;
        for bound in &bounds {
            let near = (bound * max).to_bits();
            for bits in near - 2..=near + 2 {
                let x = f32::from_bits(bits);
                let (by_reciprocal, by_division) = (rank(x * (1.0 / max)), rank(x / max));
                apart += (by_reciprocal != by_division) as usize;
                let mut block = [0.0; 32];
                block[..2].copy_from_slice(&[max, x]);
                for (len, want) in [(32, by_reciprocal), (2, by_division)] {
                    let tensor = quantize(&block[..len], len, &options(QuantType::Nf4, 32));
                    assert_eq!(nibble(&tensor.parts().packed, 1), want, "{x} of {max}, {len}");
                }
            }
        }
    }
    assert!(apart > 100, "only {apart} values tell the two apart");
}

#[test]
fn nf4_layout_zero_blocks_and_padding() {
    let tensor = quantize(&[1.0, -1.0, 0.0], 3, &options(QuantType::Nf4, 64));
    assert_eq!(tensor.parts().packed, [0xF0, 0x77], "first element high, padding is code 7");
    let tensor = quantize(&[0.0; 128], 64, &options(QuantType::Nf4, 64));
    assert_eq!(tensor.parts().packed, [0x77; 64]);
    assert_eq!(tensor.parts().absmax, OwnedAbsmax::F32(vec![0.0; 2]));
    assert_eq!(dequantize(&tensor), [0.0; 128]);
    // A short block of zeros stores the smallest scale, as the peer does; it still decodes to 0.
    let tensor = quantize(&[0.0; 3], 3, &options(QuantType::Fp4, 64));
    assert_eq!(tensor.parts().absmax, OwnedAbsmax::F32(vec![1e-38]));
    assert_eq!((&tensor.parts().packed[..], dequantize(&tensor)), (&[0u8, 0][..], vec![0.0; 3]));
}

/// Subnormal and huge blocks: maxima exact, no NaN, error within the bound where 1e-38 is no floor.
#[test]
fn nf4_survives_extreme_magnitudes() {
    for scale in [1e-40f32, 1e-38, 1e-30, 1e30, 1e38] {
        let x: Vec<f32> = normals(9, 130, 0.3).iter().map(|&v| (v as f32) * scale).collect();
        for double_quant in [false, true] {
            let options = Nf4Options { double_quant, ..options(QuantType::Nf4, 64) };
            let y = dequantize(&quantize(&x, 130, &options));
            assert!(y.iter().all(|v| v.is_finite()), "{scale}");
        }
        if scale >= 1e-30 {
            check_nearest(&x, &quantize(&x, 130, &options(QuantType::Nf4, 64)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Scaling by a power of two scales the maxima and leaves the codes.
    #[test]
    fn nf4_codes_do_not_change_with_a_power_of_two(seed in 0u64..1000, e in -20i32..20, n in 1usize..300) {
        let x = normals_f32(seed, n, 1.0);
        let scaled: Vec<f32> = x.iter().map(|v| v * 2f32.powi(e)).collect();
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let a = quantize(&x, n, &options(quant_type, 64));
            let b = quantize(&scaled, n, &options(quant_type, 64));
            prop_assert_eq!(&a.parts().packed, &b.parts().packed);
            let twice: Vec<f32> = dequantize(&a).iter().map(|v| v * 2f32.powi(e)).collect();
            prop_assert_eq!(twice, dequantize(&b));
        }
    }

    /// Quantizing dequantized values gives the same tensor.
    #[test]
    fn nf4_round_trip_is_idempotent(seed in 0u64..1000, n in 1usize..700, log in 5u32..10) {
        for quant_type in [QuantType::Nf4, QuantType::Fp4] {
            let first = quantize(&normals_f32(seed, n, 1.0), n, &options(quant_type, 1 << log));
            let y = dequantize(&first);
            let second = quantize(&y, n, &options(quant_type, 1 << log));
            prop_assert_eq!(&first.parts().absmax, &second.parts().absmax);
            prop_assert_eq!(y, dequantize(&second));
        }
    }

    /// Strided rows, and the same matrix in a wider dtype, quantize as the contiguous one.
    #[test]
    fn nf4_quantize_reads_strided_rows(seed in 0u64..1000, n in 1usize..9, k in 1usize..90) {
        let stride = k + 5;
        let data: Vec<bf16> = normals(seed, n * stride, 1.0).into_iter().map(bf16::from_f64).collect();
        let dense: Vec<bf16> = data.chunks(stride).flat_map(|row| row[..k].to_vec()).collect();
        let wide: Vec<f32> = dense.iter().map(|x| x.to_f32()).collect();
        let view = View::strided(&data, &[n as i64, k as i64], &[stride as i64, 1]).unwrap();
        let opts = Nf4Options::default();
        let strided = Nf4Tensor::quantize(&Device::Cpu, view, &opts).unwrap().into_parts();
        let contiguous =
            Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&dense, k).unwrap(), &opts).unwrap();
        prop_assert_eq!(&strided, contiguous.parts());
        let widened = quantize(&wide, k, &opts);
        prop_assert_eq!(&strided.packed, &widened.parts().packed);
    }
}

/// Blocks are independent: a block's codes are the same alone and inside a matrix.
#[test]
fn nf4_blocks_are_bitwise_independent_of_their_neighbors() {
    let x = normals_f32(3, 64 * 40, 1.0);
    let whole = quantize(&x, 64, &options(QuantType::Nf4, 64));
    for (i, block) in x.chunks(64).enumerate() {
        let alone = quantize(block, 64, &options(QuantType::Nf4, 64));
        assert_eq!(alone.parts().packed, whole.parts().packed[32 * i..32 * (i + 1)]);
    }
}

#[test]
fn nf4_is_bitwise_the_same_for_every_thread_count() {
    let x = normals_f32(4, 300 * 701, 1.0);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let tensor = quantize(&x, 701, &Nf4Options::default());
            let y = bits(&dequantize(&tensor));
            (tensor.into_parts(), y)
        })
    };
    let one = run(1);
    for threads in [2, 4, 7] {
        assert_eq!(one, run(threads), "{threads} threads");
    }
}

/// Strided output rows; the gaps between rows and the space around every output stay untouched.
#[test]
fn nf4_writes_its_outputs_and_nothing_else() {
    let (n, k, stride) = (7, 45, 50);
    let x = normals_f32(6, n * k, 1.0);
    let tensor = quantize(&x, k, &options(QuantType::Nf4, 32));
    let mut y = vec![f32::NAN; n * stride + 3];
    let view = ViewMut::strided(&mut y[1..], &[n as i64, k as i64], &[stride as i64, 1]).unwrap();
    nf4_dequantize(&Device::Cpu, Nf4Dequantize { w: tensor.view(), y: view }).unwrap();
    let expected = dequantize(&tensor);
    for (i, v) in y.iter().enumerate() {
        let (row, column) = (i.wrapping_sub(1) / stride, i.wrapping_sub(1) % stride);
        if row < n && column < k {
            assert_eq!(*v, expected[row * k + column]);
        } else {
            assert!(v.is_nan(), "element {i} was written");
        }
    }
    let blocks = (n * k).div_ceil(32);
    let (mut packed, mut absmax) = (vec![0xAAu8; 160 + 2], vec![f32::NAN; blocks + 2]);
    let args = Nf4Quantize {
        x: View::rows_of(&x, k).unwrap(),
        quant_type: QuantType::Nf4,
        blocksize: 32,
        packed: (&mut packed[1..1 + (n * k).div_ceil(2)]).into(),
        absmax: (&mut absmax[1..1 + blocks]).into(),
    };
    nf4_quantize(&Device::Cpu, args).unwrap();
    assert_eq!(packed[1..159], tensor.parts().packed);
    assert!(packed[0] == 0xAA && packed[159..].iter().all(|&b| b == 0xAA));
    assert!(absmax[0].is_nan() && absmax[blocks + 1].is_nan());
    assert!(absmax[1..=blocks].iter().all(|v| v.is_finite()));
}

/// Decoded maxima lie within half a table gap of the plain ones.
#[test]
fn nf4_double_quantization_error_is_bounded() {
    let x = normals_f32(7, 64 * 1000, 1.0);
    let plain = quantize(&x, 64, &options(QuantType::Nf4, 64));
    let nested = quantize(&x, 64, &Nf4Options::default());
    assert_eq!(plain.parts().packed, nested.parts().packed);
    let OwnedAbsmax::F32(absmax) = &plain.parts().absmax else { unreachable!() };
    let OwnedAbsmax::Nested { codes, nested: scale, table, offset, .. } = &nested.parts().absmax
    else {
        unreachable!()
    };
    let mean = absmax.iter().map(|&v| v as f64).sum::<f64>() / absmax.len() as f64;
    assert!((*offset as f64 - mean).abs() <= 4.0 * f32::EPSILON as f64 * mean);
    for (i, &v) in absmax.iter().enumerate() {
        let decoded = table[codes[i] as usize] * scale[i / 256] + offset;
        // Widest gap of the table: 0.0141, plus half a step of the grid of 65536 points.
        assert!((decoded - v).abs() <= 0.0072 * scale[i / 256], "block {i}: {decoded} for {v}");
    }
}

#[test]
fn nf4_of_nothing_is_nothing() {
    for (n, k) in [(0, 5), (5, 0)] {
        let x = View::<f32>::new(&[], &[n, k]).unwrap();
        let tensor = Nf4Tensor::quantize(&Device::Cpu, x, &Nf4Options::default()).unwrap();
        assert!(dequantize(&tensor).is_empty());
        assert_eq!(tensor.bits_per_parameter(), 0.0);
    }
}

#[test]
fn nf4_tensor_counts_its_bytes() {
    let x = vec![0.5f32; 64 * 1024];
    let plain = quantize(&x, 64, &options(QuantType::Nf4, 64));
    assert_eq!(plain.bytes(), 32 * 1024 + 4 * 1024 + 64);
    let nested = quantize(&x, 64, &Nf4Options::default());
    assert_eq!(nested.bytes(), 32 * 1024 + 1024 + 4 * 4 + 4 * 257 + 64);
    assert!((plain.bits_per_parameter() - 4.5).abs() < 0.01);
}

/// Each argument of nf4_quantize wrong once; outputs keep their content.
#[test]
fn nf4_quantize_refuses_bad_arguments() {
    let x = normals_f32(8, 96, 1.0);
    let call = |x: View<'_, f32>, blocksize, packed: usize, absmax: usize, arg: &str| {
        let (mut p, mut a) = (vec![0xAAu8; packed], vec![f32::NAN; absmax]);
        let args = Nf4Quantize {
            x,
            quant_type: QuantType::Nf4,
            blocksize,
            packed: (&mut p).into(),
            absmax: (&mut a).into(),
        };
        refused(nf4_quantize(&Device::Cpu, args), arg);
        assert!(p.iter().all(|&b| b == 0xAA) && a.iter().all(|v| v.is_nan()), "{arg}: written");
    };
    let good = View::rows_of(&x, 32).unwrap();
    call((&x).into(), 32, 48, 3, "x");
    call(View::strided(&x, &[32, 3], &[1, 32]).unwrap(), 32, 48, 3, "x");
    for blocksize in [0, 16, 48, 8192] {
        call(good, blocksize, 48, 3, "blocksize");
    }
    call(good, 32, 47, 3, "packed");
    call(good, 32, 48, 2, "absmax");
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 95), (f32::NEG_INFINITY, 40)] {
        let mut x = x.clone();
        x[at] = bad;
        call(View::rows_of(&x, 32).unwrap(), 32, 48, 3, "x");
        let opts = Nf4Options::default();
        let error =
            Nf4Tensor::quantize(&Device::Cpu, View::rows_of(&x, 32).unwrap(), &opts).unwrap_err();
        assert!(matches!(error, Error::NonFinite { index, .. } if index == at), "{error}");
    }
    let wide = [0f64; 4];
    let x = View::rows_of(&wide, 2).unwrap();
    let error = Nf4Tensor::quantize(&Device::Cpu, x, &Nf4Options::default()).unwrap_err();
    assert!(error.to_string().contains("f64"), "{error}");
}

#[test]
fn nf4_quantize_absmax_refuses_bad_arguments() {
    let call = |absmax: &[f32], table: &[f32], codes: usize, nested: usize, arg: &str| {
        let (mut c, mut m, mut offset) = (vec![0xAAu8; codes], vec![f32::NAN; nested], f32::NAN);
        let args = Nf4QuantizeAbsmax {
            absmax: absmax.into(),
            table: table.into(),
            codes: (&mut c).into(),
            nested: (&mut m).into(),
            offset: &mut offset,
        };
        refused(nf4_quantize_absmax(&Device::Cpu, args), arg);
        assert!(c.iter().all(|&b| b == 0xAA) && m.iter().all(|v| v.is_nan()) && offset.is_nan());
    };
    let table = dynamic_map(true);
    call(&[1.0; 300], table, 299, 2, "codes");
    call(&[1.0; 300], table, 300, 1, "nested");
    call(&[1.0; 300], &table[1..], 300, 2, "table");
    call(&[1.0, -1.0], table, 2, 1, "absmax");
    call(&[1.0, f32::NAN], table, 2, 1, "absmax");
    call(&[3e38, 3e38], table, 2, 1, "absmax");
    let mut falling = table.to_vec();
    falling.swap(3, 4);
    call(&[1.0, 2.0], &falling, 2, 1, "table");
    falling[3] = f32::NAN;
    call(&[1.0, 2.0], &falling, 2, 1, "table");
}

#[test]
fn nf4_tensor_refuses_parts_that_do_not_fit() {
    let good = quantize(&normals_f32(8, 96, 1.0), 32, &Nf4Options::default()).into_parts();
    assert!(Nf4Tensor::from_parts(good.clone()).is_ok());
    let call = |change: &dyn Fn(&mut Nf4Parts), arg: &str| {
        let mut parts = good.clone();
        change(&mut parts);
        refused(Nf4Tensor::from_parts(parts).map(|_| ()), arg);
    };
    call(&|p| p.packed.truncate(47), "parts.packed");
    call(&|p| p.n = 4, "parts.packed");
    call(&|p| p.n = usize::MAX, "parts");
    call(&|p| p.code.push(0.0), "parts.code");
    call(&|p| p.code[3] = f32::NAN, "parts.code");
    call(&|p| p.blocksize = 100, "parts.blocksize");
    call(&|p| p.dtype = DType::I32, "parts.dtype");
    call(&|p| p.absmax = OwnedAbsmax::F32(vec![f32::INFINITY; 2]), "parts.absmax");
    call(&|p| p.absmax = OwnedAbsmax::F32(vec![1.0; 3]), "parts.absmax");
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>, &mut Vec<f32>, &mut Vec<f32>, &mut f32);
    let nested = |change: Change<'_>, arg| {
        let alter = |p: &mut Nf4Parts| match &mut p.absmax {
            OwnedAbsmax::Nested { codes, nested, table, offset, .. } => {
                change(codes, nested, table, offset)
            }
            OwnedAbsmax::F32(_) => unreachable!(),
        };
        call(&alter, arg);
    };
    nested(&|codes, _, _, _| codes.clear(), "parts.absmax.codes");
    nested(&|_, nested, _, _| nested.push(1.0), "parts.absmax.nested");
    nested(&|_, nested, _, _| nested[0] = f32::NAN, "parts.absmax.nested");
    nested(&|_, _, table, _| table.truncate(255), "parts.absmax.table");
    nested(&|_, _, table, _| table[9] = f32::NAN, "parts.absmax.table");
    nested(&|_, _, _, offset| *offset = f32::NAN, "parts.absmax.offset");
}
