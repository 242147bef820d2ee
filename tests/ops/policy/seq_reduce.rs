//! Reductions over sequences and their gradients: definitions, refusals, every executor.

use crate::common::devices::{close, shared_gpus};
use crate::common::{normals, refused};
use crate::policy::arguments::*;
use crate::policy::batch::*;
use crate::policy::packed::Packed;
use gradus::dtype::Real;
use gradus::ops::*;
use gradus::{Device, Result, ViewMut};

fn seq_reduce_on<R: Real>(
    device: &Device,
    batch: &Batch,
    reduction: SeqReduction,
) -> (Vec<f64>, Vec<i64>) {
    let x: Vec<R> = batch.typed(5);
    let sequences = batch.cu.len() - 1;
    let (mut y, mut count) = (vec![R::from_f64(f64::NAN); sequences], vec![-1; sequences]);
    let args = SeqReduce {
        x: (&x).into(),
        mask: Some((&batch.mask).into()),
        cu_seqlens: (&batch.cu).into(),
        reduction,
        y: (&mut y).into(),
        count: Some((&mut count).into()),
    };
    seq_reduce(device, args).unwrap();
    (y.iter().map(|v| v.to_f64()).collect(), count)
}

fn broadcast_on<R: Real>(device: &Device, batch: &Batch, mean: bool) -> Vec<f64> {
    let x: Vec<R> = batch.per_sequence[0].iter().map(|&x| R::from_f64(x)).collect();
    let mut y = vec![R::from_f64(f64::NAN); batch.mask.len()];
    let args = SeqBroadcast {
        x: (&x).into(),
        mask: Some((&batch.mask).into()),
        cu_seqlens: (&batch.cu).into(),
        mean,
        y: (&mut y).into(),
    };
    seq_broadcast(device, args).unwrap();
    y.iter().map(|v| v.to_f64()).collect()
}

fn reductions<R: Real>() {
    use SeqReduction::{Max, Mean, Min, Sum};
    for (seed, lengths) in LATTICE.iter().enumerate() {
        let batch = Batch::new(seed as u64 * 100, lengths);
        for executor in shared_gpus() {
            for reduction in [Sum, Mean, Max, Min] {
                let (want, n) = seq_reduce_on::<R>(&Device::Cpu, &batch, reduction);
                let (got, m) = seq_reduce_on::<R>(&executor.device, &batch, reduction);
                let floor = lengths.iter().max().copied().unwrap_or(1) as f64;
                close(
                    &format!("{} {reduction:?}", executor.name),
                    &want,
                    &got,
                    bound::<R>(),
                    floor,
                );
                assert_eq!(n, m);
            }
            for mean in [false, true] {
                let want = broadcast_on::<R>(&Device::Cpu, &batch, mean);
                assert_eq!(want, broadcast_on::<R>(&executor.device, &batch, mean));
            }
        }
    }
}

#[test]
fn sequence_reductions() {
    reductions::<f32>();
    reductions::<f64>();
}

fn reduced(edit: impl FnOnce(&mut SeqReduce<'_, f64>)) -> Result<()> {
    let mut args = SeqReduce {
        x: view(&[1.0, 2.0]),
        mask: None,
        cu_seqlens: view(&[0, 2]),
        reduction: SeqReduction::Sum,
        y: output(1),
        count: None,
    };
    edit(&mut args);
    seq_reduce(&Device::Cpu, args)
}

fn spread(edit: impl FnOnce(&mut SeqBroadcast<'_, f64>)) -> Result<()> {
    let (x, cu_seqlens) = (view(&[1.0]), view(&[0, 2]));
    let mut args = SeqBroadcast { x, mask: None, cu_seqlens, mean: false, y: output(2) };
    edit(&mut args);
    seq_broadcast(&Device::Cpu, args)
}

#[test]
fn reductions_refuse() {
    reduced(|_| ()).unwrap();
    refused(reduced(|a| a.x = matrix(&[1.0, 2.0], [2, 1])), "x");
    refused(reduced(|a| a.mask = Some(view(&[1]))), "mask");
    refused(reduced(|a| a.cu_seqlens = view(&[0, 1])), "cu_seqlens");
    refused(reduced(|a| a.y = output(2)), "y");
    refused(
        reduced(|a| a.count = Some(ViewMut::from(Box::leak(vec![0i64; 2].into_boxed_slice())))),
        "count",
    );
    spread(|_| ()).unwrap();
    refused(spread(|a| a.x = view(&[1.0; 2])), "x");
    refused(spread(|a| a.mask = Some(view(&[1]))), "mask");
    refused(spread(|a| a.cu_seqlens = view(&[0, 3])), "cu_seqlens");
    refused(spread(|a| a.y = output(1)), "cu_seqlens");
}

pub fn reduce(packed: &Packed, x: &[f64], reduction: SeqReduction) -> (Vec<f64>, Vec<i64>) {
    let n = packed.cu_seqlens.len() - 1;
    let (mut y, mut count) = (vec![f64::NAN; n], vec![-1i64; n]);
    let args = SeqReduce {
        x: x.into(),
        mask: Some((&packed.mask).into()),
        cu_seqlens: (&packed.cu_seqlens).into(),
        reduction,
        y: (&mut y).into(),
        count: Some((&mut count).into()),
    };
    seq_reduce(&Device::Cpu, args).unwrap();
    (y, count)
}

#[test]
fn reductions_match_and_empty_sequences_are_defined() {
    let packed = Packed::new();
    let x = packed.values(9);
    let by_hand = |start: f64, f: fn(f64, f64) -> f64| -> Vec<f64> {
        (0..4).map(|i| packed.actions(i).iter().fold(start, |s, &t| f(s, x[t]))).collect()
    };
    let (sum, count) = reduce(&packed, &x, SeqReduction::Sum);
    assert_eq!(sum, by_hand(0.0, |s, x| s + x));
    assert_eq!(count, [3, 0, 1, 3]);
    assert_eq!(reduce(&packed, &x, SeqReduction::Max).0, by_hand(f64::NEG_INFINITY, f64::max));
    assert_eq!(reduce(&packed, &x, SeqReduction::Min).0, by_hand(f64::INFINITY, f64::min));
    let mean = reduce(&packed, &x, SeqReduction::Mean).0;
    assert_eq!(mean, [sum[0] / 3.0, 0.0, sum[2], sum[3] / 3.0]);

    let mut poisoned = x.clone();
    poisoned[7] = f64::NAN;
    for reduction in [SeqReduction::Sum, SeqReduction::Mean, SeqReduction::Max, SeqReduction::Min] {
        let y = reduce(&packed, &poisoned, reduction).0;
        assert!(y[3].is_nan() && !y[0].is_nan(), "{reduction:?} hides a NaN");
    }
}

/// ⟨reduce(x), w⟩ = ⟨x, broadcast(w)⟩: the broadcast is the reduction's gradient.
#[test]
fn broadcast_is_the_adjoint_of_reduce() {
    let packed = Packed::new();
    let (x, w) = (packed.values(10), normals(11, 4, 1.0));
    for (mean, reduction) in [(false, SeqReduction::Sum), (true, SeqReduction::Mean)] {
        let mut y = vec![f64::NAN; 12];
        let args = SeqBroadcast {
            x: (&w).into(),
            mask: Some((&packed.mask).into()),
            cu_seqlens: (&packed.cu_seqlens).into(),
            mean,
            y: (&mut y).into(),
        };
        seq_broadcast(&Device::Cpu, args).unwrap();
        let left: f64 = reduce(&packed, &x, reduction).0.iter().zip(&w).map(|(a, b)| a * b).sum();
        let right: f64 = (0..12).filter(|&t| packed.mask[t] != 0).map(|t| x[t] * y[t]).sum();
        assert!((left - right).abs() < 1e-14);
        assert!((0..12).all(|t| packed.mask[t] != 0 || y[t] == 0.0));
    }
}
