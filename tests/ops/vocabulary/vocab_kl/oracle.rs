//! gather_k and the full-vocabulary divergences.

use crate::common::{Golden, check_gradient, normals, ulps_f32};
use gradus::ops::{
    Divergence, GatherK, GatherKBwd, Guidance, LogProb, LogitTransform, VocabKl, VocabKlBwd,
    gather_k, gather_k_bwd, logprob, vocab_kl, vocab_kl_bwd,
};
use gradus::{Device, View, ViewMut};

const ALL: [Divergence; 4] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.3 },
    Divergence::TotalVariation,
];

fn value(p: &[f64], r: &[f64], v: usize, d: Divergence, guide: Option<(&[f64], f64)>) -> Vec<f32> {
    let mut out = vec![f32::NAN; p.len() / v];
    let args = VocabKl {
        policy: View::rows_of(p, v).unwrap(),
        reference: View::rows_of(r, v).unwrap(),
        guidance: guide.map(|(u, gamma)| Guidance { logits: View::rows_of(u, v).unwrap(), gamma }),
        vocab: v as i64,
        transform: LogitTransform::default(),
        divergence: d,
        value: (&mut out).into(),
    };
    vocab_kl(&Device::Cpu, args).unwrap();
    out
}

fn gradient(p: &[f64], r: &[f64], v: usize, d: Divergence, g: &[f32]) -> Vec<f64> {
    let mut out = vec![f64::NAN; p.len()];
    let args = VocabKlBwd {
        policy: View::rows_of(p, v).unwrap(),
        reference: View::rows_of(r, v).unwrap(),
        guidance: None,
        vocab: v as i64,
        transform: LogitTransform::default(),
        divergence: d,
        dvalue: g.into(),
        dpolicy: ViewMut::rows_of(&mut out, v).unwrap(),
    };
    vocab_kl_bwd(&Device::Cpu, args).unwrap();
    out
}

/// The definitions, summed in f64.
fn oracle(p: &[f64], r: &[f64], d: Divergence) -> f64 {
    let softmax = |z: &[f64]| {
        let m = z.iter().cloned().fold(f64::MIN, f64::max);
        let s: f64 = z.iter().map(|x| (x - m).exp()).sum();
        z.iter().map(|x| (x - m).exp() / s).collect::<Vec<f64>>()
    };
    let (q, p) = (softmax(p), softmax(r));
    let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * (a / b).ln()).sum::<f64>();
    match d {
        Divergence::ForwardKl => kl(&p, &q),
        Divergence::ReverseKl => kl(&q, &p),
        Divergence::Jsd { beta } => {
            let m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
            beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
        }
        Divergence::TotalVariation => {
            0.5 * p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>()
        }
    }
}

#[test]
fn vocab_kl_golden_cases() {
    for file in Golden::family("divergence") {
        let kind = file.text("kind").unwrap();
        let d = match kind {
            "forward_kl" => Divergence::ForwardKl,
            "reverse_kl" => Divergence::ReverseKl,
            _ if kind.starts_with("jsd") => {
                let beta = file.number("beta").unwrap_or_else(|| kind[4..].parse().unwrap());
                Divergence::Jsd { beta }
            }
            other => panic!("{other}"),
        };
        let v = file.shape("policy_logits")[1];
        let (p, r) = (file.f64("policy_logits"), file.f64("ref_logits"));
        let got = value(&p, &r, v, d, None);
        let want = file.f64("divergence");
        for (got, want) in got.iter().zip(&want) {
            let off = ulps_f32(*got, *want, *want);
            assert!(off <= 4.0, "{}: {got} against {want}: {off} ulp", file.name);
        }
        let ones = vec![1f32; want.len()];
        let got = gradient(&p, &r, v, d, &ones);
        let want = file.f64("grad_policy_logits");
        let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // The golden gradient is stored in f32.
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f64::max);
        assert!(worst < 4.0 * 2f64.powi(-24), "{}: gradient off by {worst:e}", file.name);
    }
}

#[test]
fn vocab_kl_matches_its_definition_and_central_differences() {
    let (n, v) = (4, 13);
    let (p, r) = (normals(1, n * v, 2.0), normals(2, n * v, 2.0));
    let g = [1.0f32, -0.5, 2.0, 0.25];
    for d in ALL {
        for (t, got) in value(&p, &r, v, d, None).iter().enumerate() {
            let want = oracle(&p[t * v..(t + 1) * v], &r[t * v..(t + 1) * v], d);
            assert!(ulps_f32(*got, want, want) <= 1.0, "{d:?}");
        }
        let objective = |p: &[f64]| -> f64 {
            (0..n).map(|t| g[t] as f64 * oracle(&p[t * v..][..v], &r[t * v..][..v], d)).sum()
        };
        let worst = check_gradient(objective, &p, &gradient(&p, &r, v, d, &g), 1e-5);
        assert!(worst < 1e-6, "{d:?}: {worst}");
    }
}

#[test]
fn equal_rows_diverge_by_exactly_nothing() {
    let p = normals(3, 5 * 40, 10.0);
    for d in ALL {
        assert_eq!(value(&p, &p, 40, d, None), [0.0; 5], "{d:?}");
        assert!(gradient(&p, &p, 40, d, &[1.0; 5]).iter().all(|g| g.abs() < 1e-15), "{d:?}");
        let shifted: Vec<f64> = p.iter().map(|x| x + 100.0).collect();
        assert!(
            value(&p, &shifted, 40, d, None).iter().all(|&x| (0.0..1e-9).contains(&x)),
            "{d:?}"
        );
    }
}

#[test]
fn impossible_tokens_do_not_poison_a_row() {
    let inf = f64::INFINITY;
    let (p, r) = ([0.0, 1.0, -inf], [0.5, 0.5, -inf]);
    for d in ALL {
        assert!(value(&p, &r, 3, d, None)[0].is_finite(), "{d:?}");
        assert!(gradient(&p, &r, 3, d, &[1.0]).iter().all(|g| g.is_finite()), "{d:?}");
    }
    assert_eq!(value(&[0.0, -inf], &[0.0, 0.0], 2, Divergence::ForwardKl, None), [f32::INFINITY]);
    assert!(value(&[0.0, -inf], &[0.0, 0.0], 2, Divergence::ReverseKl, None)[0].is_finite());
}

#[test]
fn guidance_at_its_ends() {
    let (p, c, u) = (normals(4, 30, 2.0), normals(5, 30, 2.0), normals(6, 30, 2.0));
    for d in ALL {
        let plain = value(&p, &c, 10, d, None);
        assert_eq!(value(&p, &c, 10, d, Some((&u, 1.0))), plain, "γ = 1 is the reference");
        assert_eq!(value(&p, &c, 10, d, Some((&u, 0.0))), value(&p, &u, 10, d, None));
        let mixed: Vec<f64> = c.iter().zip(&u).map(|(c, u)| u + 1.5 * (c - u)).collect();
        let (a, b) = (value(&p, &c, 10, d, Some((&u, 1.5))), value(&p, &mixed, 10, d, None));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{d:?}");
    }
}

fn gathered(x: &[f64], v: usize, ids: &[i32], k: usize, renormalize: bool) -> (Vec<f32>, Vec<f32>) {
    let n = x.len() / v;
    let (mut logp, mut mass) = (vec![f32::NAN; n * k], vec![f32::NAN; n]);
    let args = GatherK {
        logits: View::rows_of(x, v).unwrap(),
        ids: View::rows_of(ids, k).unwrap(),
        vocab: v as i64,
        transform: LogitTransform::default(),
        renormalize,
        logp: ViewMut::rows_of(&mut logp, k).unwrap(),
        mass: Some((&mut mass).into()),
    };
    gather_k(&Device::Cpu, args).unwrap();
    (logp, mass)
}

#[test]
fn gather_k_agrees_with_logprob_and_its_own_mass() {
    let (v, k) = (50, 4);
    let x = normals(7, 3 * v, 2.0);
    let ids = [3, 9, -100, 40, 0, 1, 2, 49, 7, -100, -100, -100];
    let (full, mass) = gathered(&x, v, &ids, k, false);
    let (kept, _) = gathered(&x, v, &ids, k, true);
    for t in 0..3 {
        for (j, &id) in ids[t * k..(t + 1) * k].iter().enumerate() {
            let at = t * k + j;
            if id == -100 {
                assert_eq!((full[at], kept[at]), (0.0, 0.0));
                continue;
            }
            let mut logp = [0f32];
            let row = View::new(&x[t * v..(t + 1) * v], &[1, v as i64]).unwrap();
            let target = [id];
            let args = LogProb::new(row, (&target[..]).into(), (&mut logp[..]).into());
            logprob(&Device::Cpu, args).unwrap();
            assert_eq!(full[at].to_bits(), logp[0].to_bits());
            assert!((kept[at] as f64 - (full[at] as f64 - (mass[t] as f64).ln())).abs() < 1e-5);
        }
    }
    assert_eq!(kept[8], 0.0, "a single kept id is certain");
}

#[test]
fn gather_k_gradient_matches_central_differences() {
    let (v, k) = (11, 3);
    let x = normals(8, 2 * v, 1.5);
    let ids = [4, 0, -100, 10, 2, 7];
    let g = [0.5f32, -1.0, f32::NAN, 0.3, 2.0, -0.7];
    for renormalize in [false, true] {
        let mut dx = vec![f64::NAN; 2 * v];
        let args = GatherKBwd {
            logits: View::rows_of(&x, v).unwrap(),
            ids: View::rows_of(&ids, k).unwrap(),
            vocab: v as i64,
            transform: LogitTransform::default(),
            renormalize,
            dlogp: View::rows_of(&g, k).unwrap(),
            dlogits: ViewMut::rows_of(&mut dx, v).unwrap(),
        };
        gather_k_bwd(&Device::Cpu, args).unwrap();
        let objective = |x: &[f64]| -> f64 {
            let mut sum = 0.0;
            for t in 0..2 {
                let row = &x[t * v..(t + 1) * v];
                let named: Vec<usize> = ids[t * k..(t + 1) * k]
                    .iter()
                    .filter(|&&i| i >= 0)
                    .map(|&i| i as usize)
                    .collect();
                let lse = match renormalize {
                    true => named.iter().map(|&i| row[i].exp()).sum::<f64>().ln(),
                    false => row.iter().map(|x| x.exp()).sum::<f64>().ln(),
                };
                for (j, &id) in ids[t * k..(t + 1) * k].iter().enumerate() {
                    if id >= 0 {
                        sum += g[t * k + j] as f64 * (row[id as usize] - lse);
                    }
                }
            }
            sum
        };
        let worst = check_gradient(objective, &x, &dx, 1e-5);
        assert!(worst < 1e-6, "renormalize {renormalize}: {worst}");
    }
}

#[test]
fn vocab_ops_refuse_bad_input_by_name() {
    let x = vec![0f64; 8];
    let call = |ids: &[i32], vocab: i64| {
        let mut logp = vec![0f32; ids.len()];
        let args = GatherK {
            logits: View::rows_of(&x, 4).unwrap(),
            ids: View::rows_of(ids, 2).unwrap(),
            vocab,
            transform: LogitTransform::default(),
            renormalize: false,
            logp: ViewMut::rows_of(&mut logp, 2).unwrap(),
            mass: None,
        };
        gather_k(&Device::Cpu, args).unwrap_err().to_string()
    };
    assert!(call(&[0, 1, 2, 4], 4).contains("`ids`: got 4 in row 1"));
    assert!(call(&[0, 1, 2, 2], 4).contains("`ids`: got 2 twice in row 1"));
    assert!(call(&[0, 1], 4).contains("`ids`"));
    assert!(call(&[0, 1, 2, 3], 9).contains("`vocab`"));
    let mut out = [0f32; 2];
    let args = VocabKl {
        policy: View::rows_of(&x, 4).unwrap(),
        reference: View::rows_of(&x, 4).unwrap(),
        guidance: None,
        vocab: 4,
        transform: LogitTransform::default(),
        divergence: Divergence::Jsd { beta: 1.0 },
        value: (&mut out[..]).into(),
    };
    let text = vocab_kl(&Device::Cpu, args).unwrap_err().to_string();
    assert!(text.contains("`divergence.beta`: got 1"), "{text}");
}
