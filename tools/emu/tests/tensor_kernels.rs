//! Matrix kernels compiled from CUDA C++, whole and with planted bugs.

mod common;

use common::{Bench, Bits};
use gradus_emu::tensor::swizzle::Swizzle;
use gradus_emu::tensor::tensor_map::{TensorElement, TensorMap, Tiled};
use gradus_emu::{Counters, Fault, Kind, Numerics, Shape};

const MMA: &str = include_str!("kernels/generated/gemm_mma.sm80.ptx");
const WGMMA: &str = include_str!("kernels/generated/gemm_wgmma.sm90a.ptx");

/// Small multiples of 1/8, whose products add exactly in f32.
fn matrix(bits: &mut Bits, elements: usize) -> Vec<u16> {
    (0..elements)
        .map(|_| {
            let x = ((bits.next() >> 40) % 33) as f32 / 8.0 - 2.0;
            (x.to_bits() >> 16) as u16
        })
        .collect()
}

fn wide(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// `A B^T` in f64.
fn product(a: &[u16], b: &[u16], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|l| wide(a[i * k + l]) * wide(b[j * k + l])).sum();
        }
    }
    c
}

type Outcome = Result<(Vec<f64>, Vec<f64>, Counters), Box<Fault>>;

/// Runs `gemm_mma` and returns what it computed, what it should have, and the counts.
fn gemm_mma(ptx: &str, (m, n, k): (usize, usize, usize), seed: u64, numerics: Numerics) -> Outcome {
    let mut bits = Bits(5);
    let (a, b) = (matrix(&mut bits, m * k), matrix(&mut bits, n * k));
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    bench.machine.options.numerics = numerics;
    bench.input(&a);
    bench.input(&b);
    let c = bench.output(2 * m * n);
    [m, n, k].into_iter().for_each(|x| bench.value(x as i32));
    let shape = Shape {
        blocks: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        threads: [128, 1, 1],
        cluster: 1,
        shared: 0,
    };
    let counters =
        bench.machine.launch(bench.module.program("gemm_mma").unwrap(), &shape, &bench.params)?;
    let got = bench.read::<u16>(c, m * n).into_iter().map(wide).collect();
    // The result is rounded to bf16.
    let want = product(&a, &b, (m, n, k)).into_iter().map(|x| wide(round_bf16(x as f32))).collect();
    Ok((got, want, counters))
}

fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[test]
fn the_mma_product_is_right_in_every_mode() {
    for sizes in [(64, 64, 32), (100, 136, 96), (1, 1, 64), (130, 70, 160)] {
        for numerics in [Numerics::Exact, Numerics::Ampere, Numerics::Hopper] {
            let (got, want, counters) =
                gemm_mma(MMA, sizes, 0, numerics).unwrap_or_else(|f| panic!("{f}"));
            assert_eq!(got, want, "{sizes:?} {numerics:?}");
            let blocks = (sizes.0.div_ceil(64) * sizes.1.div_ceil(64)) as u64;
            assert_eq!(counters.mma, blocks * 4 * 8 * (sizes.2 as u64 / 16));
            assert_eq!(counters.mma_macs, blocks * 64 * 64 * sizes.2 as u64);
        }
    }
    let first = gemm_mma(MMA, (100, 136, 96), 0, Numerics::Exact).unwrap().0;
    for seed in 1..4 {
        assert_eq!(gemm_mma(MMA, (100, 136, 96), seed, Numerics::Exact).unwrap().0, first);
    }
}

#[test]
fn swizzled_tiles_have_no_bank_conflicts() {
    let (.., counters) = gemm_mma(MMA, (64, 64, 128), 0, Numerics::Exact).unwrap();
    assert_eq!(counters.shared_wavefronts, counters.shared_wavefronts_ideal);
    // cp.async writes 8 KB per step of 32 in 64 passes; ldmatrix takes 16 of 4 passes per warp.
    assert_eq!(counters.shared_wavefronts, 4 * (64 + 4 * 8 * 4));
}

/// What a planted bug in the PTX text is found as.
fn found(result: Result<impl Sized, Box<Fault>>) -> (Kind, String) {
    match result {
        Ok(_) => panic!("the planted bug is not found"),
        Err(fault) => (fault.kind, fault.to_string()),
    }
}

#[test]
fn bugs_planted_in_the_mma_kernel_are_found() {
    let sizes = (64, 64, 128);
    let run = |ptx: &str| gemm_mma(ptx, sizes, 0, Numerics::Exact);
    let late = MMA.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;");
    assert_ne!(late, MMA);
    assert_eq!(found(run(&late)).0, Kind::InFlight);
    let none = MMA.replace("cp.async.wait_group 0;", "cp.async.wait_group 1;");
    assert_eq!(found(run(&none)).0, Kind::InFlight);
    let unordered = MMA.replace("bar.sync \t0;", "");
    assert_ne!(unordered, MMA);
    assert!(matches!(found(run(&unordered)).0, Kind::Race | Kind::InFlight | Kind::Uninitialized));
}

/// A map of a row-major bf16 matrix, box 64 x 64, 128-byte swizzle.
fn map(address: u64, rows: usize, columns: usize) -> TensorMap {
    TensorMap::new(&Tiled {
        element: TensorElement::Bf16,
        address,
        dims: &[columns as u64, rows as u64],
        strides: &[2 * columns as u64],
        extents: &[64, 64],
        element_strides: &[1, 1],
        swizzle: Swizzle::B128,
    })
    .unwrap()
}

fn gemm_wgmma(
    ptx: &str,
    (m, n, k): (usize, usize, usize),
    seed: u64,
    numerics: Numerics,
) -> Outcome {
    let mut bits = Bits(9);
    let (a, b) = (matrix(&mut bits, m * k), matrix(&mut bits, n * k));
    let mut bench = Bench::new(ptx);
    bench.machine.options.seed = seed;
    bench.machine.options.numerics = numerics;
    let (at_a, at_b) = (bench.input(&a), bench.input(&b));
    bench.params.clear();
    bench.params.extend_from_slice(&map(at_a, m, k).encode());
    bench.params.extend_from_slice(&map(at_b, n, k).encode());
    let c = bench.output(4 * m * n);
    [m, n, k].into_iter().for_each(|x| bench.value(x as i32));
    let shape = Shape {
        blocks: [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1],
        threads: [160, 1, 1],
        cluster: 1,
        // The tiles begin at a multiple of 1024 behind the mbarriers.
        shared: 4 * 8192 + 1024,
    };
    let counters =
        bench.machine.launch(bench.module.program("gemm_wgmma").unwrap(), &shape, &bench.params)?;
    let got = bench.read::<f32>(c, m * n).into_iter().map(f64::from).collect();
    Ok((got, product(&a, &b, (m, n, k)), counters))
}

#[test]
fn the_wgmma_product_is_right_for_every_schedule() {
    for sizes in [(64, 64, 64), (64, 128, 512), (100, 72, 128), (8, 8, 192)] {
        for seed in 0..3 {
            for numerics in [Numerics::Exact, Numerics::Hopper] {
                let (got, want, counters) =
                    gemm_wgmma(WGMMA, sizes, seed, numerics).unwrap_or_else(|f| panic!("{f}"));
                assert_eq!(got, want, "{sizes:?} seed {seed} {numerics:?}");
                let blocks = (sizes.0.div_ceil(64) * sizes.1.div_ceil(64)) as u64;
                assert_eq!(counters.mma_macs, blocks * 64 * 64 * sizes.2 as u64);
                assert_eq!(counters.shared_wavefronts_ideal, counters.shared_wavefronts);
            }
        }
    }
}

#[test]
fn the_tile_written_by_threads_is_right() {
    let mut bits = Bits(2);
    let (a, b) = (matrix(&mut bits, 64 * 64), matrix(&mut bits, 64 * 64));
    let run = |ptx: &str| {
        let mut bench = Bench::new(ptx);
        bench.input(&a);
        bench.input(&b);
        let c = bench.output(4 * 64 * 64);
        bench.launch("tile_wgmma", 1, 128)?;
        Ok(bench.read::<f32>(c, 64 * 64))
    };
    let got: Result<Vec<f32>, Box<Fault>> = run(WGMMA);
    let want: Vec<f32> = product(&a, &b, (64, 64, 64)).into_iter().map(|x| x as f32).collect();
    assert_eq!(got.unwrap_or_else(|f| panic!("{f}")), want);
    let unfenced = WGMMA.replace("fence.proxy.async.shared::cta;", "");
    assert_ne!(unfenced, WGMMA);
    assert_eq!(found(run(&unfenced)).0, Kind::MissingProxyFence);
}

/// The kinds of fault that three schedules of a changed kernel end with.
fn kinds(ptx: &str) -> Vec<Kind> {
    assert_ne!(ptx, WGMMA, "nothing was changed");
    let seeds = (0..3).map(|seed| gemm_wgmma(ptx, (64, 64, 512), seed, Numerics::Exact));
    let mut kinds: Vec<Kind> = seeds.map(|result| found(result).0).collect();
    kinds.dedup();
    kinds
}

#[test]
fn missing_waits_and_fences_of_wgmma_are_found() {
    let without = |from: &str, to: &str| kinds(&WGMMA.replace(from, to));
    // The slot is given back, and filled again, while the products still read it.
    let group = "wgmma.wait_group.sync.aligned 0;";
    assert_eq!(without(group, "wgmma.wait_group.sync.aligned 1;"), [Kind::InFlight]);
    assert_eq!(without(group, ""), [Kind::InFlight]);
    assert_eq!(without("wgmma.commit_group.sync.aligned;", ""), [Kind::InFlight]);
    assert_eq!(without("wgmma.fence.sync.aligned;", ""), [Kind::Misuse]);
    assert_eq!(without("fence.mbarrier_init.release.cluster;", ""), [Kind::MissingProxyFence]);
}

/// The kernel with its `n`th wait for an mbarrier replaced by one that does not wait.
fn unwaited(n: impl Fn(usize) -> bool) -> String {
    let mut count = 0;
    let lines = WGMMA.lines().map(|line| {
        if !line.starts_with("mbarrier.try_wait") {
            return line.to_string();
        }
        count += 1;
        if n(count - 1) { "setp.eq.u32 p, 0, 0;".to_string() } else { line.to_string() }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn missing_waits_for_mbarriers_are_found() {
    // The first wait is the producer's for a free slot, the others the consumers' for its data.
    // Without the first, the slot's mbarrier gets an arrival while its last phase is still open.
    assert_eq!(kinds(&unwaited(|n| n == 0)), [Kind::Misuse]);
    // Without the others, the data is under way, or its copy was not even issued.
    let early = kinds(&unwaited(|n| n > 0));
    assert!(early.contains(&Kind::InFlight), "{early:?}");
    assert!(
        early.iter().all(|kind| matches!(kind, Kind::InFlight | Kind::Uninitialized)),
        "{early:?}"
    );
    // Nobody gives slots back; bytes are announced that never come, or that come unannounced.
    let give_back = WGMMA.replace("mbarrier.arrive.shared::cta.b64 _,", "// ");
    assert_eq!(kinds(&give_back), [Kind::Deadlock]);
    assert_eq!(kinds(&WGMMA.replace("%r92, 16384;", "%r92, 32768;")), [Kind::Deadlock]);
    assert_eq!(kinds(&WGMMA.replace("%r92, 16384;", "%r92, 8192;")), [Kind::InFlight]);
    let unordered = WGMMA.replacen("bar.sync \t0;", "", 1);
    let early = kinds(&unordered);
    assert!(early.contains(&Kind::Race), "{early:?}");
    assert!(early.iter().all(|kind| matches!(kind, Kind::Race | Kind::Uninitialized)), "{early:?}");
}

#[test]
fn a_wrong_stride_gives_a_wrong_product() {
    // SBO 1024 in the descriptor becomes 512.
    let ptx =
        WGMMA.replace("4611686293305360384", &((1_u64 << 62) + (32 << 32) + (1 << 16)).to_string());
    assert_ne!(ptx, WGMMA);
    let (got, want, _) =
        gemm_wgmma(&ptx, (64, 64, 64), 0, Numerics::Exact).unwrap_or_else(|f| panic!("{f}"));
    assert_ne!(got, want);
}

/// `cargo test --test tensor_kernels -- --ignored --nocapture` prints times.
#[test]
#[ignore = "a timing, not a check"]
fn time_of_both_products() {
    let sizes = (256, 256, 2048);
    for numerics in [Numerics::Exact, Numerics::Hopper] {
        let clock = std::time::Instant::now();
        let counters = gemm_mma(MMA, sizes, 0, numerics).unwrap().2;
        println!(
            "mma {numerics:?}: {:.2?}, {} instructions",
            clock.elapsed(),
            counters.instructions()
        );
        let clock = std::time::Instant::now();
        let counters = gemm_wgmma(WGMMA, sizes, 0, numerics).unwrap().2;
        println!(
            "wgmma {numerics:?}: {:.2?}, {} instructions",
            clock.elapsed(),
            counters.instructions()
        );
    }
    let clock = std::time::Instant::now();
    product(&vec![0; 256 * 2048], &vec![0; 256 * 2048], sizes);
    println!("of which the host's product: {:.2?}", clock.elapsed());
}
