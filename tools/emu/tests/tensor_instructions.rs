//! Tensor, barrier and bulk-copy instructions in small kernels with answers in closed form, and
//! what is found when a wait, a fence or an order is left out.

mod common;

use common::{Bench, Bits};
use gradus_emu::tensor::Row;
use gradus_emu::tensor::mma::{Accumulator, Element, Mma};
use gradus_emu::tensor::numerics::{Float, FloatAccumulator, Numerics};
use gradus_emu::tensor::swizzle::Swizzle;
use gradus_emu::tensor::tensor_map::{TensorElement, TensorMap, Tiled};
use gradus_emu::{Fault, Kind};

const MATRIX: &str = include_str!("tensor_ptx/matrix.ptx");
const BARRIER: &str = include_str!("tensor_ptx/barrier.ptx");
const BULK: &str = include_str!("tensor_ptx/bulk.ptx");

/// A text with exactly one occurrence of `from` replaced.
fn with(ptx: &str, from: &str, to: &str) -> String {
    assert_eq!(ptx.matches(from).count(), 1, "{from}");
    ptx.replace(from, to)
}

/// The fault of a kernel that must not run through.
fn fault<T>(result: Result<T, Box<Fault>>) -> (Kind, String) {
    match result {
        Ok(_) => panic!("the planted bug is not found"),
        Err(fault) => (fault.kind, fault.to_string()),
    }
}

#[test]
fn ldmatrix_and_mma_multiply_a_tile() {
    let mut bench = Bench::new(MATRIX);
    let value = |i: usize| ((i * 7 % 23) as f32 - 11.0) / 4.0;
    let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
    let a: Vec<u16> = (0..256).map(|i| bf16(value(i))).collect();
    let b: Vec<u16> = (0..128).map(|i| bf16(value(3 * i + 1))).collect();
    bench.input(&a);
    bench.input(&b);
    let out = bench.output(512);
    let counters = bench.launch("product", 1, 32).unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<f32> = (0..128)
        .map(|i| (0..16).map(|k| value(i / 8 * 16 + k) * value(3 * (8 * k + i % 8) + 1)).sum())
        .collect();
    assert_eq!(bench.read::<f32>(out, 128), want);
    assert_eq!((counters.mma, counters.mma_macs), (1, 2048));
}

#[test]
fn stmatrix_transposes_what_ldmatrix_read() {
    let mut bench = Bench::new(MATRIX);
    let input: Vec<u16> = (0..256).collect();
    bench.input(&input);
    let out = bench.output(512);
    let counters = bench.launch("transpose", 1, 32).unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<u16> = (0..256).map(|i| i / 64 * 64 + i % 8 * 8 + i / 8 % 8).collect();
    assert_eq!(bench.read::<u16>(out, 256), want);
    // Two vector accesses, ldmatrix and stmatrix: four phases of eight distinct 16-byte rows each.
    assert_eq!((counters.shared_wavefronts, counters.shared_wavefronts_ideal), (16, 16));
}

#[test]
fn matrix_instructions_check_their_rows_and_lanes() {
    let run = |ptx: &str, kernel: &str, buffers: &[usize]| {
        let mut bench = Bench::new(ptx);
        for bytes in buffers {
            bench.input(&vec![0_u8; *bytes]);
        }
        fault(bench.launch(kernel, 1, 32))
    };
    let sizes = [512, 256, 512];
    let unordered = MATRIX.replacen("bar.warp.sync 0xffffffff;", "", 1);
    assert_eq!(run(&unordered, "product", &sizes).0, Kind::Race);
    let shifted =
        with(MATRIX, "add.s32 %r16, %r16, %r7;", "add.s32 %r16, %r16, %r7; add.s32 %r16, %r16, 8;");
    let (kind, text) = run(&shifted, "product", &sizes);
    assert_eq!(kind, Kind::Misaligned);
    assert!(text.contains("lane 0 names row 0 of matrix 0"), "{text}");
    let beyond = with(
        MATRIX,
        "add.s32 %r16, %r16, %r7;",
        "add.s32 %r16, %r16, %r7; add.s32 %r16, %r16, 1024;",
    );
    assert_eq!(run(&beyond, "product", &sizes).0, Kind::OutOfBounds);
    let undefined = with(MATRIX, "mov.f32 %f3, %f0;", "");
    assert_eq!(run(&undefined, "product", &sizes).0, Kind::Uninitialized);
    let half = with(
        MATRIX,
        "mma.sync.aligned.m16n8k16",
        "setp.lt.u32 %p1, %r1, 16;\n@%p1 mma.sync.aligned.m16n8k16",
    );
    assert_eq!(run(&half, "product", &sizes).0, Kind::Divergence);
}

/// A kernel that loads the registers of a, b and c of an `mma` from rows of 32 words, and stores d.
fn mma_kernel(opcode: &str, [a, b, c]: [usize; 3]) -> String {
    let list = |first: usize, n: usize| {
        (first..first + n).map(|r| format!("%r{r}")).collect::<Vec<_>>().join(", ")
    };
    let loads: String =
        (0..a + b + c).map(|i| format!("ld.global.u32 %r{i}, [%rd1+{}];\n", 128 * i)).collect();
    let stores: String =
        (0..c).map(|i| format!("st.global.u32 [%rd2+{}], %r{};\n", 128 * i, 40 + i)).collect();
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .b32 %r<64>;\n.reg .b64 %rd<4>;\n\
         ld.param.u64 %rd1, [in];\nld.param.u64 %rd2, [out];\nmov.u32 %r63, %laneid;\n\
         mul.wide.u32 %rd3, %r63, 4;\nadd.s64 %rd1, %rd1, %rd3;\nadd.s64 %rd2, %rd2, %rd3;\n{loads}\
         {opcode} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n{stores}ret;\n}}\n",
        list(40, c),
        list(0, a),
        list(a, b),
        list(a + b, c)
    )
}

#[test]
fn every_mma_opcode_is_the_tensor_function() {
    let float = Element::Float;
    let (f32, f16) =
        (Accumulator::Float(FloatAccumulator::F32), Accumulator::Float(FloatAccumulator::F16));
    let (wrap, clamp) = (Accumulator::S32 { saturate: false }, Accumulator::S32 { saturate: true });
    let cases = [
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, float(Float::Bf16), float(Float::Bf16), f32),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, float(Float::F16), float(Float::F16), f32),
        ("m16n8k16.row.col.f16.f16.f16.f16", 16, float(Float::F16), float(Float::F16), f16),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, float(Float::Tf32), float(Float::Tf32), f32),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, float(Float::Tf32), float(Float::Tf32), f32),
        ("m16n8k16.row.col.s32.s8.u8.s32", 16, Element::S8, Element::U8, wrap),
        ("m16n8k32.row.col.satfinite.s32.u8.s8.s32", 32, Element::U8, Element::S8, clamp),
        ("m16n8k32.row.col.f32.e4m3.e5m2.f32", 32, float(Float::E4m3), float(Float::E5m2), f32),
        ("m16n8k32.row.col.f16.e5m2.e5m2.f16", 32, float(Float::E5m2), float(Float::E5m2), f16),
    ];
    let mut bits = Bits(3);
    for (name, k, a, b, accumulator) in cases {
        let mma = Mma::new(k, a, b, accumulator).unwrap();
        let count = mma.registers();
        let total = count.a + count.b + count.c;
        let rows: Vec<Row> =
            (0..total).map(|_| std::array::from_fn(|_| bits.next() as u32)).collect();
        for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
            let ptx = mma_kernel(&format!("mma.sync.aligned.{name}"), [count.a, count.b, count.c]);
            let mut bench = Bench::new(&ptx);
            bench.machine.options.numerics = numerics;
            bench.input(&rows);
            let out = bench.output(128 * count.c);
            bench.launch("k", 1, 32).unwrap_or_else(|f| panic!("{f}"));
            let (left, rest) = rows.split_at(count.a);
            let (right, start) = rest.split_at(count.b);
            let mut want = start.to_vec();
            mma.execute(numerics, left, right, start, &mut want).unwrap();
            assert_eq!(bench.read::<u32>(out, 32 * count.c), want.concat(), "{name} {numerics:?}");
        }
    }
    for name in [
        "m16n8k16.row.row.f32.bf16.bf16.f32",
        "m8n8k4.row.col.f32.f16.f16.f32",
        "m16n8k16.row.col.f32.bf16.f16.f32",
    ] {
        let ptx = mma_kernel(&format!("mma.sync.aligned.{name}"), [4, 2, 4]);
        let refused = gradus_emu::Module::load(&ptx, &mut gradus_emu::Machine::default());
        assert!(refused.is_err_and(|text| text.contains("line ")), "{name}");
    }
}

fn handover(ptx: &str, seed: u64) -> Result<Vec<u32>, Box<Fault>> {
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    let out = bench.output(256);
    bench.launch("handover", 1, 64)?;
    Ok(bench.read(out, 64))
}

#[test]
fn an_mbarrier_hands_words_from_warp_to_warp() {
    let want: Vec<u32> = (0..64).map(|i| 3 * (i ^ 32)).collect();
    for seed in 0..4 {
        assert_eq!(handover(BARRIER, seed).unwrap_or_else(|f| panic!("{f}")), want);
    }
}

#[test]
fn misuse_of_an_mbarrier_is_found() {
    let kinds = |ptx: &str| {
        let mut kinds: Vec<Kind> = (0..4).map(|seed| fault(handover(ptx, seed)).0).collect();
        kinds.dedup();
        kinds
    };
    let unwaited = with(BARRIER, "@!%p2 bra WAIT;\n  xor.b32", "xor.b32");
    let early = kinds(&unwaited);
    assert!(early.contains(&Kind::Race) || early.contains(&Kind::Uninitialized), "{early:?}");
    let early = kinds(&with(BARRIER, "bar.sync 0;", ""));
    assert!(early.iter().all(|k| matches!(k, Kind::Race | Kind::Uninitialized)), "{early:?}");
    assert_eq!(kinds(&with(BARRIER, "[%r2], 64;\nREADY", "[%r2], 65;\nREADY")), [Kind::Deadlock]);
    assert_eq!(kinds(&with(BARRIER, "[%r2], 64;\nREADY", "[%r2], 0;\nREADY")), [Kind::Misuse]);
    assert_eq!(
        kinds(&with(BARRIER, "[%r2], 64;\nREADY", "[%r2+4], 64;\nREADY")),
        [Kind::Misaligned]
    );
    let twice = with(
        BARRIER,
        "[%r2], 64;\nREADY",
        "[%r2], 64;\nmbarrier.init.shared::cta.b64 [%r2], 64;\nREADY",
    );
    assert_eq!(kinds(&twice), [Kind::Misuse]);
    // With 32 arrivals to a phase, the other warp's words may not be there yet, or a token grows stale.
    let narrow = kinds(&with(BARRIER, "[%r2], 64;\nREADY", "[%r2], 32;\nREADY"));
    assert!(
        narrow.iter().all(|k| matches!(k, Kind::Race | Kind::Uninitialized | Kind::Misuse)),
        "{narrow:?}"
    );
}

#[test]
fn the_other_forms_of_mbarrier() {
    let mut bench = Bench::new(BARRIER);
    let out = bench.output(1024);
    bench.launch("forms", 1, 32).unwrap_or_else(|f| panic!("{f}"));
    let words: Vec<Vec<u32>> = (0..32).map(|lane| bench.read::<u32>(out + 32 * lane, 6)).collect();
    for (lane, row) in words.iter().enumerate() {
        // Before lane i arrived, 34 - i were pending; phase 0 is over, so its parity and its
        // token are, and parity 1, the phase in progress, is not.
        assert_eq!(row[..4], [34 - lane as u32, 1, 0, 1]);
        assert_eq!(row[4..], [33, 1], "33 are expected after the drop, and they complete phase 1");
    }
}

#[test]
fn copies_of_threads_arrive_at_an_mbarrier() {
    let input: Vec<u32> = (1..257).collect();
    let run = |ptx: &str| {
        let mut bench = Bench::new(ptx);
        bench.input(&input);
        let out = bench.output(1024);
        bench.launch("copies", 1, 32)?;
        Ok(bench.read::<u32>(out, 256))
    };
    let got: Result<Vec<u32>, Box<Fault>> = run(BARRIER);
    // Chunks of four words change places with their neighbor; of the second half, two words came.
    let want: Vec<u32> =
        (0..256).map(|i| if i >= 128 && i % 4 >= 2 { 0 } else { (i ^ 4) + 1 }).collect();
    assert_eq!(got.unwrap_or_else(|f| panic!("{f}")), want);
    // What the threads copied is theirs, of the generic proxy: the copy engine needs a fence.
    let engine = "cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r4], 16;";
    let unfenced = with(BARRIER, "// The neighbor's bytes.", engine);
    assert_eq!(fault(run(&unfenced)).0, Kind::MissingProxyFence);
    let counted = BARRIER.replace(".noinc", "");
    assert_eq!(fault(run(&counted)).0, Kind::Deadlock, "32 lanes leave 32 arrivals pending");
    let unwaited = with(BARRIER, "@!%p2 bra WAIT;\n  // The", "// The");
    assert_eq!(fault(run(&unwaited)).0, Kind::InFlight);
}

/// A 2-D f32 map of 10 rows of 48 columns, box 32 x 8.
fn map(address: u64, swizzle: Swizzle) -> TensorMap {
    TensorMap::new(&Tiled {
        element: TensorElement::F32,
        address,
        dims: &[48, 10],
        strides: &[192],
        extents: &[32, 8],
        element_strides: &[1, 1],
        swizzle,
    })
    .unwrap()
}

fn load_box(ptx: &str, swizzle: Swizzle, x: i32, y: i32) -> Result<Vec<f32>, Box<Fault>> {
    let mut bench = Bench::new(ptx);
    let tensor: Vec<f32> = (1..481).map(|i| i as f32).collect();
    let at = bench.input(&tensor);
    bench.params = map(at, swizzle).encode().to_vec();
    let out = bench.output(1024);
    bench.value(x);
    bench.value(y);
    let counters = bench.launch("load_box", 1, 256)?;
    let inside =
        |n: i32, at: i32, extent: i32| (at..at + n).filter(|i| (0..extent).contains(i)).count();
    assert_eq!(counters.global_load_bytes, 4 * (inside(32, x, 48) * inside(8, y, 10)) as u64);
    Ok(bench.read(out, 256))
}

#[test]
fn tensor_loads_fill_zeros_and_swizzle() {
    for swizzle in [Swizzle::None, Swizzle::B128] {
        for (x, y) in [(0, 0), (16, 2), (40, 8), (-5, -3), (48, 0), (0, -8)] {
            let got = load_box(BULK, swizzle, x, y).unwrap_or_else(|f| panic!("{f}"));
            for row in 0..8 {
                for column in 0..32 {
                    let (i, j) = (y + row, x + column);
                    let inside = (0..10).contains(&i) && (0..48).contains(&j);
                    let want = if inside { (48 * i + j + 1) as f32 } else { 0.0 };
                    let chunk =
                        if swizzle == Swizzle::None { column / 4 } else { (column / 4) ^ row };
                    assert_eq!(
                        got[(32 * row + 4 * chunk + column % 4) as usize],
                        want,
                        "{x} {y} {row} {column}"
                    );
                }
            }
        }
    }
}

#[test]
fn misuse_of_a_tensor_load_is_found() {
    let kind = |from: &str, to: &str| fault(load_box(&with(BULK, from, to), Swizzle::None, 0, 0)).0;
    let wait = "@!%p2 bra WAIT;\n  shl.b32 %r6";
    assert_eq!(kind(wait, "shl.b32 %r6"), Kind::InFlight);
    let fence = "fence.mbarrier_init.release.cluster;\n  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1024;";
    let expect = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1024;";
    assert_eq!(kind(fence, expect), Kind::MissingProxyFence);
    assert_eq!(
        kind(expect, "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1040;"),
        Kind::Deadlock
    );
    assert_eq!(
        kind("[%r4], [%rd3, {%r1, %r2}], [%r5];", "[%r4+64], [%rd3, {%r1, %r2}], [%r5];"),
        Kind::Misuse
    );
    assert_eq!(
        kind("[%r4], [%rd3, {%r1, %r2}], [%r5];", "[%r4+128], [%rd3, {%r1, %r2}], [%r5];"),
        Kind::OutOfBounds
    );
    assert_eq!(
        kind("[%r4], [%rd3, {%r1, %r2}], [%r5];", "[%r4], [%rd3+64, {%r1, %r2}], [%r5];"),
        Kind::Misuse
    );
    // The kernel ends while the copy is under way: no thread reads the tile.
    let unread = with(
        &with(BULK, wait, "bra OUT;\n  shl.b32 %r6"),
        "st.global.u32 [%rd5], %r8;\n  ret;\n}\n\n// The inverse",
        "st.global.u32 [%rd5], %r8;\nOUT:\n  ret;\n}\n\n// The inverse",
    );
    assert_eq!(fault(load_box(&unread, Swizzle::None, 0, 0)).0, Kind::InFlight);
    // A box that was written by threads, unfenced, is overwritten by the copy.
    let stored = with(
        BULK,
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1024;",
        "st.shared.u32 [%r4], 0;\n  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 1024;",
    );
    assert_eq!(fault(load_box(&stored, Swizzle::None, 0, 0)).0, Kind::MissingProxyFence);
}

fn store_box(ptx: &str, x: i32, y: i32) -> Result<Vec<f32>, Box<Fault>> {
    let mut bench = Bench::new(ptx);
    let at = bench.input(&vec![0.5_f32; 480]);
    bench.params = map(at, Swizzle::None).encode().to_vec();
    bench.value(x);
    bench.value(y);
    bench.launch("store_box", 1, 256)?;
    Ok(bench.read(at, 480))
}

#[test]
fn tensor_stores_skip_what_is_outside_and_reductions_add() {
    for (x, y) in [(0, 0), (16, 2), (30, 7), (-5, -3)] {
        let got = store_box(BULK, x, y).unwrap_or_else(|f| panic!("{f}"));
        for (at, value) in got.iter().enumerate() {
            let (row, column) = (at as i32 / 48 - y, at as i32 % 48 - x);
            let inside = (0..8).contains(&row) && (0..32).contains(&column);
            let want = if inside { 2.0 * (32 * row + column + 1) as f32 } else { 0.5 };
            assert_eq!(*value, want, "{x} {y} {at}");
        }
    }
}

#[test]
fn misuse_of_a_bulk_store_is_found() {
    let run = |ptx: &str| fault(store_box(ptx, 0, 0)).0;
    let fence = "st.shared.f32 [%r6], %f1;\n  fence.proxy.async.shared::cta;";
    assert_eq!(run(&with(BULK, fence, "st.shared.f32 [%r6], %f1;")), Kind::MissingProxyFence);
    let order = "fence.proxy.async.shared::cta;\n  bar.sync 0;\n  setp.ne.u32 %p1, %r3, 0;";
    let kind =
        run(&with(BULK, order, "fence.proxy.async.shared::cta;\n  setp.ne.u32 %p1, %r3, 0;"));
    assert!(matches!(kind, Kind::Race | Kind::Uninitialized), "{kind:?}");
    // Not committed, not waited for, or overwritten before the wait.
    let last = "cp.async.bulk.commit_group;\n  cp.async.bulk.wait_group.read 0;\nDONE:\n  ret;\n}\n\n// out[i]";
    assert_eq!(run(&with(BULK, last, "DONE:\n  ret;\n}\n\n// out[i]")), Kind::InFlight);
    assert_eq!(
        run(&with(BULK, last, "cp.async.bulk.commit_group;\nDONE:\n  ret;\n}\n\n// out[i]")),
        Kind::InFlight
    );
    let spoiled = with(
        BULK,
        last,
        &last.replace(
            "cp.async.bulk.wait",
            "st.shared.f32 [%r6], 0f00000000;\n  cp.async.bulk.wait",
        ),
    );
    assert_eq!(run(&spoiled), Kind::InFlight);
}

fn double(ptx: &str) -> Result<Vec<u32>, Box<Fault>> {
    let mut bench = Bench::new(ptx);
    bench.input(&(0..128).collect::<Vec<u32>>());
    let out = bench.input(&[1000_u32; 128]);
    bench.launch("double", 1, 128)?;
    Ok(bench.read(out, 128))
}

#[test]
fn bulk_copies_without_a_tensor_map() {
    let want: Vec<u32> = (0..128).map(|i| 1000 + 2 * i).collect();
    assert_eq!(double(BULK).unwrap_or_else(|f| panic!("{f}")), want);
    let run = |from: &str, to: &str| fault(double(&with(BULK, from, to))).0;
    assert_eq!(run("[%r2], [%rd1], 512, [%r3];", "[%r2], [%rd1], 504, [%r3];"), Kind::Misaligned);
    assert_eq!(
        run("[%r2], [%rd1], 512, [%r3];", "[%r2], [%rd1+16], 512, [%r3];"),
        Kind::OutOfBounds
    );
    assert_eq!(run("[%r2], [%rd1], 512, [%r3];", "[%r2], [%rd1], 256, [%r3];"), Kind::Deadlock);
    let fence = "fence.proxy.async.shared::cta;\n  bar.sync 0;\n  @%p1 bra DONE;\n  cp.reduce";
    assert_eq!(run(fence, "bar.sync 0;\n  @%p1 bra DONE;\n  cp.reduce"), Kind::MissingProxyFence);
}

#[test]
fn reductions_are_checked_like_atomics() {
    let run = |ptx: &str, start: Option<&[u32]>| {
        let mut bench = Bench::new(ptx);
        bench.input(&(0..128).collect::<Vec<u32>>());
        let out = match start {
            Some(words) => bench.input(words),
            None => bench.output(512),
        };
        bench.launch("double", 2, 128)?;
        Ok(bench.read::<u32>(out, 128))
    };
    // Two blocks add to the same words: no race, unlike two blocks that store.
    let got: Result<Vec<u32>, Box<Fault>> = run(BULK, Some(&[7; 128]));
    let want: Vec<u32> = (0..128).map(|i| 7 + 4 * i).collect();
    assert_eq!(got.unwrap_or_else(|f| panic!("{f}")), want);
    assert_eq!(fault(run(BULK, None)).0, Kind::Uninitialized);
    let add = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32";
    let stored = with(BULK, add, "cp.async.bulk.global.shared::cta.bulk_group");
    assert_eq!(fault(run(&stored, None)).0, Kind::Race);
    let larger = with(BULK, add, "cp.reduce.async.bulk.global.shared::cta.bulk_group.max.u32");
    let got: Result<Vec<u32>, Box<Fault>> = run(&larger, Some(&[100; 128]));
    let want: Vec<u32> = (0..128).map(|i| (2 * i).max(100)).collect();
    assert_eq!(got.unwrap_or_else(|f| panic!("{f}")), want);
    let refused = with(BULK, add, "cp.reduce.async.bulk.global.shared::cta.bulk_group.min.f32");
    let refused = gradus_emu::Module::load(&refused, &mut gradus_emu::Machine::default());
    assert!(refused.is_err_and(|text| text.contains("no reduction Min of F32")));
}

fn exchange(ptx: &str, seed: u64) -> Result<Vec<u32>, Box<Fault>> {
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    bench.input(&(5..69).collect::<Vec<u32>>());
    let out = bench.output(512);
    bench.launch_clusters("exchange", 2, 64, 2)?;
    Ok(bench.read(out, 128))
}

#[test]
fn blocks_of_a_cluster_share_and_exchange_by_bulk_copies() {
    let want: Vec<u32> = (0..128).map(|i| 3 * (i % 64 + 5)).collect();
    for seed in 0..4 {
        assert_eq!(exchange(BULK, seed).unwrap_or_else(|f| panic!("{f}")), want);
    }
    let run = |from: &str, to: &str| fault(exchange(&with(BULK, from, to), 0)).0;
    assert_eq!(run("mov.u16 %h1, 3;", "mov.u16 %h1, 1;"), Kind::Deadlock);
    assert_eq!(run("mov.u16 %h1, 3;", "mov.u16 %h1, 7;"), Kind::Misuse);
    assert_eq!(run("256, [%r16+8];", "256, [%r6+8];"), Kind::Misuse);
}

#[test]
fn st_async_and_remote_arrivals_reach_the_other_block() {
    let run = |ptx: &str, seed: u64| {
        let mut bench = Bench::new(ptx);
        bench.machine.options.seed = seed;
        let out = bench.output(512);
        bench.launch_clusters("remote", 2, 32, 2)?;
        Ok(bench.read::<u32>(out, 128))
    };
    let want: Vec<u32> =
        (0..128).map(|i| 100 * (1 - i / 64) + i % 64 / 2 + 1000 * (i % 2)).collect();
    for seed in 0..4 {
        let got: Result<Vec<u32>, Box<Fault>> = run(BULK, seed);
        assert_eq!(got.unwrap_or_else(|f| panic!("{f}")), want);
    }
    let unwaited = with(BULK, "@!%p3 bra WAIT2;\n  add.s32 %r12", "add.s32 %r12");
    assert_eq!(fault(run(&unwaited, 0)).0, Kind::InFlight);
    let elsewhere = with(BULK, "{%r10, %r11}, [%r7+8];", "{%r10, %r11}, [%r4+8];");
    assert_eq!(fault(run(&elsewhere, 0)).0, Kind::Misuse);
    let local = with(BULK, "shared::cluster.b64 _, [%r7];", "shared::cluster.b64 _, [%r4];");
    assert_eq!(
        run(&local, 0).unwrap_or_else(|f| panic!("{f}")),
        want,
        "the tx barrier orders the rest"
    );
}
