//! gather_k and the full-vocabulary divergences.

use crate::common::{Golden, check_gradient, normals, ulps_f32};
use gradus::ops::{
    Divergence, Guidance, LogitTransform, VocabKl, VocabKlBwd, vocab_kl, vocab_kl_bwd,
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

#[test]
fn vocab_kl_refuses_bad_input_by_name() {
    let x = vec![0f64; 8];
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
