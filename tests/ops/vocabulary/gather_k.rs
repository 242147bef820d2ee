//! Log-probs of a few ids of each row: their definition, gradients, refusals, and every executor.

use crate::common::devices::{emulated, gpus};
use crate::common::{bits, check_gradient, normals, ulps_f32};
use crate::vocabulary::{PLAIN, SETS, TRANSFORMS, upstream, values, wide};
use gradus::dtype::Float;
use gradus::ops::{GatherK, GatherKBwd, LogProb, LogitTransform, gather_k, gather_k_bwd, logprob};
use gradus::{Device, View, ViewMut, bf16, f16};

/// Arguments of both passes of gather_k.
struct Ids<T> {
    logits: Vec<T>,
    vocab: usize,
    columns: usize,
    ids: Vec<i32>,
    k: usize,
    transform: LogitTransform,
    renormalize: bool,
}

impl<T: Float> Ids<T> {
    fn new(seed: u64, rows: usize, vocab: usize, k: usize) -> Ids<T> {
        let columns = vocab + 3;
        let mut logits = values::<T>(seed, rows * columns, 2.0);
        logits.chunks_mut(columns).for_each(|row| row[vocab..].fill(T::from_f32(f32::NAN)));
        // Steps prime to any extent below 7919 name different ids.
        let id =
            |i: usize, j: usize| if j % 5 == 3 { -100 } else { ((i + 7919 * j) % vocab) as i32 };
        let ids = (0..rows * k).map(|at| id(at / k, at % k)).collect();
        Ids { logits, vocab, columns, ids, k, transform: PLAIN, renormalize: false }
    }

    fn rows(&self) -> usize {
        self.logits.len() / self.columns
    }

    fn forward(&self, device: &Device) -> (Vec<f32>, Vec<f32>) {
        let n = self.rows() as i64;
        let (mut logp, mut mass) = (vec![f32::NAN; self.ids.len()], vec![f32::NAN; self.rows()]);
        let args = GatherK {
            logits: View::new(&self.logits, &[n, self.columns as i64]).unwrap(),
            ids: View::new(&self.ids, &[n, self.k as i64]).unwrap(),
            vocab: self.vocab as i64,
            transform: self.transform,
            renormalize: self.renormalize,
            logp: ViewMut::new(&mut logp, &[n, self.k as i64]).unwrap(),
            mass: Some((&mut mass).into()),
        };
        gather_k(device, args).unwrap();
        (logp, mass)
    }

    fn backward(&self, device: &Device, g: &[f32]) -> Vec<T> {
        let n = self.rows() as i64;
        let mut d = vec![T::from_f32(f32::NAN); self.logits.len()];
        let args = GatherKBwd {
            logits: View::new(&self.logits, &[n, self.columns as i64]).unwrap(),
            ids: View::new(&self.ids, &[n, self.k as i64]).unwrap(),
            vocab: self.vocab as i64,
            transform: self.transform,
            renormalize: self.renormalize,
            dlogp: View::new(g, &[n, self.k as i64]).unwrap(),
            dlogits: ViewMut::new(&mut d, &[n, self.columns as i64]).unwrap(),
        };
        gather_k_bwd(device, args).unwrap();
        d
    }
}

fn check_ids<T: Float>(name: &str, device: &Device, x: &Ids<T>) {
    let exact = Ids {
        logits: wide(&x.logits),
        ids: x.ids.clone(),
        vocab: x.vocab,
        columns: x.columns,
        k: x.k,
        transform: x.transform,
        renormalize: x.renormalize,
    };
    let name = format!("{name} V {} K {}", x.vocab, x.k);
    let ((logp, mass), (want, want_mass)) = (x.forward(device), exact.forward(&Device::Cpu));
    for (at, (got, want)) in logp.iter().zip(&want).enumerate() {
        // lse is at most |logp| plus the largest |z| of these rows.
        let off = ulps_f32(*got, *want as f64, want.abs().max(8.0) as f64);
        assert!(off <= 4.0, "{name}, {at}: {got} for {want}");
    }
    for (got, want) in mass.iter().zip(&want_mass) {
        assert!((got - want).abs() <= 4e-6 * want, "{name}: mass {got} for {want}");
    }
    let mut g = upstream(x.ids.len());
    g.iter_mut().zip(&x.ids).filter(|(_, id)| **id < 0).for_each(|(g, _)| *g = f32::NAN);
    let (got, want) = (x.backward(device, &g), exact.backward(&Device::Cpu, &g));
    for (i, (got, want)) in got.chunks(x.columns).zip(want.chunks(x.columns)).enumerate() {
        let total: f64 =
            g[i * x.k..][..x.k].iter().filter(|g| !g.is_nan()).map(|&g| g as f64).sum();
        for (v, (got, want)) in got.iter().zip(want).enumerate() {
            let neighbor = match size_of::<T>() {
                2 => (want.abs() * 2f64.powi(-7)).max(2f64.powi(-24)),
                _ => f32::MIN_POSITIVE as f64,
            };
            let bound = 2f64.powi(-20) * want.abs() + 2f64.powi(-21) * total.abs() + neighbor;
            let off = (got.to_f64() - T::from_f64(*want).to_f64()).abs();
            assert!(off <= bound, "{name}, row {i}, {v}: {got:?} for {want}");
        }
    }
}

#[test]
fn gather_k_lattice() {
    fn check<T: Float>(shapes: &[(usize, usize)]) {
        for gpu in gpus() {
            for (j, &(vocab, k)) in shapes.iter().enumerate() {
                for renormalize in [false, true] {
                    let mut x = Ids::<T>::new(vocab as u64, 3, vocab, k);
                    (x.renormalize, x.transform) = (renormalize, TRANSFORMS[j % 4]);
                    let name = format!("{} {} {renormalize}", gpu.name, T::DTYPE.name());
                    check_ids(&name, &gpu.device, &x);
                }
            }
        }
    }
    check::<f32>(&[(1, 1), (7, 3), (33, 8), (1000, 0), (1025, 300), (4099, 1000), (50_257, 64)]);
    check::<bf16>(&[(2, 1), (31, 5), (255, 200), (3001, 40), (151_937, 20)]);
    check::<f16>(&[(9, 2), (2055, 600)]);
}

/// An entry has the bits of `logprob` for the same token, a single kept id is certain, and
/// neither depends on the schedule.
#[test]
fn gather_k_has_the_bits_of_logprob() {
    for set in SETS {
        for vocab in [45, 3001, 90_001] {
            let mut x = Ids::<bf16>::new(3, 4, vocab, 1);
            x.ids = vec![3, 44, 0, -100];
            let device = emulated(set, 0);
            let (logp, _) = x.forward(&device);
            let mut want = vec![f32::NAN; 4];
            let logits = View::new(&x.logits, &[4, x.columns as i64]).unwrap();
            let args = LogProb {
                vocab: vocab as i64,
                ..LogProb::new(logits, (&x.ids).into(), (&mut want).into())
            };
            logprob(&device, args).unwrap();
            assert_eq!(bits(&logp), bits(&want));
            let d = x.backward(&device, &[1.0; 4]);
            for seed in [1, 2] {
                let device = emulated(set, seed);
                assert_eq!(bits(&x.forward(&device).0), bits(&logp));
                assert_eq!(x.backward(&device, &[1.0; 4]), d);
            }
            x.renormalize = true;
            assert_eq!(x.forward(&device).0, [0.0; 4]);
        }
    }
}

/// Rows and kept sets without a token that can occur, and NaN.
#[test]
fn gather_k_of_broken_rows() {
    let (inf, v) = (f32::INFINITY, 40);
    let mut x = Ids::<f32>::new(3, 4, v, 2);
    x.ids = vec![1, 2, 1, 2, 1, 2, -100, -100];
    let columns = x.columns;
    x.logits[..v].fill(-inf);
    (x.logits[columns + 1], x.logits[columns + 2]) = (-inf, -inf);
    x.logits[2 * columns + 9] = f32::NAN;
    for renormalize in [false, true] {
        x.renormalize = renormalize;
        let (want, g) = (x.forward(&Device::Cpu), upstream(8));
        let dwant = x.backward(&Device::Cpu, &g);
        for gpu in gpus() {
            let near = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).all(|(a, b)| {
                    (a - b).abs() <= 1e-6 * b.abs().max(1.0) || a == b || (a.is_nan() && b.is_nan())
                })
            };
            let got = x.forward(&gpu.device);
            assert!(near(&got.0, &want.0), "{}: {:?} for {:?}", gpu.name, got.0, want.0);
            assert!(near(&got.1, &want.1), "{}: {:?} for {:?}", gpu.name, got.1, want.1);
            assert!(near(&x.backward(&gpu.device, &g), &dwant), "{} {renormalize}", gpu.name);
        }
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
fn gather_k_refuses_bad_input_by_name() {
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
}
