//! Swizzles, tensor maps and the bytes a box copies.

mod tensor_common;

use gradus_emu::tensor::reduce::Reduction;
use gradus_emu::tensor::swizzle::Swizzle;
use gradus_emu::tensor::tensor_map::{TensorElement, TensorMap, Tiled};
use tensor_common::Bits;

#[test]
fn swizzles_in_closed_form() {
    for row in 0..64_u32 {
        for chunk in 0..8 {
            let address = 128 * row + 16 * chunk;
            assert_eq!(Swizzle::B128.apply(address + 5), 128 * row + 16 * (chunk ^ (row % 8)) + 5);
            // In rows of 64 bytes the pattern is chunk ^= (row / 2) % 4, of 32 bytes (row / 4) % 2.
            let (row64, chunk4) = (address / 64, address / 16 % 4);
            assert_eq!(Swizzle::B64.apply(address), 64 * row64 + 16 * (chunk4 ^ (row64 / 2 % 4)));
            let (row32, chunk2) = (address / 32, address / 16 % 2);
            assert_eq!(Swizzle::B32.apply(address), 32 * row32 + 16 * (chunk2 ^ (row32 / 4 % 2)));
            assert_eq!(Swizzle::None.apply(address), address);
        }
    }
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let repeat = swizzle.repeat_bytes();
        for address in 0..4096 {
            assert_eq!(swizzle.apply(swizzle.apply(address)), address);
            assert_eq!(swizzle.apply(address + repeat), swizzle.apply(address) + repeat);
        }
    }
}

/// A 2-D bf16 map of 100 x 72 elements, box 64 x 32.
fn matrix(swizzle: Swizzle) -> Tiled<'static> {
    Tiled {
        element: TensorElement::Bf16,
        address: 0x1_0000,
        dims: &[72, 100],
        strides: &[160],
        extents: &[64, 32],
        element_strides: &[1, 1],
        swizzle,
    }
}

#[test]
fn every_limit_is_checked_and_named() {
    let good = matrix(Swizzle::B128);
    assert!(TensorMap::new(&good).is_ok());
    let bad: [(Tiled<'_>, &str); 17] = [
        (
            Tiled { dims: &[], strides: &[], extents: &[], element_strides: &[], ..good.clone() },
            "dims: rank 0",
        ),
        (Tiled { dims: &[1; 6], ..good.clone() }, "dims: rank 6"),
        (Tiled { strides: &[], ..good.clone() }, "strides: 0 values for rank 2, expected 1"),
        (Tiled { extents: &[64], ..good.clone() }, "extents: 1 values"),
        (Tiled { element_strides: &[1; 3], ..good.clone() }, "element_strides: 3 values"),
        (Tiled { address: 0x1_0008, ..good.clone() }, "address: 0x10008"),
        (Tiled { dims: &[0, 100], ..good.clone() }, "dims[0]: 0"),
        (Tiled { dims: &[72, (1 << 32) + 1], ..good.clone() }, "dims[1]: 4294967297"),
        (Tiled { strides: &[168], ..good.clone() }, "strides[0]: 168 bytes"),
        (Tiled { strides: &[1 << 40], ..good.clone() }, "strides[0]: 1099511627776"),
        (Tiled { extents: &[64, 257], ..good.clone() }, "extents[1]: 257"),
        (Tiled { extents: &[64, 0], ..good.clone() }, "extents[1]: 0"),
        (
            Tiled { extents: &[60, 32], ..good.clone() },
            "extents[0]: 120 bytes, expected a multiple",
        ),
        (Tiled { extents: &[72, 32], ..good.clone() }, "extents[0]: 144 bytes, at most 128"),
        (Tiled { swizzle: Swizzle::B32, ..good.clone() }, "extents[0]: 128 bytes, at most 32"),
        (Tiled { element_strides: &[1, 9], ..good.clone() }, "element_strides[1]: 9"),
        (Tiled { element_strides: &[0, 1], ..good.clone() }, "element_strides[0]: 0"),
    ];
    for (tiled, text) in bad {
        let error = TensorMap::new(&tiled).unwrap_err();
        assert!(error.contains(text), "{error} does not contain {text}");
    }
    let map = TensorMap::new(&good).unwrap();
    assert!(map.pieces(64, &[0, 0]).unwrap_err().contains("0x40"));
    assert!(map.pieces(0, &[0]).unwrap_err().contains("1 coordinates"));
    assert!(map.pieces(0u32.wrapping_sub(128), &[0, 0]).unwrap_err().contains("4096 bytes"));
}

#[test]
fn maps_survive_their_encoding() {
    let five = Tiled {
        element: TensorElement::F64,
        address: 0x7fff_ffff_fff0,
        dims: &[1 << 32, 2, 3, 4, 5],
        strides: &[(1 << 40) - 16, 16, 32, 48],
        extents: &[2, 256, 3, 4, 5],
        element_strides: &[1, 8, 7, 6, 5],
        swizzle: Swizzle::None,
    };
    for tiled in [five, matrix(Swizzle::B128), matrix(Swizzle::None)] {
        let map = TensorMap::new(&tiled).unwrap();
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map.clone()));
        let mut broken = map.encode();
        broken[0] ^= 1;
        assert!(TensorMap::decode(&broken).is_err());
        let mut broken = map.encode();
        broken[4] = 6;
        assert!(TensorMap::decode(&broken).is_err());
    }
    assert!(TensorMap::decode(&[0; 128]).is_err());
}

/// The box byte by byte: shared address -> global address, from the definition.
fn by_definition(tiled: &Tiled<'_>, shared: u32, at: &[i64]) -> Vec<(u32, Option<u64>)> {
    let size = tiled.element.bytes();
    let rank = tiled.dims.len();
    let counts: Vec<u32> = (0..rank)
        .map(|d| {
            if d == 0 {
                tiled.extents[0]
            } else {
                tiled.extents[d].div_ceil(tiled.element_strides[d])
            }
        })
        .collect();
    let mut bytes = Vec::new();
    for element in 0..counts.iter().product::<u32>() {
        let mut rest = element;
        let mut address = tiled.address as i64;
        let mut inside = true;
        for d in 0..rank {
            let step = if d == 0 { 1 } else { tiled.element_strides[d] };
            let i = at[d] + i64::from(rest % counts[d] * step);
            rest /= counts[d];
            inside &= i >= 0 && i < tiled.dims[d] as i64;
            address += i * if d == 0 { i64::from(size) } else { tiled.strides[d - 1] as i64 };
        }
        for b in 0..size {
            let place = tiled.swizzle.apply(shared + element * size + b);
            bytes.push((place, inside.then_some(address as u64 + u64::from(b))));
        }
    }
    bytes.sort_unstable();
    bytes
}

fn check(tiled: &Tiled<'_>, shared: u32, at: &[i32]) {
    let map = TensorMap::new(tiled).unwrap();
    let mut bytes = Vec::new();
    for piece in map.pieces(shared, at).unwrap() {
        for b in 0..piece.bytes {
            bytes.push((piece.shared + b, piece.global.map(|g| g + u64::from(b))));
        }
    }
    bytes.sort_unstable();
    assert_eq!(bytes.len() as u32, map.box_bytes());
    let at: Vec<i64> = at.iter().map(|&x| i64::from(x)).collect();
    assert_eq!(bytes, by_definition(tiled, shared, &at), "{tiled:?} at {at:?}");
}

#[test]
fn boxes_inside_across_and_outside_the_tensor() {
    for swizzle in [Swizzle::None, Swizzle::B128] {
        let tiled = matrix(swizzle);
        for at in
            [[0, 0], [8, 64], [64, 96], [-5, -3], [71, 99], [72, 0], [-64, 0], [-70, -40], [0, 100]]
        {
            check(&tiled, 0x400, &at);
        }
        // Not aligned to the pattern: the swizzle is one of addresses.
        check(&tiled, 0x480, &[3, 7]);
    }
    let map = TensorMap::new(&matrix(Swizzle::None)).unwrap();
    assert_eq!(map.box_bytes(), 64 * 32 * 2);
    let whole = map.pieces(0, &[0, 0]).unwrap();
    assert_eq!(whole.len(), 32, "one piece per row without a swizzle");
    assert_eq!((whole[1].shared, whole[1].global, whole[1].bytes), (128, Some(0x1_00a0), 128));
}

#[test]
fn random_maps_of_every_rank() {
    let mut bits = Bits::new(9);
    let elements = [TensorElement::U8, TensorElement::F16, TensorElement::F32, TensorElement::S64];
    for round in 0..300 {
        let element = elements[round % 4];
        let swizzle = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128][round / 4 % 4];
        let rank = 1 + round % 5;
        let chunk = 16 / element.bytes();
        let row = if swizzle == Swizzle::None { 3 } else { swizzle.row_bytes() / 16 };
        let mut extents = vec![chunk * (1 + bits.below(u64::from(row)) as u32)];
        let mut dims = vec![1 + bits.below(40)];
        let (mut strides, mut steps) = (vec![], vec![1 + bits.below(8) as u32]);
        for _ in 1..rank {
            extents.push(1 + bits.below(4) as u32);
            dims.push(1 + bits.below(6));
            strides.push(16 * (64 + bits.below(1000)));
            steps.push(1 + bits.below(3) as u32);
        }
        let tiled = Tiled {
            element,
            address: 0x100_0000,
            dims: &dims,
            strides: &strides,
            extents: &extents,
            element_strides: &steps,
            swizzle,
        };
        let at: Vec<i32> = dims.iter().map(|&d| bits.integer(d as i64 + 2) as i32).collect();
        check(&tiled, 128 * bits.below(16) as u32, &at);
    }
}

#[test]
fn reductions_of_every_type() {
    let run = |element, x: &[u8], y: &[u8]| {
        let mut sum = x.to_vec();
        Reduction::Add.apply(element, &mut sum, y).map(|()| sum)
    };
    let three = |x: u32, y: u32, element| {
        let sum = run(element, &x.to_le_bytes(), &y.to_le_bytes()).unwrap();
        u32::from_le_bytes(sum.try_into().unwrap())
    };
    assert_eq!(three(u32::MAX, 2, TensorElement::U32), 1);
    assert_eq!(three(-5_i32 as u32, 2, TensorElement::S32), -3_i32 as u32);
    let f32_sum = three(1.5_f32.to_bits(), (-0.25_f32).to_bits(), TensorElement::F32);
    assert_eq!(f32_sum, 1.25_f32.to_bits());
    // Two bf16: 1 + 2^-8 is a tie to even, 1.0078125 + 2^-8 another, upward.
    let pair = three(0x3f81_3f80, 0x3b80_3b80, TensorElement::Bf16);
    assert_eq!(pair, 0x3f82_3f80);
    // The last bit of the small operand lifts 1 + 2^-8 off the tie.
    assert_eq!(three(0x3f80, 0x3b81, TensorElement::Bf16) & 0xffff, 0x3f81);
    assert_eq!(three(0x7f80, 0xff80, TensorElement::Bf16) & 0xffff, 0x7fff);
    let halves = three(0x3c00_7bff, 0x1000_5000, TensorElement::F16);
    assert_eq!(halves, 0x3c00_7c00, "1 + 2^-11 is a tie; 65504 + 32 overflows");
    let wide = run(TensorElement::F64, &1.0_f64.to_le_bytes(), &2.5_f64.to_le_bytes()).unwrap();
    assert_eq!(wide, 3.5_f64.to_le_bytes());
    let wide = run(TensorElement::U64, &u64::MAX.to_le_bytes(), &2_u64.to_le_bytes()).unwrap();
    assert_eq!(wide, 1_u64.to_le_bytes());
    assert!(run(TensorElement::U8, &[1], &[1]).is_err());
    assert!(run(TensorElement::F32, &[1; 6], &[1; 6]).is_err());
    assert!(run(TensorElement::F32, &[1; 4], &[1; 8]).is_err());
}

#[test]
fn the_other_reductions() {
    let run = |reduction: Reduction, element: TensorElement, x: u64, y: u64| {
        let size = element.bytes() as usize;
        let mut into = x.to_le_bytes()[..size].to_vec();
        reduction.apply(element, &mut into, &y.to_le_bytes()[..size])?;
        into.resize(8, 0);
        Ok::<u64, String>(u64::from_le_bytes(into.try_into().unwrap()))
    };
    let minus = |x: i32| u64::from(x as u32);
    for (reduction, element, x, y, want) in [
        (Reduction::Min, TensorElement::U32, 5, minus(-1), 5),
        (Reduction::Min, TensorElement::S32, 5, minus(-1), minus(-1)),
        (Reduction::Max, TensorElement::S32, 5, minus(-1), 5),
        (Reduction::Max, TensorElement::U64, 5, u64::MAX, u64::MAX),
        (Reduction::Max, TensorElement::S64, 5, u64::MAX, 5),
        (Reduction::Max, TensorElement::S64, 7, 7, 7),
        // 1 and -2 in f16; a NaN gives way.
        (Reduction::Min, TensorElement::F16, 0x3c00, 0xc000, 0xc000),
        (Reduction::Max, TensorElement::F16, 0x3c00, 0xc000, 0x3c00),
        (Reduction::Max, TensorElement::F16, 0x7fff, 0xc000, 0xc000),
        (Reduction::Min, TensorElement::Bf16, 0x3f80, 0x7fff, 0x3f80),
        (Reduction::Inc, TensorElement::U32, 3, 4, 4),
        (Reduction::Inc, TensorElement::U32, 4, 4, 0),
        (Reduction::Dec, TensorElement::U32, 0, 4, 4),
        (Reduction::Dec, TensorElement::U32, 9, 4, 4),
        (Reduction::Dec, TensorElement::U32, 3, 4, 2),
        (Reduction::And, TensorElement::U32, 12, 10, 8),
        (Reduction::Or, TensorElement::U64, 12, 10, 14),
        (Reduction::Xor, TensorElement::S32, 12, 10, 6),
    ] {
        assert_eq!(run(reduction, element, x, y), Ok(want), "{reduction:?} {element:?} {x} {y}");
    }
    for (reduction, element) in [
        (Reduction::Min, TensorElement::F32),
        (Reduction::Inc, TensorElement::S32),
        (Reduction::Xor, TensorElement::F16),
        (Reduction::Add, TensorElement::U16),
    ] {
        assert!(run(reduction, element, 1, 1).unwrap_err().contains("there is no reduction"));
    }
    assert_eq!(Reduction::from_ptx("xor"), Some(Reduction::Xor));
    assert_eq!(Reduction::from_ptx("nand"), None);
}
