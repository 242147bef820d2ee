//! Every form of `wgmma.mma_async` in a kernel gives what the tensor functions give on the same
//! bytes, and products that overlap are ordered by groups.

mod common;

use common::{Bench, Bits};
use gradus_emu::tensor::Row;
use gradus_emu::tensor::mma::{Accumulator, Element};
use gradus_emu::tensor::numerics::{Float, FloatAccumulator, Numerics};
use gradus_emu::tensor::swizzle::Swizzle;
use gradus_emu::tensor::wgmma::{Descriptor, Major, SharedRead, Take, Wgmma};
use gradus_emu::{Fault, Kind};

/// Bytes of shared memory that the kernel fills from its input.
const SHARED: usize = 40_960;

struct Flat<'a>(&'a [u8]);

impl SharedRead for Flat<'_> {
    fn read(&mut self, address: u32, bytes: &mut [u8]) -> Result<(), String> {
        let at = address as usize;
        bytes.copy_from_slice(self.0.get(at..at + bytes.len()).ok_or("out of bounds")?);
        Ok(())
    }
}

/// One warpgroup: shared memory from `in`, d from `out` and back, A from `left` if it is in
/// registers. `body` has the descriptors in %rd4 and %rd5, d from %r0, A from %r200, the
/// predicate %p1 = `scale`.
fn kernel(registers: usize, body: &str) -> String {
    let access = |op: &str, r: usize, first: usize, base: &str| match op {
        "ld" => format!("ld.global.u32 %r{}, [{base}+{}];\n", first + r, 512 * r),
        _ => format!("st.global.u32 [{base}+{}], %r{};\n", 512 * r, first + r),
    };
    let loads: String = (0..registers).map(|r| access("ld", r, 0, "%rd8")).collect();
    let left: String = (0..4).map(|r| access("ld", r, 200, "%rd9")).collect();
    let stores: String = (0..registers).map(|r| access("st", r, 0, "%rd8")).collect();
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 in, .param .u64 out, .param .u64 left, .param .u64 a, .param .u64 b, \
         .param .u32 scale)\n{{\n.reg .b32 %r<240>;\n.reg .b64 %rd<16>;\n.reg .pred %p<4>;\n\
         .shared .align 1024 .b8 tile[{SHARED}];\n\
         ld.param.u64 %rd1, [in];\nld.param.u64 %rd2, [out];\nld.param.u64 %rd3, [left];\n\
         ld.param.u64 %rd4, [a];\nld.param.u64 %rd5, [b];\nld.param.u32 %r230, [scale];\n\
         setp.ne.u32 %p1, %r230, 0;\nmov.u32 %r231, %tid.x;\nmul.wide.u32 %rd6, %r231, 4;\n\
         add.s64 %rd7, %rd1, %rd6;\nadd.s64 %rd8, %rd2, %rd6;\nadd.s64 %rd9, %rd3, %rd6;\n\
         mov.u32 %r232, tile;\nshl.b32 %r233, %r231, 2;\nadd.s32 %r232, %r232, %r233;\nmov.u32 %r234, 0;\n\
         FILL:\nld.global.u32 %r235, [%rd7];\nst.shared.u32 [%r232], %r235;\nadd.s64 %rd7, %rd7, 512;\n\
         add.s32 %r232, %r232, 512;\nadd.s32 %r234, %r234, 512;\nsetp.lt.u32 %p2, %r234, {SHARED};\n\
         @%p2 bra FILL;\n{loads}{left}fence.proxy.async.shared::cta;\nbar.sync 0;\n{body}{stores}ret;\n}}\n"
    )
}

/// `{%r0, %r1, ..}`.
fn list(first: usize, count: usize) -> String {
    let names: Vec<String> = (first..first + count).map(|r| format!("%r{r}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// What a form of the instruction needs to be run and predicted.
struct Case {
    name: &'static str,
    wgmma: Wgmma,
    registers: bool,
    a: (Swizzle, Take),
    b: (Swizzle, Take),
    tail: &'static str,
}

fn descriptor(start: u32, (swizzle, take): (Swizzle, Take)) -> Descriptor {
    let row = swizzle.row_bytes();
    let (leading, stride) = match (take.major, swizzle) {
        (Major::K, Swizzle::None) => (128, 256),
        (Major::K, _) => (16, 8 * row),
        (Major::Mn, Swizzle::None) => (4096, 128),
        (Major::Mn, _) => (8 * row, 4096),
    };
    Descriptor { start, leading, stride, base_offset: 0, swizzle }
}

fn run(case: &Case, scale: bool, numerics: Numerics, bits: &mut Bits) {
    let wgmma = &case.wgmma;
    let count = wgmma.accumulator_registers();
    let left = if case.registers { list(200, 4) } else { "%rd4".to_string() };
    let body = format!(
        "wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.{} {}, {left}, %rd5, %p1{};\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
        case.name,
        list(0, count),
        case.tail
    );
    let mut bench = Bench::new(&kernel(count, &body));
    bench.machine.options.numerics = numerics;
    let shared: Vec<u8> = (0..SHARED).map(|_| bits.next() as u8).collect();
    let start: Vec<u32> = (0..128 * count).map(|_| bits.next() as u32).collect();
    let in_registers: Vec<u32> = (0..512).map(|_| bits.next() as u32).collect();
    let (a, b) = (descriptor(0, case.a), descriptor(0x2000, case.b));
    bench.input(&shared);
    let out = bench.input(&start);
    bench.input(&in_registers);
    bench.value(a.encode());
    bench.value(b.encode());
    bench.value(u32::from(scale));
    let counters = bench.launch("k", 1, 128).unwrap_or_else(|f| panic!("{}: {f}", case.name));
    assert_eq!((counters.mma, counters.mma_macs), (4, wgmma.multiply_adds()));
    let got = bench.read::<u32>(out, 128 * count);
    let mut memory = Flat(&shared);
    let right = wgmma.b_from_shared(&b, case.b.1, &mut memory).unwrap();
    for warp in 0..4 {
        let rows = |words: &[u32], n: usize| -> Vec<Row> {
            (0..n).map(|r| std::array::from_fn(|lane| words[128 * r + 32 * warp + lane])).collect()
        };
        let left = if case.registers {
            wgmma.a_from_registers(&rows(&in_registers, 4), case.a.1).unwrap()
        } else {
            wgmma.a_from_shared(&a, case.a.1, warp, &mut memory).unwrap()
        };
        let mut want = rows(&start, count);
        wgmma.accumulate(numerics, &left, &right, scale, &mut want).unwrap();
        assert_eq!(rows(&got, count), want, "{} warp {warp}", case.name);
    }
}

/// Factors as they lie, negated, and with the outer dimension contiguous.
const PLAIN: Take = Take::PLAIN;
const MINUS: Take = Take { negate: true, major: Major::K };
const TURNED: Take = Take { negate: false, major: Major::Mn };
/// Accumulators.
const F16: Accumulator = Accumulator::Float(FloatAccumulator::F16);
const F32: Accumulator = Accumulator::Float(FloatAccumulator::F32);

fn wgmma(n: usize, a: Element, b: Element, accumulator: Accumulator) -> Wgmma {
    Wgmma::new(n, a, b, accumulator).unwrap()
}

fn case(
    name: &'static str,
    wgmma: Wgmma,
    registers: bool,
    a: (Swizzle, Take),
    b: (Swizzle, Take),
    tail: &'static str,
) -> Case {
    Case { name, wgmma, registers, a, b, tail }
}

/// Factors of 16 bits, which may lie either way.
fn cases_of_16_bits() -> Vec<Case> {
    let (bf16, half) = (Element::Float(Float::Bf16), Element::Float(Float::F16));
    vec![
        case(
            "m64n64k16.f32.bf16.bf16",
            wgmma(64, bf16, bf16, F32),
            false,
            (Swizzle::B128, PLAIN),
            (Swizzle::B128, PLAIN),
            ", 1, 1, 0, 0",
        ),
        case(
            "m64n24k16.f32.bf16.bf16",
            wgmma(24, bf16, bf16, F32),
            false,
            (Swizzle::B64, TURNED),
            (Swizzle::B32, TURNED),
            ", 1, 1, 1, 1",
        ),
        case(
            "m64n16k16.f16.f16.f16",
            wgmma(16, half, half, F16),
            false,
            (Swizzle::None, MINUS),
            (Swizzle::None, TURNED),
            ", -1, 1, 0, 1",
        ),
        case(
            "m64n32k16.f32.f16.f16",
            wgmma(32, half, half, F32),
            true,
            (Swizzle::None, MINUS),
            (Swizzle::B128, TURNED),
            ", -1, 1, 1",
        ),
    ]
}

/// Factors of 32 and 8 bits.
fn cases_of_other_widths() -> Vec<Case> {
    let tf32 = Element::Float(Float::Tf32);
    let (e4m3, e5m2) = (Element::Float(Float::E4m3), Element::Float(Float::E5m2));
    vec![
        case(
            "m64n8k8.f32.tf32.tf32",
            wgmma(8, tf32, tf32, F32),
            false,
            (Swizzle::B32, PLAIN),
            (Swizzle::B64, MINUS),
            ", 1, -1",
        ),
        case(
            "m64n128k32.f32.e4m3.e5m2",
            wgmma(128, e4m3, e5m2, F32),
            false,
            (Swizzle::B128, PLAIN),
            (Swizzle::B128, PLAIN),
            ", 1, 1",
        ),
        case(
            "m64n8k32.f16.e5m2.e5m2",
            wgmma(8, e5m2, e5m2, F16),
            true,
            (Swizzle::None, PLAIN),
            (Swizzle::B32, PLAIN),
            ", 1, 1",
        ),
        case(
            "m64n32k32.s32.s8.u8",
            wgmma(32, Element::S8, Element::U8, Accumulator::S32 { saturate: false }),
            false,
            (Swizzle::B64, PLAIN),
            (Swizzle::B64, PLAIN),
            "",
        ),
        case(
            "m64n16k32.satfinite.s32.s8.s8",
            wgmma(16, Element::S8, Element::S8, Accumulator::S32 { saturate: true }),
            true,
            (Swizzle::None, PLAIN),
            (Swizzle::None, PLAIN),
            "",
        ),
    ]
}

/// One case per type, and the swizzles, directions and signs spread over them.
fn cases() -> Vec<Case> {
    let mut all = cases_of_16_bits();
    all.extend(cases_of_other_widths());
    all
}

#[test]
fn every_form_is_the_tensor_function() {
    let cases = cases();
    let mut bits = Bits(8);
    for case in &cases {
        for scale in [false, true] {
            for numerics in [Numerics::Exact, Numerics::Hopper] {
                run(case, scale, numerics, &mut bits);
            }
        }
    }
}

/// Runs a body of bf16 products n = 16 on zeros.
fn zeros(body: &str, threads: u32) -> Result<Vec<u32>, Box<Fault>> {
    let mut bench = Bench::new(&kernel(16, body));
    bench.input(&[0_u8; SHARED]);
    let out = bench.input(&[0_u32; 128 * 16]);
    bench.input(&[0_u32; 512]);
    for start in [0, 0x2000] {
        bench.value(descriptor(start, (Swizzle::B128, Take::PLAIN)).encode());
    }
    bench.value(1_u32);
    bench.launch("k", 1, threads)?;
    Ok(bench.read(out, 128 * 16))
}

#[test]
fn groups_fences_and_registers_are_watched() {
    let product = |d: usize, a: &str| {
        let trans = if a.starts_with('{') { "0" } else { "0, 0" };
        format!(
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {}, {a}, %rd5, %p1, 1, 1, {trans};\n",
            list(d, 8)
        )
    };
    let (fence, commit) = ("wgmma.fence.sync.aligned;\n", "wgmma.commit_group.sync.aligned;\n");
    let wait = |n: usize| format!("wgmma.wait_group.sync.aligned {n};\n");
    let (one, two) = (product(0, "%rd4"), product(8, "%rd4"));
    // Two groups under way, each waited for on its own; a chain of products; a second batch of
    // products on registers that nothing else touched.
    let clean = format!(
        "{fence}{one}{one}{commit}{two}{commit}{}mov.b32 %r220, %r0;\n{}{one}{two}{commit}{}",
        wait(1),
        wait(0),
        wait(0)
    );
    assert_eq!(zeros(&clean, 128).unwrap_or_else(|f| panic!("{f}")), [0; 128 * 16]);
    let kind = |body: String| match zeros(&body, 128) {
        Ok(_) => panic!("not found: {body}"),
        Err(fault) => fault.kind,
    };
    // The younger group is stored while only the older one was waited for.
    assert_eq!(kind(format!("{fence}{one}{commit}{two}{commit}{}", wait(1))), Kind::InFlight);
    // An accumulator is written while a product is under way, and between batches without a fence.
    let touch = "mov.b32 %r3, %r220;\n";
    let set = "mov.b32 %r220, 1;\n";
    assert_eq!(
        kind(format!("{set}{fence}{one}{commit}{touch}{}{two}{commit}{}", wait(0), wait(0))),
        Kind::InFlight
    );
    assert_eq!(
        kind(format!("{set}{fence}{one}{commit}{}{touch}{one}{commit}{}", wait(0), wait(0))),
        Kind::Misuse
    );
    assert_eq!(kind(format!("{set}{fence}{one}{touch}{one}{commit}{}", wait(0))), Kind::InFlight);
    // A in registers is changed before the product that reads it is done.
    let from_registers = product(0, &list(200, 4));
    let change = "add.u32 %r201, %r201, 1;\n";
    let done = format!("{commit}{}", wait(0));
    assert_eq!(kind(format!("{fence}{from_registers}{change}{two}{done}")), Kind::InFlight);
    assert!(zeros(&format!("{fence}{from_registers}{two}{done}{change}"), 128).is_ok());
    // Shared memory is changed before the product that reads it is done: B by a warp that knows
    // nothing of the others' products, row 0 of A by the warp whose product reads it.
    let store = "mov.u32 %r221, tile;\nst.shared.u32 [%r221+8192], 1;\n";
    assert_eq!(kind(format!("{fence}{one}{two}{store}{done}")), Kind::Race);
    let store =
        "setp.eq.u32 %p3, %r231, 0;\nmov.u32 %r221, tile;\n@%p3 st.shared.u32 [%r221], 1;\n";
    assert_eq!(kind(format!("{fence}{one}{two}{store}{done}")), Kind::InFlight);
    // The warp is diverged, and the block has no whole warpgroup.
    let some = format!("setp.lt.u32 %p3, %r231, 5;\n{fence}@%p3 {one}{two}{done}");
    assert_eq!(kind(some), Kind::Divergence);
    let few = zeros(&format!("{fence}{one}{two}{done}"), 96).map_err(|f| f.kind);
    assert_eq!(few, Err(Kind::Misuse));
}
