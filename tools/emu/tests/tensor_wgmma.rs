//! Descriptors, operand layouts and products of `wgmma`, against CuTe's canonical layouts.

mod tensor_common;

use std::collections::HashMap;

use gradus_emu::tensor::Row;
use gradus_emu::tensor::mma::{Accumulator, Element};
use gradus_emu::tensor::numerics::{Float, FloatAccumulator, Numerics};
use gradus_emu::tensor::swizzle::Swizzle;
use gradus_emu::tensor::wgmma::{Descriptor, Major, SharedRead, Take, Wgmma};
use tensor_common::{Bits, bf16, cute, f16_of_integer};

const F32: Accumulator = Accumulator::Float(FloatAccumulator::F32);
const F16: Accumulator = Accumulator::Float(FloatAccumulator::F16);
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

/// Shared memory that knows which bytes were written.
#[derive(Default)]
struct Shared(HashMap<u32, u8>);

impl Shared {
    fn write(&mut self, address: u32, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let before = self.0.insert(address + i as u32, *byte);
            assert!(before.is_none(), "two elements at {address:#x}");
        }
    }
}

impl SharedRead for Shared {
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), String> {
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = address + i as u32;
            *byte = *self.0.get(&at).ok_or_else(|| format!("uninitialized byte at {at:#x}"))?;
        }
        Ok(())
    }
}

/// CUTLASS `Swizzle<B, 4, 3>`: bits 7.. XORed into bits 4.., written from the definition.
fn cutlass_swizzle(swizzle: Swizzle, address: usize) -> usize {
    let b = match swizzle {
        Swizzle::None => 0,
        Swizzle::B32 => 1,
        Swizzle::B64 => 2,
        Swizzle::B128 => 3,
    };
    address ^ ((address & (((1 << b) - 1) << 7)) >> 3)
}

/// Byte offset of (i, k) by the canonical layouts of `mma_traits_sm90_gmma.hpp`, in elements there.
fn canonical(descriptor: &Descriptor, major: Major, bytes: usize, i: usize, k: usize) -> usize {
    let t = 16 / bytes;
    let (lbo, sbo) = (descriptor.leading as usize / bytes, descriptor.stride as usize / bytes);
    let w = descriptor.swizzle.row_bytes() as usize / 16;
    let offset = match (major, descriptor.swizzle) {
        (Major::K, Swizzle::None) => cute(&[(8, t), (64, sbo)], i) + cute(&[(t, 1), (2, lbo)], k),
        (Major::K, _) => cute(&[(8, w * t), (64, sbo)], i) + cute(&[(t, 1), (2, t)], k),
        (Major::Mn, Swizzle::None) => {
            cute(&[(t, 1), (1, t), (64, sbo)], i) + cute(&[(8, t), (4, lbo)], k)
        }
        (Major::Mn, _) => cute(&[(t, 1), (w, t), (64, lbo)], i) + cute(&[(8, w * t), (4, sbo)], k),
    };
    cutlass_swizzle(descriptor.swizzle, descriptor.start as usize + offset * bytes)
}

#[test]
fn descriptors_round_trip_and_refuse_what_is_not_modelled() {
    for swizzle in SWIZZLES {
        let descriptor =
            Descriptor { start: 0x2_0c00, leading: 16, stride: 1024, base_offset: 0, swizzle };
        let start = if swizzle == Swizzle::None { 0x2_0c10 } else { descriptor.start };
        let descriptor = Descriptor { start, ..descriptor };
        assert_eq!(Descriptor::decode(descriptor.encode()), Ok(descriptor));
    }
    // 128-byte swizzle, SBO 1024, LBO 16, start 0x400: the fields by hand.
    let bits = 1_u64 << 62 | 64 << 32 | 1 << 16 | 0x40;
    let descriptor = Descriptor::decode(bits).unwrap();
    assert_eq!((descriptor.start, descriptor.stride, descriptor.leading), (0x400, 1024, 16));
    assert_eq!(descriptor.swizzle, Swizzle::B128);
    // K advances inside the first row; the second row is another matter.
    assert!(Descriptor::decode(bits + 6).is_ok());
    assert!(Descriptor::decode(bits + 8).unwrap_err().contains("first row"));
    assert!(Descriptor::decode(bits | 1 << 49).unwrap_err().contains("base offset of 1"));
    for bit in [14, 15, 30, 31, 46, 47, 48, 52, 61] {
        assert!(Descriptor::decode(bits | 1 << bit).unwrap_err().contains("reserved"));
    }
}

#[test]
fn addresses_of_every_layout() {
    for swizzle in SWIZZLES {
        for bytes in [1, 2, 4] {
            for major in [Major::K, Major::Mn] {
                let descriptor = Descriptor {
                    start: 0x1000 + if swizzle == Swizzle::None { 48 } else { 0 },
                    leading: 0x2200,
                    stride: 0x1400,
                    base_offset: 0,
                    swizzle,
                };
                for i in 0..256 {
                    for k in 0..32 / bytes {
                        let got = descriptor.address(major, bytes, i, k);
                        let (i, k) = (i as usize, k as usize);
                        let want = canonical(&descriptor, major, bytes as usize, i, k);
                        assert_eq!(got as usize, want, "{swizzle:?} {bytes} {major:?} {i} {k}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_of_128_bytes_is_permuted_by_the_row_number() {
    let descriptor = Descriptor {
        start: 0x800,
        leading: 16,
        stride: 1024,
        base_offset: 0,
        swizzle: Swizzle::B128,
    };
    for i in 0..64_u32 {
        for k in 0..16 {
            // Third k16 step of a 64-column bf16 tile: start + 64 bytes.
            let step = Descriptor { start: 0x800 + 64, ..descriptor };
            let column = 32 + k;
            let want = 0x800 + 128 * i + ((column / 8) ^ (i % 8)) * 16 + column % 8 * 2;
            assert_eq!(step.address(Major::K, 2, i, k), want);
        }
    }
}

/// The bits of a small integer.
fn encode(element: Element, x: i64) -> u32 {
    match element {
        Element::S8 | Element::U8 => x as u32 & 0xff,
        Element::Float(Float::F16) => f16_of_integer(x),
        Element::Float(Float::E5m2) => f16_of_integer(x) >> 8,
        Element::Float(Float::Bf16) => bf16(x as f64),
        Element::Float(Float::Tf32) => (x as f32).to_bits(),
        Element::Float(Float::E4m3) => {
            let half = f16_of_integer(x);
            let magnitude = half & 0x7fff;
            (half >> 8 & 0x80) | if magnitude == 0 { 0 } else { (magnitude >> 7) - 64 }
        }
    }
}

/// One operand of `count` rows or columns: descriptor, layout and sign.
struct Placed {
    descriptor: Descriptor,
    take: Take,
    values: Vec<i64>,
}

/// Writes random small integers where the canonical layout wants them.
fn place(
    shared: &mut Shared,
    bits: &mut Bits,
    element: Element,
    (count, k): (usize, usize),
    start: u32,
    (swizzle, take): (Swizzle, Take),
) -> Placed {
    let bytes = element.bits() as usize / 8;
    let w = swizzle.row_bytes();
    // Offsets that leave no overlap: groups of eight rows, or columns of atoms, one after another.
    let (leading, stride) = match (take.major, swizzle) {
        (Major::K, Swizzle::None) => (128, 256 + 128),
        (Major::K, _) => (16, 8 * w),
        (Major::Mn, Swizzle::None) => (count as u32 / 8 * 128, 128),
        (Major::Mn, _) => (8 * w, (count * bytes).div_ceil(w as usize) as u32 * 8 * w),
    };
    let descriptor = Descriptor { start, leading, stride, base_offset: 0, swizzle };
    let limit = if element == Element::U8 { 0 } else { 4 };
    let values: Vec<i64> = (0..count * k).map(|_| bits.integer(4) + 4 - limit).collect();
    for i in 0..count {
        for l in 0..k {
            let at = canonical(&descriptor, take.major, bytes, i, l) as u32;
            shared.write(at, &encode(element, values[i * k + l]).to_le_bytes()[..bytes]);
        }
    }
    Placed { descriptor, take, values }
}

/// Accumulator (m, n) of the group from the CuTe layout `(4,8,4):(128,1,16)`, `(2,2,N/8):(64,8,512)`.
fn scatter(n: usize, per_register: usize, value: &dyn Fn(usize, usize) -> u32) -> Vec<Vec<Row>> {
    let mut warps = vec![vec![[0; 32]; n / 2 / per_register]; 4];
    for thread in 0..128 {
        for v in 0..n / 2 {
            let index = cute(&[(4, 128), (8, 1), (4, 16)], thread)
                + cute(&[(2, 64), (2, 8), (n / 8, 512)], v);
            let register = &mut warps[thread / 32][v / per_register][thread % 32];
            *register |= value(index % 64, index / 64) << (16 * (v % per_register));
        }
    }
    warps
}

/// Runs one instruction on random integers and compares all accumulators.
fn check(
    wgmma: &Wgmma,
    types: (Element, Element, Accumulator),
    a: (Swizzle, Take),
    b: (Swizzle, Take),
) {
    let (n, k) = (wgmma.n(), wgmma.k());
    let mut bits = Bits::new(n as u64 * 3 + k as u64);
    let mut shared = Shared::default();
    let a = place(&mut shared, &mut bits, types.0, (64, k), 0x4000, a);
    let b = place(&mut shared, &mut bits, types.1, (n, k), 0x1_0000, b);
    let sign = |take: Take| if take.negate { -1 } else { 1 };
    let start: Vec<i64> = (0..64 * n).map(|_| bits.integer(9)).collect();
    let product = |m: usize, c: usize| {
        let sum: i64 = (0..k).map(|l| a.values[m * k + l] * b.values[c * k + l]).sum();
        sum * sign(a.take) * sign(b.take)
    };
    let (per_register, bits_of): (usize, &dyn Fn(i64) -> u32) = match types.2 {
        Accumulator::S32 { .. } => (1, &|x| x as u32),
        F16 => (2, &|x| f16_of_integer(x)),
        Accumulator::Float(_) => (1, &|x| (x as f32).to_bits()),
    };
    let before = scatter(n, per_register, &|m, c| bits_of(start[m + 64 * c]));
    for scale_d in [false, true] {
        let want = scatter(n, per_register, &|m, c| {
            bits_of(product(m, c) + if scale_d { start[m + 64 * c] } else { 0 })
        });
        for numerics in [Numerics::Exact, Numerics::Hopper] {
            let right = wgmma.b_from_shared(&b.descriptor, b.take, &mut shared).unwrap();
            for warp in 0..4 {
                let left = wgmma.a_from_shared(&a.descriptor, a.take, warp, &mut shared).unwrap();
                assert_eq!(left.chunks.len(), 32);
                let mut d = before[warp].clone();
                wgmma.accumulate(numerics, &left, &right, scale_d, &mut d).unwrap();
                assert_eq!(d, want[warp], "{wgmma:?} warp {warp} {:?} {:?}", a.take, b.take);
            }
            let mut chunks = right.chunks.clone();
            chunks.sort_unstable();
            chunks.dedup();
            assert_eq!(chunks.len(), 2 * n, "every chunk of B once");
        }
    }
}

#[test]
fn bf16_in_every_layout_and_sign() {
    let element = Element::Float(Float::Bf16);
    for n in [8, 64, 104, 256] {
        let wgmma = Wgmma::new(n, element, element, F32).unwrap();
        for a_swizzle in SWIZZLES {
            for a_major in [Major::K, Major::Mn] {
                let b_swizzle = SWIZZLES[(n / 8 + a_swizzle.row_bytes() as usize / 16) % 4];
                for b_major in [Major::K, Major::Mn] {
                    let a = (a_swizzle, Take { negate: b_major == Major::Mn, major: a_major });
                    let b = (b_swizzle, Take { negate: a_major == Major::Mn, major: b_major });
                    check(&wgmma, (element, element, F32), a, b);
                }
            }
        }
    }
}

#[test]
fn every_type() {
    let float = Element::Float;
    let mut types = vec![
        (float(Float::F16), float(Float::F16), F32),
        (float(Float::F16), float(Float::F16), F16),
        (float(Float::Tf32), float(Float::Tf32), F32),
    ];
    for a in [Float::E4m3, Float::E5m2] {
        for b in [Float::E4m3, Float::E5m2] {
            types.push((float(a), float(b), F32));
            types.push((float(a), float(b), F16));
        }
    }
    for a in [Element::S8, Element::U8] {
        for b in [Element::S8, Element::U8] {
            types.push((a, b, Accumulator::S32 { saturate: false }));
            types.push((a, b, Accumulator::S32 { saturate: true }));
        }
    }
    for (a, b, accumulator) in types {
        let wgmma = Wgmma::new(48, a, b, accumulator).unwrap();
        for swizzle in SWIZZLES {
            check(
                &wgmma,
                (a, b, accumulator),
                (swizzle, Take::PLAIN),
                (Swizzle::B128, Take::PLAIN),
            );
        }
    }
}

#[test]
fn a_from_registers_equals_a_from_shared_memory() {
    for element in
        [Float::Bf16, Float::Tf32, Float::E4m3].map(Element::Float).into_iter().chain([Element::S8])
    {
        let integer = element == Element::S8;
        let accumulator = if integer { Accumulator::S32 { saturate: false } } else { F32 };
        let wgmma = Wgmma::new(16, element, element, accumulator).unwrap();
        let k = wgmma.k();
        let mut bits = Bits::new(4);
        let mut shared = Shared::default();
        let plain = (Swizzle::B32, Take::PLAIN);
        let a = place(&mut shared, &mut bits, element, (64, k), 0, plain);
        let b = place(&mut shared, &mut bits, element, (16, k), 0x8000, plain);
        let right = wgmma.b_from_shared(&b.descriptor, b.take, &mut shared).unwrap();
        let take = Take { negate: !integer, major: Major::K };
        for warp in 0..4 {
            // An A fragment: register r, lane, element e -> row and k.
            let per_register = 32 / element.bits() as usize;
            let mut registers = [[0; 32]; 4];
            for (r, register) in registers.iter_mut().enumerate() {
                for (lane, word) in register.iter_mut().enumerate() {
                    for e in 0..per_register {
                        let m = 16 * warp + lane / 4 + 8 * (r % 2);
                        let l = (r / 2) * k / 2 + (lane % 4) * per_register + e;
                        let raw = encode(element, a.values[m * k + l]);
                        *word |= raw << (element.bits() * e as u32);
                    }
                }
            }
            let left = wgmma.a_from_shared(&a.descriptor, take, warp, &mut shared).unwrap();
            let register_left = wgmma.a_from_registers(&registers, take).unwrap();
            assert!(register_left.chunks.is_empty());
            let mut d = vec![[0; 32]; 8];
            let mut e = d.clone();
            wgmma.accumulate(Numerics::Exact, &left, &right, false, &mut d).unwrap();
            wgmma.accumulate(Numerics::Exact, &register_left, &right, false, &mut e).unwrap();
            assert_eq!(d, e);
            assert!(d.iter().flatten().any(|bits| *bits != 0));
        }
    }
}

#[test]
fn errors_of_memory_and_of_the_instruction() {
    let bf16 = Element::Float(Float::Bf16);
    let tf32 = Element::Float(Float::Tf32);
    let s32 = Accumulator::S32 { saturate: false };
    for (n, a, b, c) in [
        (12, bf16, bf16, F32),
        (264, bf16, bf16, F32),
        (0, bf16, bf16, F32),
        (64, bf16, bf16, F16),
        (64, bf16, Element::Float(Float::F16), F32),
        (40, Element::S8, Element::S8, s32),
        (64, Element::S8, Element::S8, F32),
    ] {
        assert!(Wgmma::new(n, a, b, c).unwrap_err().contains("wgmma has no"));
    }
    let mut empty = Shared::default();
    let descriptor =
        Descriptor { start: 0, leading: 16, stride: 256, base_offset: 0, swizzle: Swizzle::B32 };
    let wgmma = Wgmma::new(64, bf16, bf16, F32).unwrap();
    let error = wgmma.b_from_shared(&descriptor, Take::PLAIN, &mut empty).unwrap_err();
    assert_eq!(error, "uninitialized byte at 0x0");
    let wide = Wgmma::new(64, tf32, tf32, F32).unwrap();
    let transposed = Take { negate: false, major: Major::Mn };
    let error = wide.b_from_shared(&descriptor, transposed, &mut empty).unwrap_err();
    assert!(error.contains("16-bit operands only"));
    let error = wgmma.a_from_registers(&[[0; 32]; 4], transposed).unwrap_err();
    assert!(error.contains("cannot transpose"));
    let left = wgmma.a_from_registers(&[[0; 32]; 4], Take::PLAIN).unwrap();
    let wide_left = wide.a_from_registers(&[[0; 32]; 4], Take::PLAIN).unwrap();
    let mut d = vec![[1; 32]; 32];
    assert!(wgmma.accumulate(Numerics::Exact, &wide_left, &left, false, &mut d).is_err());
    assert!(wgmma.accumulate(Numerics::Exact, &left, &left, false, &mut d[..4]).is_err());
    assert_eq!(d, vec![[1; 32]; 32]);
    assert_eq!(wgmma.multiply_adds(), 64 * 64 * 16);
    assert_eq!(wgmma.accumulator_registers(), 32);
}

/// `cargo test --test tensor_wgmma -- --ignored --nocapture` prints the time per instruction.
#[test]
#[ignore = "a timing, not a check"]
fn time_of_m64n256k16() {
    struct Flat(Vec<u8>);
    impl SharedRead for Flat {
        fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), String> {
            let at = address as usize;
            let from = self.0.get(at..at + bytes.len()).ok_or("out of bounds")?;
            bytes.copy_from_slice(from);
            Ok(())
        }
    }
    let mut bits = Bits::new(6);
    let mut half = || bf16(f64::from(bits.integer(127) as i32) / 64.0).to_le_bytes();
    let mut shared = Flat((0..0x1_0000 / 2).flat_map(|_| half()[..2].to_vec()).collect());
    let element = Element::Float(Float::Bf16);
    let wgmma = Wgmma::new(256, element, element, F32).unwrap();
    let descriptor =
        Descriptor { start: 0, leading: 16, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 };
    let right = Descriptor { start: 0x4000, ..descriptor };
    let mut d = vec![vec![[0; 32]; 128]; 4];
    let (mut reading, mut computing) = (0.0, 0.0);
    for _ in 0..200 {
        let clock = std::time::Instant::now();
        let b = wgmma.b_from_shared(&right, Take::PLAIN, &mut shared).unwrap();
        let a: Vec<_> = (0..4)
            .map(|w| wgmma.a_from_shared(&descriptor, Take::PLAIN, w, &mut shared).unwrap())
            .collect();
        reading += clock.elapsed().as_secs_f64();
        let clock = std::time::Instant::now();
        for (a, d) in a.iter().zip(&mut d) {
            wgmma.accumulate(Numerics::Exact, a, &b, true, d).unwrap();
        }
        computing += clock.elapsed().as_secs_f64();
    }
    println!("reading {:.1} us, computing {:.1} us", reading * 5e3, computing * 5e3);
}
