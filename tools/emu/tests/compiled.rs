//! Kernels compiled from CUDA C++ give what the host computes, for several schedules.

mod common;

use common::{Bench, Bits};

const LOGPROB: &str = include_str!("kernels/generated/logprob.sm80.ptx");
const CLUSTER: &str = include_str!("kernels/generated/cluster.sm90a.ptx");
const ZOO: &str = include_str!("kernels/generated/zoo.sm80.ptx");

fn logprob(rows: usize, vocab: usize, seed: u64) -> (Vec<f32>, Vec<f64>) {
    let mut bits = Bits(1);
    let x: Vec<u16> =
        (0..rows * vocab).map(|_| ((bits.unit() * 8.0).to_bits() >> 16) as u16).collect();
    let target: Vec<i32> = (0..rows).map(|r| ((r * 7919) % vocab) as i32).collect();
    let mut bench = Bench::new(LOGPROB);
    bench.machine.options.seed = seed;
    bench.input(&x);
    bench.input(&target);
    let logp = bench.output(4 * rows);
    bench.output(4 * rows);
    bench.value(vocab as i32);
    let counters = bench.launch("logprob", rows as u32, 256).unwrap_or_else(|f| panic!("{f}"));
    assert!(counters.instructions() > 0);
    let wide = |b: u16| f32::from_bits((b as u32) << 16) as f64;
    let want = (0..rows)
        .map(|r| {
            let row = &x[r * vocab..(r + 1) * vocab];
            let max = row.iter().map(|&b| wide(b)).fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|&b| (wide(b) - max).exp()).sum();
            wide(row[target[r] as usize]) - max - sum.ln()
        })
        .collect();
    (bench.read(logp, rows), want)
}

#[test]
fn logprob_matches_f64_for_every_schedule() {
    for (rows, vocab) in [(1, 1), (3, 31), (2, 257), (5, 1000), (2, 4099)] {
        let (first, want) = logprob(rows, vocab, 0);
        for (got, want) in first.iter().zip(&want) {
            assert!((*got as f64 - want).abs() < 2e-6 * want.abs().max(1.0), "{got} {want}");
        }
        for seed in 1..4 {
            assert_eq!(logprob(rows, vocab, seed).0, first, "seed {seed}");
        }
    }
}

#[test]
fn the_last_block_sees_what_the_others_wrote() {
    let x: Vec<f32> = (0..5000).map(|i| (i % 17) as f32).collect();
    for seed in 0..4 {
        let mut bench = Bench::new(LOGPROB);
        bench.machine.options.seed = seed;
        bench.input(&x);
        bench.output(4 * 9);
        bench.input(&[0u32]);
        let out = bench.output(4);
        bench.value(x.len() as i32);
        bench.launch("last_block_sum", 9, 128).unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(bench.read::<f32>(out, 1)[0], x.iter().sum::<f32>());
    }
}

#[test]
fn groups_are_centered() {
    let reward: Vec<f32> = (0..40).map(|i| (i * i % 11) as f32).collect();
    let offsets = [0i32, 1, 33, 40];
    let mut bench = Bench::new(LOGPROB);
    bench.input(&reward);
    bench.input(&offsets);
    let out = bench.output(160);
    bench.launch("group_center", 3, 32).unwrap_or_else(|f| panic!("{f}"));
    let got = bench.read::<f32>(out, 40);
    for pair in offsets.windows(2) {
        let range = pair[0] as usize..pair[1] as usize;
        let mean: f32 = reward[range.clone()].iter().sum::<f32>() / range.len() as f32;
        for i in range {
            assert!((got[i] - (reward[i] - mean)).abs() < 1e-5, "{i}");
        }
    }
}

#[test]
fn a_cluster_adds_through_distributed_shared_memory() {
    let (rows, n) = (3usize, 1000usize);
    let x: Vec<f32> = (0..rows * n).map(|i| (i % 13) as f32).collect();
    let mut bench = Bench::new(CLUSTER);
    bench.input(&x);
    let out = bench.output(4 * rows);
    bench.value(n as i32);
    bench.launch_clusters("cluster_sum", 4 * rows as u32, 64, 4).unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<f32> = (0..rows).map(|r| x[r * n..(r + 1) * n].iter().sum()).collect();
    assert_eq!(bench.read::<f32>(out, rows), want);
}

fn collatz(mut n: u32) -> (u32, u32) {
    let (mut high, mut steps) = (n, 0);
    while n != 1 {
        n = if n & 1 == 1 { 3 * n + 1 } else { n >> 1 };
        high = high.max(n);
        steps += 1;
    }
    (high, steps)
}

#[test]
fn many_instructions_in_one_kernel() {
    let n = 32usize;
    let mut bench = Bench::new(ZOO);
    let words = bench.output(4 * 10 * n);
    let wides = bench.output(8 * n);
    let floats = bench.output(4 * 4 * n);
    let doubles = bench.output(8 * 2 * n);
    let counters = bench.input(&[0u32, 0, 0, 0, 0, 0, u32::MAX]);
    bench.launch("zoo", 1, n as u32).unwrap_or_else(|f| panic!("{f}"));
    let (w, d) = (bench.read::<u32>(words, 10 * n), bench.read::<u64>(wides, n));
    let (f, g) = (bench.read::<f32>(floats, 4 * n), bench.read::<f64>(doubles, 2 * n));
    for i in 0..n as u32 {
        let at = |k: usize| w[k * n + i as usize];
        let (high, steps) = collatz(i + 1);
        assert_eq!(at(0), (i % 8) * (i % 8) + i + high, "local array and call, lane {i}");
        assert_eq!(at(1), steps);
        let ffs = if i == 0 { 0 } else { i.trailing_zeros() + 1 };
        assert_eq!(
            at(2),
            i.wrapping_mul(2_654_435_761).count_ones() + i.leading_zeros() * 100 + ffs * 10_000
        );
        let bytes = (i as u64) | ((!i) as u64) << 32;
        let byte = |k: u32| (bytes >> (8 * k) & 255) as u32;
        assert_eq!(
            at(3),
            i.reverse_bits() ^ (byte(0) | byte(4) << 8 | byte(1) << 16 | byte(5) << 24)
        );
        assert_eq!(at(4), ((((!i as u64) << 32 | i as u64) << 5) >> 32) as u32);
        assert_eq!(at(5), (0..32).filter(|j| j % 3 == 0).fold(0, |m, j| m | 1 << j));
        assert_eq!(at(6), (0..32).filter(|j| j % 5 == i % 5).fold(0, |m, j| m | 1 << j));
        assert_eq!(at(7), if i < 20 { 0xf_ffff } else { 0 });
        assert_eq!(at(8), ((i.wrapping_mul(0x9e37_79b9) as u64 * 0xdead_beef) >> 32) as u32);
        let s = i as i32 - 16;
        assert_eq!(at(9), ((s / 3) as u32).wrapping_add((s % 7) as u32));
        let (j, x) = (i as u64, i as f32);
        let product = (j + 1).wrapping_mul(0x123_4567_89ab_cdef);
        assert_eq!(d[i as usize], product / (j + 3) + 0xfedc_ba98_7654_3210 % (j + 7));
        let y = x * 0.125;
        let horner = [0.5f32, -1.25, 2.0, 3.0].iter().fold(0.0f32, |s, c| s.mul_add(y, *c));
        assert_eq!(f[i as usize], horner);
        assert_eq!(f[n + i as usize], x.sqrt() / (1.0 + x));
        let sum = (-x * 0.25).exp() + (x * 0.1).tanh() + x.ln_1p();
        assert!((f[2 * n + i as usize] - sum).abs() < 4e-6 * sum.abs().max(1.0), "lane {i}");
        let rounded = (x * 0.3).round_ties_even() + (x * 0.7).floor() + ((x * -0.9) as i32) as f32;
        assert_eq!(f[3 * n + i as usize], rounded);
        let z = i as f64;
        assert_eq!(g[i as usize], z.sqrt() + z.mul_add(1.0 / 3.0, -z));
        let sum = (z * 0.01).exp() + (z + 1.0).ln();
        assert!((g[n + i as usize] - sum).abs() < 1e-14 * sum, "lane {i}");
    }
    let c = bench.read::<u32>(counters, 7);
    assert_eq!((c[0], c[1], c[3]), (496, 30, u32::MAX));
    assert!((1..=32).contains(&c[2]));
    assert_eq!(c[4] as i32, 8 - 16);
    assert_eq!((c[5], c[6]), ((0..32).filter(|i| i % 4 == 2).fold(0, |x, i| x ^ i), 3));
}
