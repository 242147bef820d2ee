//! Small kernels whose times follow from the constants.

use super::rates::H200;
use super::{Estimate, Timing};
use crate::{Machine, Module, Shape};

/// Times a body of one parameter `data`, on memory that the L2 holds.
fn time(body: &str, blocks: u32, threads: u32, shared: u32) -> Estimate {
    timed(body, [blocks, threads, shared], false)
}

fn timed(body: &str, [blocks, threads, shared]: [u32; 3], cold: bool) -> Estimate {
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.extern .shared .align 16 .b8 s[];\n\
         .visible .entry k(.param .u64 data)\n{{\n.reg .b64 %rd<20>; .reg .b32 %r<40>;\n\
         .reg .f32 %f<40>; .reg .pred %p<4>;\nld.param.u64 %rd0, [data];\nmov.u32 %r0, %tid.x;\n\
         mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd1, %rd0, %rd1;\n{body}\nret;\n}}"
    );
    let mut machine = Machine::default();
    machine.presume_written();
    let module = Module::load(&ptx, &mut machine).unwrap();
    let data = machine.memory.alloc("data", 1 << 20);
    let shape = Shape { blocks: [blocks, 1, 1], threads: [threads, 1, 1], cluster: 1, shared };
    let program = module.program("k").unwrap();
    let (_, record) = machine.record(program, &shape, &data.to_le_bytes(), 2).unwrap();
    record.estimate(&Timing { gpu: &H200, registers: 32, cold }).unwrap()
}

fn clocks(e: &Estimate) -> f64 {
    (e.seconds * H200.clock).round() - f64::from(H200.latency.start)
}

fn repeat(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

const ADD: &str = "add.f32 %f0, %f0, %f1;";

#[test]
fn a_chain_waits_for_each_result_and_chains_overlap() {
    let set = "mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f3f800000;";
    let chain = time(&format!("{set} {}", repeat(400, |_| ADD.into())), 1, 32, 0);
    let latency = f64::from(H200.latency.arithmetic);
    assert!((clocks(&chain) - 400.0 * latency).abs() < 10.0, "{}", clocks(&chain));
    let sets = repeat(8, |i| format!("mov.f32 %f{}, 0f00000000;", i + 2));
    let eight = repeat(400, |i| format!("add.f32 %f{0}, %f{0}, %f1;", i % 8 + 2));
    let eight = time(&format!("{set} {sets} {eight}"), 1, 32, 0);
    let pace = f64::from(H200.latency.pace);
    assert!((clocks(&eight) - 400.0 * pace).abs() < 20.0, "{}", clocks(&eight));
    assert!(eight.binds.0 == "issue" || eight.binds.0 == "f32", "{:?}", eight.binds);
}

#[test]
fn loads_in_a_row_overlap_and_loads_that_hang_on_each_other_do_not() {
    let apart = repeat(8, |i| format!("ld.global.u32 %r{}, [%rd1+{}];", i + 1, 4096 * i));
    let sum = repeat(7, |i| format!("add.u32 %r1, %r1, %r{};", i + 2));
    let apart = time(&format!("{apart} {sum}"), 1, 32, 0);
    let chain = repeat(8, |i| {
        format!(
            "ld.global.u64 %rd{}, [%rd{}]; add.s64 %rd{0}, %rd{0}, %rd0;",
            i + 3,
            if i == 0 { 0 } else { i + 2 }
        )
    });
    let chain = time(&chain, 1, 32, 0);
    let l2 = f64::from(H200.latency.l2);
    assert!(clocks(&apart) < 2.0 * l2, "{}", clocks(&apart));
    // The first comes from the L2, the others from the same line of the L1.
    let l1 = f64::from(H200.latency.l1);
    assert!(clocks(&chain) > l2 + 7.0 * l1, "{}", clocks(&chain));
}

/// A short branch around a load is a condition of the load in machine code: loads behind such branches overlap,
/// whichever way the branches go. A long one is a branch.
#[test]
fn short_branches_are_conditions() {
    let guarded = |i: usize, more: usize, limit: u32| {
        let pad = repeat(more, |_| "add.u32 %r30, %r30, 1;".into());
        format!(
            "setp.gt.u32 %p1, %r0, {limit}; @%p1 bra L{i};\n\
             ld.global.u32 %r{}, [%rd1+{}]; add.u32 %r2, %r2, %r{0}; {pad}\nL{i}:",
            i + 3,
            4096 * i
        )
    };
    let of = |more: usize, limit: u32| {
        let loads = repeat(8, |i| guarded(i, more, limit));
        clocks(&time(&format!("mov.u32 %r2, 0; mov.u32 %r30, 0; {loads}"), 1, 32, 0))
    };
    let l2 = f64::from(H200.latency.l2);
    for limit in [31, 15] {
        let [short, long] = [of(5, limit), of(6, limit)];
        assert!(short < 2.0 * l2 && long > 7.0 * l2, "{short} {long}");
    }
}

#[test]
fn memory_is_farther_than_the_l2() {
    let load = "ld.global.u32 %r1, [%rd1]; add.u32 %r1, %r1, %r0; st.global.u32 [%rd1], %r1;";
    let [warm, cold] = [false, true].map(|cold| clocks(&timed(load, [1, 32, 0], cold)));
    let more = f64::from(H200.latency.memory - H200.latency.l2);
    assert!((cold - warm - more).abs() < 20.0, "{warm} {cold}");
}

/// A sector is read once if it was loaded before it was stored to, and is written once if it was stored to at all.
#[test]
fn bytes_are_those_that_come_from_memory_and_go_there() {
    let (load, store) = ("ld.global.u32 %r1, [%rd1];", "st.global.u32 [%rd1], %r0;");
    let moved = |body: &str| timed(body, [1, 32, 0], true).memory_bytes;
    let sectors = 4.0 * 32.0;
    assert_eq!(moved(load), sectors);
    assert_eq!(moved(store), sectors);
    assert_eq!(moved(&[load, load].concat()), sectors);
    assert_eq!(moved(&[store, store].concat()), sectors);
    assert_eq!(moved(&[store, load].concat()), sectors);
    assert_eq!(moved(&[load, store].concat()), 2.0 * sectors);
    assert_eq!(moved(&[load, store, load, store].concat()), 2.0 * sectors);
}

#[test]
fn a_barrier_ends_when_the_last_warp_comes() {
    let slow = repeat(300, |_| ADD.into());
    let body = format!(
        "mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f3f800000; setp.gt.u32 %p0, %r0, 31;\n\
         @%p0 bra $B; {slow}\n$B: bar.sync 0;"
    );
    let both = time(&body, 1, 64, 0);
    let least = 300.0 * f64::from(H200.latency.arithmetic) + f64::from(H200.latency.barrier);
    assert!(clocks(&both) >= least && clocks(&both) < least + 60.0, "{}", clocks(&both));
}

#[test]
fn blocks_beyond_those_that_fit_run_later() {
    let body = format!(
        "mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f3f800000; {}",
        repeat(500, |_| ADD.into())
    );
    // 200 KB of shared memory: a block at a time.
    let one = time(&body, 132, 32, 200 << 10);
    assert_eq!((one.resident, one.waves), (1, 1.0));
    for waves in [2, 10] {
        let more = time(&body, 132 * waves, 32, 200 << 10);
        let ratio = clocks(&more) / clocks(&one) / f64::from(waves);
        assert!((ratio - 1.0).abs() < 0.15, "{waves}: {ratio}");
    }
    let together = time(&body, 264, 32, 0);
    assert!(clocks(&together) < 1.1 * clocks(&one), "{}", clocks(&together));
}

#[test]
fn atomics_on_one_address_are_done_one_after_the_other() {
    let one = "red.global.add.u32 [%rd0], 1;";
    let hot = time(one, 4000, 256, 0);
    let least = 4000.0 * 8.0 * H200.serial_atomic;
    assert!(hot.seconds * H200.clock >= least, "{}", hot.seconds * H200.clock);
    assert_eq!(hot.binds.0, "atomics");
    let spread = time(
        "mul.wide.u32 %rd3, %r0, 32; add.s64 %rd3, %rd0, %rd3; red.global.add.u32 [%rd3], 1;",
        1,
        256,
        0,
    );
    assert_ne!(spread.binds.0, "atomics");
}

#[test]
fn copies_that_are_waited_for_later_overlap() {
    let copy = |i: usize| {
        format!(
            "cp.async.ca.shared.global [%r5+{}], [%rd1+{}], 4; cp.async.commit_group;",
            128 * i,
            4096 * i
        )
    };
    let start = "mov.u32 %r4, s; shl.b32 %r5, %r0, 2; add.u32 %r5, %r5, %r4;";
    let late = format!("{start} {} cp.async.wait_group 0;", repeat(6, copy));
    let each = repeat(6, |i| format!("{} cp.async.wait_group 0;", copy(i)));
    let [late, each] =
        [late, format!("{start} {each}")].map(|body| clocks(&time(&body, 1, 32, 4096)));
    let l2 = f64::from(H200.latency.l2);
    assert!(late < 1.5 * l2 && each > 6.0 * l2, "{late} {each}");
}

/// Estimates do not depend on how often they are made.
#[test]
fn the_same_launch_has_the_same_time() {
    let body = "ld.global.u32 %r1, [%rd1]; bar.sync 0; st.global.u32 [%rd1], %r1;";
    assert_eq!(time(body, 300, 128, 1024), time(body, 300, 128, 1024));
}
