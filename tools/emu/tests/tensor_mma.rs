//! `mma.sync` against CuTe's layouts and plain matrix products.

mod tensor_common;

use gradus_emu::tensor::Row;
use gradus_emu::tensor::mma::{Accumulator, Element, Mma};
use gradus_emu::tensor::numerics::{Float, FloatAccumulator, Numerics};
use tensor_common::{Bits, Mode, cute, f16_of_integer};

/// Layouts of an instruction: thread and value modes of A over `m + 16 k`, B over `n + 8 k`.
struct Layouts {
    k: usize,
    a: (Mode<'static>, Mode<'static>),
    b: (Mode<'static>, Mode<'static>),
}

const C_THREAD: Mode<'static> = &[(4, 32), (8, 1)];
const C_VALUE: Mode<'static> = &[(2, 16), (2, 8)];

/// The tables of CUTLASS's `mma_traits_sm80.hpp`.
fn layouts(k: usize, bits: u32) -> Layouts {
    match (k, bits) {
        (8, 16) => Layouts {
            k,
            a: (&[(4, 32), (8, 1)], &[(2, 16), (2, 8)]),
            b: (&[(4, 16), (8, 1)], &[(2, 8)]),
        },
        (16, 16) => Layouts {
            k,
            a: (&[(4, 32), (8, 1)], &[(2, 16), (2, 8), (2, 128)]),
            b: (&[(4, 16), (8, 1)], &[(2, 8), (2, 64)]),
        },
        (4, 32) => {
            Layouts { k, a: (&[(4, 16), (8, 1)], &[(2, 8)]), b: (&[(4, 8), (8, 1)], &[(1, 0)]) }
        }
        (8, 32) => Layouts {
            k,
            a: (&[(4, 16), (8, 1)], &[(2, 8), (2, 64)]),
            b: (&[(4, 8), (8, 1)], &[(2, 32)]),
        },
        (16, 8) => Layouts {
            k,
            a: (&[(4, 64), (8, 1)], &[(4, 16), (2, 8)]),
            b: (&[(4, 32), (8, 1)], &[(4, 8)]),
        },
        (32, 8) => Layouts {
            k,
            a: (&[(4, 64), (8, 1)], &[(4, 16), (2, 8), (2, 256)]),
            b: (&[(4, 32), (8, 1)], &[(4, 8), (2, 128)]),
        },
        _ => unreachable!(),
    }
}

/// Registers from a matrix stored by CuTe index, `bits` per element.
fn fragment(
    (thread, value): (Mode<'_>, Mode<'_>),
    bits: u32,
    registers: usize,
    matrix: &dyn Fn(usize) -> u32,
) -> Vec<Row> {
    let per_register = (32 / bits) as usize;
    let mut rows = vec![[0; 32]; registers];
    for lane in 0..32 {
        for v in 0..registers * per_register {
            let raw = matrix(cute(thread, lane) + cute(value, v));
            rows[v / per_register][lane] |= raw << (bits * (v % per_register) as u32);
        }
    }
    rows
}

/// The bits of an integer of at most 3 bits in a format.
fn encode(element: Element, x: i64) -> u32 {
    match element {
        Element::S8 | Element::U8 => x as u32 & 0xff,
        Element::Float(Float::F16) => f16_of_integer(x),
        Element::Float(Float::E5m2) => f16_of_integer(x) >> 8,
        Element::Float(Float::Bf16) => (x as f32).to_bits() >> 16,
        Element::Float(Float::Tf32) => (x as f32).to_bits(),
        Element::Float(Float::E4m3) => {
            let half = f16_of_integer(x);
            let magnitude = half & 0x7fff;
            let rebased = if magnitude == 0 { 0 } else { (magnitude >> 7) - (8 << 3) };
            (half >> 8 & 0x80) | rebased
        }
    }
}

/// Runs one instruction on random small integers and compares with the integer product.
fn check(k: usize, a: Element, b: Element, accumulator: Accumulator) {
    let mma = Mma::new(k, a, b, accumulator).unwrap();
    let count = mma.registers();
    let layout = layouts(k, a.bits());
    let mut bits = Bits::new(k as u64 + 100 * u64::from(a.bits()));
    let mut small = |element: Element| {
        if element == Element::U8 { bits.below(8) as i64 } else { bits.integer(7) }
    };
    let left: Vec<i64> = (0..16 * k).map(|_| small(a)).collect();
    let right: Vec<i64> = (0..8 * k).map(|_| small(b)).collect();
    let start: Vec<i64> = (0..128).map(|_| small(Element::S8)).collect();
    let ra = fragment(layout.a, a.bits(), count.a, &|i| encode(a, left[i]));
    let rb = fragment(layout.b, b.bits(), count.b, &|i| encode(b, right[i]));
    let (c_bits, c_encode): (u32, &dyn Fn(i64) -> u32) = match accumulator {
        Accumulator::S32 { .. } => (32, &|x| x as i32 as u32),
        Accumulator::Float(FloatAccumulator::F32) => (32, &|x| (x as f32).to_bits()),
        Accumulator::Float(FloatAccumulator::F16) => (16, &|x| f16_of_integer(x)),
    };
    let rc = fragment((C_THREAD, C_VALUE), c_bits, count.c, &|i| c_encode(start[i]));
    let product = |i: usize| {
        let (m, n) = (i % 16, i / 16);
        start[i] + (0..layout.k).map(|k| left[m + 16 * k] * right[n + 8 * k]).sum::<i64>()
    };
    let want = fragment((C_THREAD, C_VALUE), c_bits, count.c, &|i| c_encode(product(i)));
    for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
        let mut d = vec![[0xdead_beef; 32]; count.c];
        mma.execute(numerics, &ra, &rb, &rc, &mut d).unwrap();
        assert_eq!(d, want, "{mma:?} {numerics:?}");
    }
}

#[test]
fn every_shape_of_sixteen_bit_operands() {
    let f32 = Accumulator::Float(FloatAccumulator::F32);
    let f16 = Accumulator::Float(FloatAccumulator::F16);
    for k in [8, 16] {
        check(k, Element::Float(Float::Bf16), Element::Float(Float::Bf16), f32);
        check(k, Element::Float(Float::F16), Element::Float(Float::F16), f32);
        check(k, Element::Float(Float::F16), Element::Float(Float::F16), f16);
    }
}

#[test]
fn every_shape_of_tf32_operands() {
    for k in [4, 8] {
        let tf32 = Element::Float(Float::Tf32);
        check(k, tf32, tf32, Accumulator::Float(FloatAccumulator::F32));
    }
}

#[test]
fn every_shape_of_byte_operands() {
    for a in [Element::S8, Element::U8] {
        for b in [Element::S8, Element::U8] {
            for k in [16, 32] {
                for saturate in [false, true] {
                    check(k, a, b, Accumulator::S32 { saturate });
                }
            }
        }
    }
    let fp8 = [Element::Float(Float::E4m3), Element::Float(Float::E5m2)];
    for a in fp8 {
        for b in fp8 {
            check(32, a, b, Accumulator::Float(FloatAccumulator::F32));
            check(32, a, b, Accumulator::Float(FloatAccumulator::F16));
        }
    }
}

#[test]
fn integer_overflow_wraps_or_clamps() {
    let a = vec![[0x7f7f_7f7f; 32]; 4];
    let b = vec![[0x7f7f_7f7f; 32]; 2];
    let c = vec![[i32::MAX as u32; 32]; 4];
    let sum = 32 * 127 * 127;
    for (saturate, want) in [(false, i32::MIN + sum - 1), (true, i32::MAX)] {
        let mma = Mma::new(32, Element::S8, Element::S8, Accumulator::S32 { saturate }).unwrap();
        let mut d = c.clone();
        mma.execute(Numerics::Exact, &a, &b, &c, &mut d).unwrap();
        assert_eq!(d, vec![[want as u32; 32]; 4]);
    }
}

#[test]
fn nan_is_canonical_and_accumulates_in_place() {
    let mma = Mma::new(
        16,
        Element::Float(Float::Bf16),
        Element::Float(Float::Bf16),
        Accumulator::Float(FloatAccumulator::F32),
    )
    .unwrap();
    let mut a = vec![[0x3f80_3f80; 32]; 4];
    let b = vec![[0x3f80_3f80; 32]; 2];
    a[0][0] = 0xffc0_3f80; // a NaN in row 0
    let mut d = vec![[0; 32]; 4];
    mma.execute(Numerics::Hopper, &a, &b, &vec![[0; 32]; 4], &mut d).unwrap();
    for lane in 0..32 {
        let row0 = if lane < 4 { 0x7fff_ffff } else { 16f32.to_bits() };
        assert_eq!(d[0][lane], row0);
        assert_eq!(d[1][lane], row0);
        assert_eq!(d[2][lane], 16f32.to_bits());
    }
}

#[test]
fn unknown_combinations_and_counts_are_refused() {
    let bf16 = Element::Float(Float::Bf16);
    let f16 = Element::Float(Float::F16);
    let f32 = Accumulator::Float(FloatAccumulator::F32);
    let narrow = Accumulator::Float(FloatAccumulator::F16);
    for (k, a, b, c) in [
        (32, bf16, bf16, f32),
        (16, bf16, f16, f32),
        (16, bf16, bf16, narrow),
        (16, Element::Float(Float::Tf32), Element::Float(Float::Tf32), f32),
        (32, Element::S8, Element::S8, f32),
        (64, Element::S8, Element::S8, Accumulator::S32 { saturate: false }),
        (16, bf16, bf16, Accumulator::S32 { saturate: false }),
    ] {
        assert!(Mma::new(k, a, b, c).unwrap_err().contains("m16n8k"));
    }
    let mma = Mma::new(16, bf16, bf16, f32).unwrap();
    let rows = vec![[7; 32]; 4];
    let mut d = rows.clone();
    let error = mma.execute(Numerics::Exact, &rows, &rows, &rows, &mut d).unwrap_err();
    assert_eq!(error, "mma.sync: b has 4 registers, expected 2");
    assert_eq!(d, rows);
    assert_eq!(Element::from_ptx("e4m3"), Some(Element::Float(Float::E4m3)));
    assert_eq!(Element::from_ptx("e3m4"), None);
    assert_eq!(mma.multiply_adds(), 2048);
}

/// `cargo test --test tensor_mma -- --ignored --nocapture` prints the time of 65,536 products.
#[test]
#[ignore = "a timing, not a check"]
fn time_of_a_256_by_256_by_2048_product() {
    let element = Element::Float(Float::Bf16);
    let mma = Mma::new(16, element, element, Accumulator::Float(FloatAccumulator::F32)).unwrap();
    let mut bits = Bits::new(5);
    // The sum of four uniforms: a bell of unit variance.
    let mut pair = || {
        let mut half = || {
            let x: i64 = (0..4).map(|_| bits.integer(1 << 20)).sum();
            ((x as f32 * 0.866 / f32::from(1_u16 << 10) / 1024.0).to_bits()) >> 16
        };
        half() | half() << 16
    };
    let a: Vec<Vec<Row>> =
        (0..128).map(|_| (0..4).map(|_| std::array::from_fn(|_| pair())).collect()).collect();
    let b: Vec<Vec<Row>> =
        (0..128).map(|_| (0..2).map(|_| std::array::from_fn(|_| pair())).collect()).collect();
    for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
        let clock = std::time::Instant::now();
        let mut check = 0_u32;
        for _ in 0..512 {
            let mut c = vec![[0; 32]; 4];
            for k in 0..128 {
                let mut d = [[0; 32]; 4];
                mma.execute(numerics, &a[k], &b[k], &c, &mut d).unwrap();
                c.copy_from_slice(&d);
            }
            check = check.wrapping_add(c[0][0]);
        }
        println!(
            "{numerics:?}: {:.3} s for 65,536 mma ({check:#x})",
            clock.elapsed().as_secs_f64()
        );
    }
}
