//! Operands in device memory: the same results as from host memory, and no access out of bounds
//! whatever the offsets, indices and pairs hold, which nobody can look at beforehand.

use std::sync::Arc;

use crate::common::devices::shared_gpus;
use crate::common::normals;
use gradus::device::{DeviceBuffer, Gpu};
use gradus::dtype::Element;
use gradus::ops::*;
use gradus::quant::{Absmax, Nf4View, QuantType};
use gradus::{DType, Device, View, ViewMut};

/// Vectors in the memory of a device.
struct Memory<'g>(&'g Arc<Gpu>);

impl Memory<'_> {
    fn of<T: Element>(&self, data: &[T]) -> DeviceBuffer<T> {
        DeviceBuffer::from_host(self.0, data).unwrap()
    }

    fn empty<T: Element>(&self, len: usize) -> DeviceBuffer<T> {
        DeviceBuffer::new(self.0, len).unwrap()
    }
}

fn vector<T: Element>(buffer: &DeviceBuffer<T>) -> View<'_, T> {
    buffer.view(&[buffer.len() as i64]).unwrap()
}

fn vector_mut<T: Element>(buffer: &mut DeviceBuffer<T>) -> ViewMut<'_, T> {
    let len = buffer.len() as i64;
    buffer.view_mut(&[len]).unwrap()
}

fn each_gpu(body: impl Fn(&Device, &Memory<'_>)) {
    for executor in shared_gpus() {
        let Device::Gpu(gpu) = &executor.device else { unreachable!() };
        body(&executor.device, &Memory(gpu));
    }
}

/// Offsets that no host check would let through; clamped to the data they overlap nowhere, or two
/// groups would write one element.
const GARBAGE: [[i64; 4]; 4] =
    [[0, 3, 5, 9], [-7, 1 << 60, i64::MAX, 5], [i64::MIN, -1, -1, 0], [9, 4, 4, 1 << 40]];

#[test]
fn groups_stay_in_bounds() {
    let (logp, reward) = (normals(1, 9, 1.0), normals(2, 9, 1.0));
    each_gpu(|device, memory| {
        for offsets in GARBAGE {
            let (x, r, cu) = (memory.of(&logp), memory.of(&reward), memory.of(&offsets));
            // Garbage need not reach every element, so outputs hold something beforehand.
            let mut out = memory.of(&[0.0f64; 9]);
            group_advantage(
                device,
                GroupAdvantage {
                    reward: vector(&r),
                    offsets: vector(&cu),
                    length: None,
                    settings: GroupSettings { scale: GroupScale::BatchStd, ..Default::default() },
                    advantage: vector_mut(&mut out),
                    groups: None,
                },
            )
            .unwrap();
            let mut losses = memory.empty::<f64>(3);
            copg_loss(
                device,
                CopgLoss {
                    logp: vector(&x),
                    reference: None,
                    reward: vector(&r),
                    offsets: vector(&cu),
                    beta: 0.5,
                    weight: None,
                    loss: vector_mut(&mut losses),
                    dlogp: vector_mut(&mut out),
                    total: None,
                },
            )
            .unwrap();
        }
    });
}

#[test]
fn sequences_stay_in_bounds() {
    let (logp, sampler_logp) = (normals(1, 9, 1.0), normals(2, 9, 1.0));
    each_gpu(|device, memory| {
        for offsets in GARBAGE {
            let (x, old, cu) = (memory.of(&logp), memory.of(&sampler_logp), memory.of(&offsets));
            let one = memory.of(&[1.0f64; 3]);
            // Garbage need not reach every element, so outputs hold something beforehand.
            let mut out = memory.of(&[0.0f64; 9]);
            let (settings, mut loss) = (PolicySettings::default(), 0.0);
            policy_loss(
                device,
                PolicyLoss::new(
                    vector(&x),
                    Advantage::PerSequence(vector(&one)),
                    vector(&cu),
                    vector(&one),
                    &settings,
                    &mut loss,
                    vector_mut(&mut out),
                ),
            )
            .unwrap();
            offpolicy_weight(
                device,
                OffPolicyWeight {
                    old_logp: vector(&x),
                    sampler_logp: vector(&old),
                    mask: None,
                    cu_seqlens: vector(&cu),
                    settings: OffPolicySettings { normalize: true, ..Default::default() },
                    weight: vector_mut(&mut out),
                    stats: None,
                },
            )
            .unwrap();
            let mut sums = memory.empty::<f64>(3);
            seq_reduce(
                device,
                SeqReduce {
                    x: vector(&x),
                    mask: None,
                    cu_seqlens: vector(&cu),
                    reduction: SeqReduction::Mean,
                    y: vector_mut(&mut sums),
                    count: None,
                },
            )
            .unwrap();
        }
    });
}

/// Results from device memory are those from host memory.
#[test]
fn sequences_in_device_memory() {
    let (logp, offsets) = (normals(3, 9, 1.0), [0i64, 2, 2, 9]);
    each_gpu(|device, memory| {
        let (x, cu) = (memory.of(&logp), memory.of(&offsets));
        let mut sums = memory.empty::<f64>(3);
        seq_reduce(
            device,
            SeqReduce {
                x: vector(&x),
                mask: None,
                cu_seqlens: vector(&cu),
                reduction: SeqReduction::Sum,
                y: vector_mut(&mut sums),
                count: None,
            },
        )
        .unwrap();
        let got = sums.to_host().unwrap();
        let want: Vec<f64> =
            offsets.windows(2).map(|w| logp[w[0] as usize..w[1] as usize].iter().sum()).collect();
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-14), "{got:?} {want:?}");
    });
}

/// A pair that names no sequence has loss NaN and touches no gradient.
#[test]
fn pairs_out_of_range_are_nan() {
    let logp = normals(4, 6, 1.0);
    each_gpu(|device, memory| {
        let (x, old, cu) = (memory.of(&logp), memory.of(&logp), memory.of(&[0i64, 2, 4, 6]));
        let (reward, pairs) =
            (memory.of(&[1.0f64, 0.0, 2.0]), memory.of(&[0i64, 1, -1, 2, 2, 1 << 50, 1, 1]));
        let (mut loss, mut dlogp) = (memory.empty::<f64>(4), memory.empty::<f64>(6));
        prdp_loss(
            device,
            PrdpLoss {
                logp: vector(&x),
                old: vector(&old),
                reference: vector(&old),
                mask: None,
                cu_seqlens: vector(&cu),
                reward: vector(&reward),
                pairs: pairs.view(&[4, 2]).unwrap(),
                beta: 0.5,
                clip: 0.2,
                weight: None,
                loss: vector_mut(&mut loss),
                dlogp: vector_mut(&mut dlogp),
                total: None,
            },
        )
        .unwrap();
        let loss = loss.to_host().unwrap();
        assert!(loss[0].is_finite() && loss[1..].iter().all(|l| l.is_nan()), "{loss:?}");
        assert!(dlogp.to_host().unwrap()[4..].iter().all(|&d| d == 0.0));
    });
}

#[test]
fn nf4_in_device_memory() {
    let x: Vec<f32> = normals(5, 7 * 96, 1.0).iter().map(|&v| v as f32).collect();
    each_gpu(|device, memory| {
        let data = memory.of(&x);
        let (mut packed, mut absmax) = (memory.empty::<u8>(336), memory.empty::<f32>(11));
        nf4_quantize(
            device,
            Nf4Quantize {
                x: data.view(&[7, 96]).unwrap(),
                quant_type: QuantType::Nf4,
                blocksize: 64,
                packed: vector_mut(&mut packed),
                absmax: vector_mut(&mut absmax),
            },
        )
        .unwrap();
        let code = memory.of(QuantType::Nf4.code());
        let w = Nf4View {
            packed: vector(&packed),
            absmax: Absmax::F32(vector(&absmax)),
            code: vector(&code),
            n: 7,
            k: 96,
            blocksize: 64,
            dtype: DType::F32,
        };
        let mut y = memory.empty::<f32>(7 * 96);
        nf4_dequantize(device, Nf4Dequantize { w, y: y.view_mut(&[7, 96]).unwrap() }).unwrap();
        let y = y.to_host().unwrap();
        // Neighboring codes are at most 0.31 apart, maxima below 4.
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 0.65), "not a quantization");
        assert_eq!(
            y.iter().filter(|v| **v == 0.0).count(),
            x.iter().zip(&y).filter(|(_, b)| **b == 0.0).count()
        );
    });
}

/// Memory of one place is refused by a device of another, by name.
#[test]
fn foreign_memory_is_refused() {
    each_gpu(|_, memory| {
        let (x, mut y) = (memory.of(&[1f32; 4]), memory.empty::<f32>(4));
        let args = Lerp { a: vector(&x), b: vector(&x), weight: 0.5, y: vector_mut(&mut y) };
        let text = lerp(&Device::Cpu, args).unwrap_err().to_string();
        assert!(text.contains("argument `a`") && text.contains("host memory"), "{text}");
    });
}
