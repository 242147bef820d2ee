//! The sampler: its log-probs are the trainer's, its draws follow the distribution, its filters
//! keep what they say.

use crate::common::devices::{on_all, shared_gpus};
use crate::common::{normals, ulps_f32};
use gradus::ops::{LogProb, LogitTransform, Sample, logprob, sample};
use gradus::rng::{Purpose, Rng};
use gradus::{Device, View};
use proptest::prelude::*;

#[derive(Clone, Copy)]
struct Filter {
    temperature: f64,
    top_k: i64,
    top_p: f64,
    min_p: f64,
    greedy: bool,
}

const OPEN: Filter = Filter { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, greedy: false };

struct Drawn {
    token: Vec<i32>,
    logp: Vec<f32>,
    kept: Vec<f32>,
    mass: Vec<f32>,
    entropy: Vec<f32>,
}

fn try_draw(
    device: &Device,
    logits: &[f32],
    v: usize,
    uniform: &[f64],
    f: Filter,
) -> gradus::Result<Drawn> {
    let n = uniform.len();
    let mut d = Drawn {
        token: vec![-7; n],
        logp: vec![f32::NAN; n],
        kept: vec![f32::NAN; n],
        mass: vec![f32::NAN; n],
        entropy: vec![f32::NAN; n],
    };
    let args = Sample {
        logits: View::rows_of(logits, v)?,
        vocab: v as i64,
        transform: LogitTransform { temperature: f.temperature, ..Default::default() },
        top_k: f.top_k,
        top_p: f.top_p,
        min_p: f.min_p,
        greedy: f.greedy,
        uniform: uniform.into(),
        token: (&mut d.token).into(),
        logp: (&mut d.logp).into(),
        logp_kept: Some((&mut d.kept).into()),
        kept_mass: Some((&mut d.mass).into()),
        entropy: Some((&mut d.entropy).into()),
    };
    sample(device, args)?;
    Ok(d)
}

/// On every executor; the CPU's draws are returned.
fn draw(logits: &[f32], v: usize, uniform: &[f64], f: Filter) -> Drawn {
    let run = |device: &Device| try_draw(device, logits, v, uniform, f).unwrap();
    on_all(run, |name, cpu, gpu| {
        for i in 0..uniform.len() {
            let (want, got) = (cpu.token[i], gpu.token[i]);
            let row = &logits[i * v..(i + 1) * v];
            let (h, exact) = (gpu.entropy[i], cpu.entropy[i]);
            assert!(ulps_f32(h, exact as f64, exact.max(1.0) as f64) <= 8.0, "{name}: {h} {exact}");
            if want != got {
                let gap = distance(row, f.temperature, uniform[i] * cpu.mass[i] as f64, got, want);
                assert!(gap < 2e-6, "{name}: row {i} draws {got}, the CPU {want}: {gap:e} apart");
                continue;
            }
            // Where a draw is certain both log-probs are about 0.
            let close = |a: f32, b: f32| ulps_f32(a, b as f64, b.abs().max(1.0) as f64) <= 8.0;
            assert!(close(gpu.logp[i], cpu.logp[i]), "{name}: {} {}", gpu.logp[i], cpu.logp[i]);
            assert!(close(gpu.kept[i], cpu.kept[i]), "{name}: {} {}", gpu.kept[i], cpu.kept[i]);
            assert!(close(gpu.mass[i], cpu.mass[i]), "{name}: {} {}", gpu.mass[i], cpu.mass[i]);
        }
    })
}

/// How far the boundary between two neighboring tokens is from the draw, as a share of the mass:
/// executors may differ where a draw falls on a boundary. Tokens that are not neighbors are 1 apart.
fn distance(row: &[f32], temperature: f64, draw: f64, a: i32, b: i32) -> f64 {
    let (low, high) = (a.min(b) as usize, a.max(b) as usize);
    let z: Vec<f64> = row.iter().map(|&x| x as f64 / temperature).collect();
    let top = z.iter().cloned().fold(f64::MIN, f64::max);
    let p: Vec<f64> = z.iter().map(|z| (z - top).exp()).collect();
    let total: f64 = p.iter().sum();
    let between: f64 = p[low + 1..high].iter().sum();
    let below: f64 = p[..=low].iter().sum();
    (below / total - draw).abs() + between / total
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// On-policy is bitwise on-policy: the sampler reports the bits of `logprob`, and its entropies.
    #[test]
    fn sampled_logp_has_the_bits_of_logprob(
        seed in 0u64..1000, n in 1usize..20, v in 2usize..300, temperature in 0.3f64..2.0
    ) {
        let logits: Vec<f32> = normals(seed, n * v, 3.0).iter().map(|&x| x as f32).collect();
        let mut rng = Rng::new(seed, Purpose::User, [1, 0, 0]);
        let uniform: Vec<f64> = (0..n).map(|_| rng.uniform()).collect();
        let filter = Filter { temperature, ..OPEN };
        draw(&logits, v, &uniform, filter);
        for executor in std::iter::once(&Device::Cpu).chain(shared_gpus().iter().map(|e| &e.device)) {
            let drawn = try_draw(executor, &logits, v, &uniform, filter).unwrap();
            let (mut logp, mut entropy) = (vec![0f32; n], vec![0f32; n]);
            let args = LogProb {
                transform: LogitTransform { temperature, ..Default::default() },
                entropy: Some((&mut entropy).into()),
                ..LogProb::new(
                    View::rows_of(&logits, v).unwrap(),
                    (&drawn.token).into(),
                    (&mut logp).into(),
                )
            };
            logprob(executor, args).unwrap();
            for i in 0..n {
                let (kept, full) = (drawn.kept[i], drawn.logp[i]);
                prop_assert_eq!(logp[i].to_bits(), full.to_bits());
                prop_assert_eq!(entropy[i].to_bits(), drawn.entropy[i].to_bits());
                prop_assert_eq!(drawn.mass[i], 1.0);
                prop_assert!((kept - full).abs() <= 1e-6 * full.abs().max(1.0));
            }
        }
    }

    /// Filters keep a subset whose mass is reported, and the kept log-prob is renormalized by it.
    #[test]
    fn filters_report_their_mass(
        seed in 0u64..1000, v in 2usize..100, k in 0i64..20, p in 0.05f64..1.0, m in 0.0f64..0.5
    ) {
        let logits: Vec<f32> = normals(seed, v, 2.0).iter().map(|&x| x as f32).collect();
        let f = Filter { top_k: k, top_p: p, min_p: m, ..OPEN };
        for u in [0.0, 0.3, 0.7, 0.999_999_999] {
            let d = draw(&logits, v, &[u], f);
            let difference = (d.logp[0] - d.kept[0]) as f64;
            prop_assert!((difference - (d.mass[0] as f64).ln()).abs() < 1e-5);
            let above = logits.iter().filter(|&&x| x > logits[d.token[0] as usize]).count();
            prop_assert!(k == 0 || (above as i64) < k, "rank {} of top-k {}", above, k);
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, 1.0, -1.0, 2.0, f32::NEG_INFINITY];
    let n = 100_000;
    let mut rng = Rng::new(11, Purpose::User, [0, 0, 0]);
    let rows: Vec<f32> = (0..n).flat_map(|_| logits).collect();
    let uniform: Vec<f64> = (0..n).map(|_| rng.uniform()).collect();
    let mut counts = [0f64; 5];
    let cpu = try_draw(&Device::Cpu, &rows, 5, &uniform, OPEN).unwrap();
    cpu.token.iter().for_each(|&t| counts[t as usize] += 1.0);
    draw(&rows[..5 * 500], 5, &uniform[..500], OPEN);
    let total: f64 = logits.iter().map(|&x| (x as f64).exp()).sum();
    assert_eq!(counts[4], 0.0, "a token that cannot occur");
    let chi2: f64 = (0..4)
        .map(|i| {
            let expected = n as f64 * (logits[i] as f64).exp() / total;
            (counts[i] - expected).powi(2) / expected
        })
        .sum();
    assert!(chi2 < 16.3, "chi-square {chi2} with 3 degrees of freedom (p < 0.001)");
}

#[test]
fn inverse_cdf_at_its_edges_and_ties() {
    let flat = [0.0f32; 4];
    for (u, token) in [(0.0, 0), (0.2499, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0 - 1e-16, 3)] {
        assert_eq!(draw(&flat, 4, &[u], OPEN).token, [token], "u = {u}");
    }
    assert_eq!(draw(&flat, 4, &[0.9], Filter { greedy: true, ..OPEN }).token, [0]);
    assert_eq!(
        draw(&flat, 4, &[0.9], Filter { top_k: 2, ..OPEN }).token,
        [1],
        "lower ids win ties"
    );
    let steep = [3.0f32, 1.0, 2.0, 0.0];
    let d = draw(&steep, 4, &[0.99], Filter { top_p: 0.5, ..OPEN });
    assert_eq!((d.token[0], d.kept[0]), (0, 0.0), "the likeliest alone reaches half the mass");
    let d = draw(&steep, 4, &[0.99], Filter { min_p: 0.3, ..OPEN });
    assert_eq!(d.token[0], 2, "e^-1 = 0.37 stays, e^-2 = 0.14 goes");
}

#[test]
fn sample_refuses_bad_input_by_name() {
    let logits = [0.0f32, 1.0, f32::NAN, 0.0];
    let bad = |uniform: &[f64], f: Filter| match try_draw(&Device::Cpu, &logits, 2, uniform, f) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let ok = [0.5, 0.5];
    for (text, name) in [
        (bad(&ok, OPEN), "`logits`: got row 1"),
        (bad(&[0.5], OPEN), "`uniform`"),
        (bad(&[0.5, 1.0], OPEN), "`uniform`: got 1 at index 1"),
        (bad(&[f64::NAN, 0.5], OPEN), "`uniform`"),
        (bad(&ok, Filter { top_k: -1, ..OPEN }), "`top_k`"),
        (bad(&ok, Filter { top_p: 0.0, ..OPEN }), "`top_p`"),
        (bad(&ok, Filter { top_p: f64::NAN, ..OPEN }), "`top_p`"),
        (bad(&ok, Filter { min_p: 1.5, ..OPEN }), "`min_p`"),
        (bad(&ok, Filter { temperature: 0.0, ..OPEN }), "`transform.temperature`"),
    ] {
        assert!(text.contains(name), "{text} should name {name}");
    }
}
