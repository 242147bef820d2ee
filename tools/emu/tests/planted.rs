//! Bugs planted in compiled kernels, each found by the detector that is there for it, or by the
//! result. The unchanged kernels have no finding.

mod common;

use common::{Bench, Bits};
use gradus_emu::{Fault, Kind, Shape};

const LOGPROB: &str = include_str!("kernels/generated/logprob.sm80.ptx");
const GEMM: &str = include_str!("kernels/generated/gemm_mma.sm80.ptx");
const CLUSTER: &str = include_str!("kernels/generated/cluster.sm90a.ptx");

/// What a run gave.
#[derive(Debug, PartialEq)]
enum Outcome {
    Right,
    Wrong,
    Found(Kind),
}

/// Replaces occurrence `nth` of `from`.
fn plant(ptx: &str, from: &str, nth: usize, to: &str) -> String {
    let (at, _) =
        ptx.match_indices(from).nth(nth).unwrap_or_else(|| panic!("no {nth} of `{from}`"));
    format!("{}{to}{}", &ptx[..at], &ptx[at + from.len()..])
}

fn outcome(run: Result<bool, Box<Fault>>) -> Outcome {
    match run {
        Ok(true) => Outcome::Right,
        Ok(false) => Outcome::Wrong,
        Err(fault) => {
            assert!(fault.line > 0 && !fault.kernel.is_empty(), "no place: {fault}");
            Outcome::Found(fault.kind)
        }
    }
}

fn logprob(ptx: &str, seed: u64) -> Outcome {
    let (rows, vocab) = (3usize, 2600usize);
    let mut bits = Bits(5);
    let x: Vec<u16> =
        (0..rows * vocab).map(|_| ((bits.unit() * 6.0).to_bits() >> 16) as u16).collect();
    let target = [17i32, 0, 2599];
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    bench.machine.options.budget = 1 << 20;
    bench.input(&x);
    bench.input(&target);
    let logp = bench.output(4 * rows);
    bench.output(4 * rows);
    bench.value(vocab as i32);
    outcome(bench.launch("logprob", rows as u32, 256).map(|_| {
        let got = bench.read::<f32>(logp, rows);
        let wide = |b: u16| f32::from_bits((b as u32) << 16) as f64;
        (0..rows).all(|r| {
            let row = &x[r * vocab..(r + 1) * vocab];
            let sum: f64 = row.iter().map(|&b| wide(b).exp()).sum();
            (got[r] as f64 - (wide(row[target[r] as usize]) - sum.ln())).abs() < 1e-5
        })
    }))
}

fn last_block(ptx: &str, seed: u64) -> Outcome {
    let x: Vec<f32> = (0..3000).map(|i| (i % 19) as f32).collect();
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    bench.machine.options.budget = 1 << 20;
    bench.input(&x);
    bench.output(4 * 7);
    bench.input(&[0u32]);
    let out = bench.output(4);
    bench.value(x.len() as i32);
    outcome(bench.launch("last_block_sum", 7, 128).map(|_| {
        let mut bytes = [0u8; 4];
        bench
            .machine
            .memory
            .host_read(out, &mut bytes)
            .is_ok_and(|()| f32::from_le_bytes(bytes) == x.iter().sum())
    }))
}

fn center(ptx: &str) -> Outcome {
    let reward: Vec<f32> = (0..40).map(|i| (i * i % 11) as f32).collect();
    let offsets = [0i32, 1, 33, 40];
    let mut bench = Bench::new(ptx);
    bench.machine.options.budget = 1 << 20;
    bench.input(&reward);
    bench.input(&offsets);
    let out = bench.output(160);
    outcome(bench.launch("group_center", 3, 32).map(|_| {
        let mut bytes = [0u8; 160];
        if bench.machine.memory.host_read(out, &mut bytes).is_err() {
            return false;
        }
        let got: Vec<f32> =
            bytes.chunks(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        offsets.windows(2).all(|pair| {
            let range = pair[0] as usize..pair[1] as usize;
            let mean: f32 = reward[range.clone()].iter().sum::<f32>() / range.len() as f32;
            range.into_iter().all(|i| (got[i] - (reward[i] - mean)).abs() < 1e-5)
        })
    }))
}

fn gemm(ptx: &str) -> (Outcome, u64, u64) {
    let (m, n, k) = (100usize, 136usize, 128usize);
    let mut bits = Bits(9);
    let mut values = |count: usize| -> Vec<u16> {
        (0..count).map(|_| (bits.unit().to_bits() >> 16) as u16).collect()
    };
    let (a, b) = (values(m * k), values(n * k));
    let mut bench = Bench::new(ptx);
    bench.machine.options.budget = 1 << 20;
    bench.input(&a);
    bench.input(&b);
    let c = bench.output(2 * m * n);
    [m, n, k].iter().for_each(|&extent| bench.value(extent as i32));
    let shape = Shape { blocks: [3, 2, 1], threads: [128, 1, 1], cluster: 1, shared: 0 };
    let run =
        bench.machine.launch(bench.module.program("gemm_mma").unwrap(), &shape, &bench.params);
    let (took, ideal) =
        run.as_ref().map_or((0, 0), |c| (c.shared_wavefronts, c.shared_wavefronts_ideal));
    let result = run.map(|_| {
        let mut bytes = vec![0u8; 2 * m * n];
        if bench.machine.memory.host_read(c, &mut bytes).is_err() {
            return false;
        }
        let wide = |b: u16| f32::from_bits((b as u32) << 16) as f64;
        (0..m * n).all(|i| {
            let (row, col) = (i / n, i % n);
            let want: f64 = (0..k).map(|j| wide(a[row * k + j]) * wide(b[col * k + j])).sum();
            let got = wide(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
            (got - want).abs() <= want.abs() * 0.01 + 0.02
        })
    });
    (outcome(result), took, ideal)
}

fn cluster(ptx: &str) -> Outcome {
    let (rows, n) = (2usize, 700usize);
    let x: Vec<f32> = (0..rows * n).map(|i| (i % 13) as f32).collect();
    let mut bench = Bench::new(ptx);
    bench.machine.options.budget = 1 << 20;
    bench.input(&x);
    let out = bench.output(4 * rows);
    bench.value(n as i32);
    outcome(bench.launch_clusters("cluster_sum", 4 * rows as u32, 64, 4).map(|_| {
        let got = bench.read::<f32>(out, rows);
        (0..rows).all(|r| got[r] == x[r * n..(r + 1) * n].iter().sum::<f32>())
    }))
}

use Outcome::{Found, Right, Wrong};

#[test]
fn the_unchanged_kernels_are_clean() {
    for seed in 0..4 {
        assert_eq!(logprob(LOGPROB, seed), Right);
        assert_eq!(last_block(LOGPROB, seed), Right);
    }
    assert_eq!(center(LOGPROB), Right);
    let (result, took, ideal) = gemm(GEMM);
    assert_eq!((result, took), (Right, ideal));
    assert_eq!(cluster(CLUSTER), Right);
}

#[test]
fn bugs_in_a_row_kernel() {
    let p = |from: &str, nth: usize, to: &str| logprob(&plant(LOGPROB, from, nth, to), 0);
    // The barrier between the warps' partial results and their reader.
    assert_eq!(p("bar.sync \t0;", 0, ""), Found(Kind::Uninitialized));
    // A loop bound off by one: past the row, and past the buffer in the last row.
    assert_eq!(p("setp.ge.s32 \t%p1, %r103, %r14;", 0, "setp.gt.s32 \t%p1, %r103, %r14;"), Right);
    // The step of the unrolled loop: the bound check is for a step of 1,024.
    assert_eq!(
        p("add.s32 \t%r103, %r103, 1024", 0, "add.s32 \t%r103, %r103, 1023"),
        Found(Kind::OutOfBounds)
    );
    // A shuffle by half a warp that names all of it.
    let alone =
        "setp.lt.u32 %p47, %r1, 0;\nshfl.sync.bfly.b32 \t%r40|%p11, %r36, %r38, %r37, 65535";
    assert_eq!(
        p("shfl.sync.bfly.b32 \t%r40|%p11, %r36, %r38, %r37, %r39", 0, alone),
        Found(Kind::Divergence)
    );
    // The first reduction step twice, and never.
    assert_eq!(p("mov.u32 \t%r45, 8;", 0, "mov.u32 \t%r45, 16;"), Wrong);
    // Wrong predicate sense on the store of partial results: lane 0 does not write.
    assert_eq!(
        p("setp.ne.s32 \t%p31, %r13, 0;", 0, "setp.eq.s32 \t%p31, %r13, 0;"),
        Found(Kind::Race)
    );
    // All warps go on to the final reduction.
    assert_eq!(
        p("setp.ne.s32 \t%p32, %r12, 0;", 0, "setp.ne.s32 \t%p32, %r12, %r12;"),
        Found(Kind::Race)
    );
}

#[test]
fn bugs_between_blocks() {
    let p = |from: &str, nth: usize, to: &str, seed: u64| {
        last_block(&plant(LOGPROB, from, nth, to), seed)
    };
    // No fence before the ticket: the last block may not see the others' partial sums.
    assert_eq!(p("membar.gl;", 0, "", 0), Found(Kind::Race));
    // No fence after it.
    assert_eq!(p("membar.gl;", 1, "", 0), Found(Kind::Race));
    let seeds_differ: Vec<Outcome> =
        (0..4).map(|seed| p("atom.global.add.u32", 0, "atom.global.max.u32", seed)).collect();
    assert!(seeds_differ.iter().all(|o| *o != Right), "{seeds_differ:?}");
    // Every block believes that it is the last.
    assert_eq!(
        p("setp.eq.s32 \t%p10, %r39, %r41;", 0, "setp.ne.s32 \t%p10, %r39, %r41;", 0),
        Found(Kind::Uninitialized)
    );
    // A partial sum left out, and a lane's.
    assert_eq!(p("_ZZ14last_block_sumE5lanes+12", 0, "_ZZ14last_block_sumE5lanes+8", 0), Wrong);
    assert_eq!(
        p("_ZZ14last_block_sumE5lanes+12", 0, "_ZZ14last_block_sumE5lanes+16", 0),
        Found(Kind::Uninitialized)
    );
    assert_eq!(
        p("_ZZ14last_block_sumE5lanes+12", 0, "_ZZ14last_block_sumE5lanes+14", 0),
        Found(Kind::Misaligned)
    );
    assert_eq!(
        p("_ZZ14last_block_sumE5lanes+12", 0, "_ZZ14last_block_sumE5lanes+4096", 0),
        Found(Kind::OutOfBounds)
    );
    let barrier = LOGPROB.match_indices("bar.sync \t0;").count();
    assert_eq!(p("bar.sync \t0;", barrier - 2, "", 0), Found(Kind::Uninitialized));
    assert_eq!(p("bar.sync \t0;", barrier - 1, "", 0), Found(Kind::Uninitialized));
    assert_eq!(p("bar.sync \t0;", barrier - 1, "bar.sync 0, 160;", 0), Found(Kind::Deadlock));
    assert_eq!(p("bar.sync \t0;", barrier - 1, "bar.sync 16;", 0), Found(Kind::Misuse));
    assert_eq!(p("bar.sync \t0;", barrier - 1, "trap;", 0), Found(Kind::Trap));
    assert_eq!(p("bar.sync \t0;", barrier - 1, "@%p8 bar.sync 0;", 0), Found(Kind::Divergence));
}

#[test]
fn bugs_in_a_ragged_kernel() {
    let p = |from: &str, nth: usize, to: &str| center(&plant(LOGPROB, from, nth, to));
    assert_eq!(
        p(
            "shfl.sync.down.b32 \t%r33|%p6, %r28, %r31",
            0,
            "shfl.sync.down.b32 \t%r33|%p6, %r28, %r29"
        ),
        Wrong
    );
    assert_eq!(p("shfl.sync.idx.b32", 0, "shfl.sync.up.b32"), Wrong);
    assert_eq!(
        p(
            "shfl.sync.idx.b32 \t%r47|%p11, %r45, %r46",
            0,
            "shfl.sync.idx.b32 \t%r47|%p11, %r45, %r29"
        ),
        Wrong
    );
    // The store before the loop's bound check.
    assert_eq!(
        p("st.global.f32 \t[%rd36], %f34;", 0, "st.global.f32 \t[%rd36+4096], %f34;"),
        Found(Kind::OutOfBounds)
    );
    assert_eq!(
        p("st.global.f32 \t[%rd36], %f34;", 0, "st.global.f32 \t[%rd36+2], %f34;"),
        Found(Kind::Misaligned)
    );
    assert_eq!(
        p("st.global.f32 \t[%rd36], %f34;", 0, "st.global.f32 \t[%rd36+4], %f34;"),
        Found(Kind::OutOfBounds)
    );
    assert_eq!(p("st.global.f32 \t[%rd36], %f34;", 0, ""), Wrong);
}

#[test]
fn bugs_in_a_pipelined_matrix_product() {
    let p = |from: &str, nth: usize, to: &str| gemm(&plant(GEMM, from, nth, to)).0;
    assert_eq!(p("cp.async.wait_group 1;", 0, ""), Found(Kind::InFlight));
    assert_eq!(p("cp.async.wait_group 1;", 0, "cp.async.wait_group 2;"), Found(Kind::InFlight));
    assert_eq!(p("cp.async.wait_group 0;", 0, "cp.async.wait_group 1;"), Found(Kind::InFlight));
    assert_eq!(p("cp.async.commit_group;", 1, ""), Found(Kind::InFlight));
    assert_eq!(p("bar.sync \t0;", 0, ""), Found(Kind::Race));
    assert_eq!(p("bar.sync \t0;", 1, ""), Found(Kind::Race));
    // The zero fill of rows beyond M and N.
    assert_eq!(
        p("setp.lt.s32 \t%p3, %r93, %r43;", 0, "setp.lt.s32 \t%p3, %r93, 1000;"),
        Found(Kind::OutOfBounds)
    );
    assert_eq!(
        p("setp.lt.s32 \t%p2, %r76, %r44;", 0, "setp.lt.s32 \t%p2, %r76, 1000;"),
        Found(Kind::OutOfBounds)
    );
    assert_eq!(
        p("setp.ge.s32 \t%p12, %r318, %r44;", 0, "setp.ge.s32 \t%p12, %r318, 1000;"),
        Found(Kind::Race)
    );
    // Fragments swapped.
    assert_eq!(p("{%r171,%r172}, {%f336", 0, "{%r172,%r171}, {%f336"), Wrong);
    assert_eq!(
        p("{%r161,%r162,%r163,%r164}, {%r171", 0, "{%r162,%r161,%r163,%r164}, {%r171"),
        Wrong
    );
    assert_eq!(
        p(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
            0,
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
        ),
        Wrong
    );
    assert_eq!(p("[%r165];", 0, "[%r165+8];"), Found(Kind::Misaligned));
    assert_eq!(p("[%r165];", 0, "[%r165+65536];"), Found(Kind::OutOfBounds));
}

#[test]
fn bugs_in_a_cluster() {
    let p = |from: &str, nth: usize, to: &str| cluster(&plant(CLUSTER, from, nth, to));
    let wait = "barrier.cluster.wait.acquire.aligned;";
    assert_eq!(p(wait, 0, ""), Found(Kind::Uninitialized));
    assert_eq!(p("barrier.cluster.arrive.release.aligned;", 0, ""), Found(Kind::Uninitialized));
    assert_eq!(p("mapa.shared::cluster.u32 ", 0, "add.u32 "), Found(Kind::Uninitialized));
    assert_eq!(p("bar.sync \t0;", 0, ""), Found(Kind::Uninitialized));
}

/// A lane reads what its neighbor stored: in order only behind a warp barrier, in either memory.
#[test]
fn lanes_wait_for_each_other() {
    let global = ["st.global.u64 [%rd0], %rd1;", "ld.global.u64 %rd4, [%rd6];"];
    let shared = [
        ".shared .align 8 .b64 tile[32];\nmov.u64 %rd5, tile;\nadd.s64 %rd5, %rd5, %rd8;\nxor.b64 %rd7, %rd5, 8;\n\
         st.shared.u64 [%rd5], %rd1;",
        "ld.shared.u64 %rd4, [%rd7];",
    ];
    for [store, load] in [global, shared] {
        let run = |barrier: &str| {
            let body = format!("xor.b64 %rd6, %rd0, 8;\n{store}\n{barrier}\n{load}");
            common::lanes(&body, &[1; 32], &[2; 32], &[3; 32])
        };
        assert!(run("bar.warp.sync 0xffffffff;").is_ok());
        assert_eq!(run("").unwrap_err().kind, Kind::Race, "{store}");
    }
}

/// Blocks of two: each writes to a shared address and reads it back, or its neighbor's.
fn windows(address: &str, load: &str) -> Outcome {
    let ptx = format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .shared .align 16 .b8 own[64];\n.reg .b32 %r<8>;\n.reg .b64 %rd<4>;\n\
         ld.param.u64 %rd1, [out];\nmov.u32 %r1, own;\nmov.u32 %r2, %cluster_ctarank;\n\
         xor.b32 %r3, %r2, 1;\nmapa.shared::cluster.u32 %r4, %r1, %r3;\nand.b32 %r5, %r1, 16777215;\n\
         st.shared.u32 [{address}], %r2;\nbarrier.cluster.arrive.release.aligned;\n\
         barrier.cluster.wait.acquire.aligned;\n{load}\nmul.wide.u32 %rd2, %r2, 4;\n\
         add.s64 %rd1, %rd1, %rd2;\nst.global.u32 [%rd1], %r6;\n\
         barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\nret;\n}}\n"
    );
    let mut bench = Bench::new(&ptx);
    let out = bench.output(8);
    let run = bench.launch_clusters("k", 2, 1, 2);
    outcome(run.map(|_| {
        let got = bench.read::<u32>(out, 2);
        got == if load.contains("%r4") { [1, 0] } else { [0, 1] }
    }))
}

/// Found on an H200, where it is an illegal instruction: in a cluster the address of a block's own
/// shared memory holds the block's rank, so an absolute one is the first block's.
#[test]
fn addresses_of_another_block() {
    let (own, other) = ("ld.shared.u32 %r6, [%r1];", "ld.shared::cluster.u32 %r6, [%r4];");
    assert_eq!(windows("%r1", own), Right);
    assert_eq!(windows("own", "ld.shared.u32 %r6, [own];"), Right);
    assert_eq!(windows("%r1", other), Right);
    assert_eq!(windows("%r5", own), Found(Kind::OutOfBounds));
    assert_eq!(windows("%r1", "ld.shared.u32 %r6, [%r4];"), Found(Kind::OutOfBounds));
}
