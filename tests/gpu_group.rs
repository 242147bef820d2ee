//! Kernels of groups, scans, order statistics and deltas: long and odd extents against the CPU,
//! bits that depend on nothing but the data, operands in device memory, offsets that make no sense,
//! launches and traffic.

mod common;

use std::sync::Arc;

use common::devices::{close, emulated, shared_gpus};
use common::normals;
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::dtype::{Element, Float, Real};
use gradus::ops::*;
use gradus::{Device, View, bf16, f16};

const LENGTHS: [usize; 14] = [0, 1, 31, 32, 33, 0, 255, 256, 257, 511, 512, 513, 1021, 10_007];

/// Values are of the order of 1 to 100 and computed in f64, in another order than on the CPU.
fn agree<R: Real>(name: &str, cpu: &[R], gpu: &[R]) {
    let wide = |x: &[R]| -> Vec<f64> { x.iter().map(|v| v.to_f64()).collect() };
    let (relative, floor) = if size_of::<R>() == 4 { (1.2e-7, 1e-3) } else { (1e-12, 1.0) };
    close(name, &wide(cpu), &wide(gpu), relative, floor);
}

/// All NaN are one: a GPU has a payload of its own.
fn bits_of<R: Float>(x: &[R]) -> Vec<u64> {
    let one_nan = |x: f64| if x.is_nan() { f64::NAN } else { x };
    x.iter().map(|v| one_nan(v.to_f64()).to_bits()).collect()
}

/// Packed sequences; NaN stands where the mask forbids reading.
struct Packed<R> {
    cu_seqlens: Vec<i64>,
    mask: Vec<u8>,
    reward: Vec<R>,
    value: Vec<R>,
    per_sequence: Vec<R>,
}

impl<R: Real> Packed<R> {
    /// `keep(t)` is the mask.
    fn new(lengths: &[usize], keep: impl Fn(usize) -> bool) -> Packed<R> {
        let mut cu_seqlens = vec![0i64];
        lengths.iter().for_each(|&n| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + n as i64));
        let n = lengths.iter().sum();
        let mask: Vec<u8> = (0..n).map(|t| keep(t) as u8 * 3).collect();
        let values = |seed| -> Vec<R> {
            let hide = |(x, &m): (f64, &u8)| R::from_f64(if m == 0 { f64::NAN } else { x });
            normals(seed, n, 1.0).into_iter().zip(&mask).map(hide).collect()
        };
        let (reward, value) = (values(1), values(2));
        let per_sequence = normals(3, lengths.len(), 1.0).into_iter().map(R::from_f64).collect();
        Packed { cu_seqlens, mask, reward, value, per_sequence }
    }

    fn nan(&self) -> Vec<R> {
        vec![R::from_f64(f64::NAN); self.mask.len()]
    }

    /// Sequence `i` alone.
    fn only(&self, i: usize) -> Packed<R> {
        let range = self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize;
        Packed {
            cu_seqlens: vec![0, range.len() as i64],
            mask: self.mask[range.clone()].to_vec(),
            reward: self.reward[range.clone()].to_vec(),
            value: self.value[range].to_vec(),
            per_sequence: vec![self.per_sequence[i]],
        }
    }

    fn gae(&self, device: &Device) -> [Vec<R>; 2] {
        let (mut advantage, mut returns) = (self.nan(), self.nan());
        let args = Gae {
            reward: (&self.reward).into(),
            value: (&self.value).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            bootstrap: Some((&self.per_sequence).into()),
            gamma: 0.99,
            lambda: 0.95,
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(device, args).unwrap();
        [advantage, returns]
    }

    fn returns(&self, device: &Device, gamma: f64, masked: MaskedReturn) -> Vec<R> {
        let mut returns = self.nan();
        let args = DiscountedReturn {
            reward: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            gamma,
            masked,
            baseline: Some((&self.per_sequence).into()),
            returns: (&mut returns).into(),
        };
        discounted_return(device, args).unwrap();
        returns
    }

    fn kl_reward(&self, device: &Device, estimator: RewardKl, beta: f64) -> Vec<R> {
        let mut reward = self.nan();
        let args = KlReward {
            score: (&self.per_sequence).into(),
            logp: (&self.reward).into(),
            reference: (&self.value).into(),
            mask: Some((&self.mask).into()),
            cu_seqlens: (&self.cu_seqlens).into(),
            beta,
            estimator,
            clamp: 2.0,
            reward: (&mut reward).into(),
        };
        kl_reward(device, args).unwrap();
        reward
    }

    fn whiten(&self, device: &Device, settings: WhitenSettings) -> (Vec<R>, WhitenStats) {
        let (mut y, mut stats) = (self.nan(), WhitenStats::default());
        let args = Whiten {
            x: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            settings,
            y: (&mut y).into(),
            stats: Some(&mut stats),
        };
        whiten(device, args).unwrap();
        (y, stats)
    }

    fn quantile(&self, device: &Device, q: f64, method: QuantileMethod, whole: bool) -> Vec<R> {
        let outputs = if whole { 1 } else { self.per_sequence.len() };
        let mut y = vec![R::from_f64(-1.0); outputs];
        let args = Quantile {
            x: (&self.reward).into(),
            mask: Some((&self.mask).into()),
            scope: self.scope(whole),
            q,
            method,
            on_nan: OnNan::Skip,
            y: (&mut y).into(),
        };
        quantile(device, args).unwrap();
        y
    }

    fn scope(&self, whole: bool) -> QuantileScope<'_> {
        if whole {
            QuantileScope::All
        } else {
            QuantileScope::PerSequence((&self.cu_seqlens).into())
        }
    }

    fn top(&self, device: &Device, fraction: f64, whole: bool) -> (Vec<u8>, Vec<R>) {
        let outputs = if whole { 1 } else { self.per_sequence.len() };
        let mut keep = vec![9u8; self.mask.len()];
        let mut threshold = vec![R::from_f64(-1.0); outputs];
        let class = RankedClass { class: (&self.mask).into(), ranked: 3, others: true };
        let args = TopFraction {
            x: (&self.reward).into(),
            class: Some(class),
            scope: self.scope(whole),
            fraction,
            keep: (&mut keep).into(),
            threshold: Some((&mut threshold).into()),
        };
        top_fraction(device, args).unwrap();
        (keep, threshold)
    }
}

const MASKS: [fn(usize) -> bool; 4] =
    [|_| true, |t| t % 7 != 3, |t| (t / 300) % 2 == 0, |t| t % 1000 == 999];

const METHODS: [QuantileMethod; 3] =
    [QuantileMethod::Linear, QuantileMethod::Lower, QuantileMethod::Higher];

fn scans_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let packed = Packed::<R>::new(&LENGTHS, keep);
        let cpu = &Device::Cpu;
        for executor in shared_gpus() {
            let (device, name) = (&executor.device, &format!("{} mask {i}", executor.name));
            for (c, g) in packed.gae(cpu).iter().zip(&packed.gae(device)) {
                agree(name, c, g);
            }
            for masked in [MaskedReturn::Skip, MaskedReturn::Reset] {
                for gamma in [0.0, 0.9, 1.0] {
                    let run = |device| packed.returns(device, gamma, masked);
                    agree(name, &run(cpu), &run(device));
                }
            }
            for estimator in [RewardKl::K1, RewardKl::K2, RewardKl::K3, RewardKl::Abs] {
                for beta in [0.0, 0.3] {
                    let run = |device| packed.kl_reward(device, estimator, beta);
                    agree(name, &run(cpu), &run(device));
                }
            }
        }
    }
}

#[test]
fn scans_of_any_length_agree_with_the_cpu() {
    scans_agree::<f32>();
    scans_agree::<f64>();
}

fn whitening_agrees<R: Real>() {
    let back = WhitenSettings { shift_mean: false, count_eps: 0.5, ..WhitenSettings::OPENRLHF };
    for n in [2, 33, 4095, 4096, 4097, 50_021] {
        let packed = Packed::<R>::new(&[n], |t| t % 5 != 4);
        for settings in [WhitenSettings::VERL, WhitenSettings::OPENRLHF, back] {
            let (want, stats) = packed.whiten(&Device::Cpu, settings);
            for executor in shared_gpus() {
                let (got, other) = packed.whiten(&executor.device, settings);
                agree(&executor.name, &want, &got);
                let figures = |s: &WhitenStats| [s.count as f64, s.mean, s.std];
                close(&executor.name, &figures(&stats), &figures(&other), 1e-13, 1.0);
            }
        }
    }
    // Equal values in different chunks have no spread: exactly 0.
    let mut packed = Packed::<R>::new(&[9000], |_| true);
    packed.reward = vec![R::from_f64(1000.1); 9000];
    for executor in shared_gpus() {
        let (y, stats) = packed.whiten(&executor.device, WhitenSettings::VERL);
        assert!(y.iter().all(|v| v.to_f64() == 0.0) && stats.std == 0.0, "{}", executor.name);
    }
}

#[test]
fn whitening_agrees_with_the_cpu() {
    whitening_agrees::<f32>();
    whitening_agrees::<f64>();
}

fn quantiles_agree<R: Real>() {
    for (i, keep) in MASKS.into_iter().enumerate() {
        let lengths = if i == 1 { &LENGTHS[..] } else { &LENGTHS[..13] };
        let mut packed = Packed::<R>::new(lengths, keep);
        // Ties, zeros of both signs, infinities, and NaN where it is skipped.
        for (t, x) in packed.reward.iter_mut().enumerate().filter(|(t, _)| t % 3 == 0) {
            let odd = [0.0, -0.0, 0.5, 0.5, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-42];
            *x = R::from_f64(odd[t / 3 % 8]);
        }
        for executor in shared_gpus() {
            for q in [0.0, 0.1, 0.8, 1.0] {
                for (method, whole) in METHODS.into_iter().flat_map(|m| [(m, true), (m, false)]) {
                    let run = |device| bits_of(&packed.quantile(device, q, method, whole));
                    let name = format!("{} mask {i} q {q} {method:?}", executor.name);
                    assert_eq!(run(&executor.device), run(&Device::Cpu), "{name}");
                }
            }
        }
        let packed = Packed::<R>::new(lengths, keep);
        for executor in shared_gpus() {
            for (fraction, whole) in [(0.0, true), (0.2, true), (0.2, false), (1.0, false)] {
                let (keep, threshold) = packed.top(&executor.device, fraction, whole);
                let want = packed.top(&Device::Cpu, fraction, whole);
                assert_eq!(keep, want.0, "{} mask {i} top {fraction}", executor.name);
                assert_eq!(bits_of(&threshold), bits_of(&want.1));
            }
        }
    }
}

#[test]
fn quantiles_have_the_bits_of_the_cpu() {
    quantiles_agree::<f32>();
    quantiles_agree::<f64>();
}

/// A scope of so many tokens that several blocks share it, its remainder unequal among them.
#[test]
fn a_large_scope_has_the_bits_of_the_cpu() {
    fn check<R: Real>(n: usize, keep: fn(usize) -> bool) {
        let packed = Packed::<R>::new(&[n], keep);
        let devices = [emulated(KernelSet::Sm80, 0), emulated(KernelSet::Sm90a, 0)];
        for device in devices.iter().chain([&emulated(KernelSet::Sm90a, 5)]) {
            for (q, method) in [0.0, 0.317, 0.8, 1.0].into_iter().zip(METHODS.into_iter().cycle()) {
                let run = |device| bits_of(&packed.quantile(device, q, method, true));
                assert_eq!(run(device), run(&Device::Cpu), "{n} q {q} {method:?}");
            }
            let ((keep, threshold), want) =
                (packed.top(device, 0.2, true), packed.top(&Device::Cpu, 0.2, true));
            assert!(keep == want.0 && bits_of(&threshold) == bits_of(&want.1), "{n}");
        }
    }
    check::<f32>(16_384, |_| true);
    check::<f32>(20_011, |t| t % 7 != 3);
    check::<f64>(30_000, |t| t > 25_000);
    check::<f32>(17_000, |_| false);
}

/// A sequence alone, in a batch, and under any order of warps and blocks has the same bits.
#[test]
fn bits_depend_on_the_sequence_alone() {
    let packed = Packed::<f64>::new(&LENGTHS, |t| t % 7 != 3);
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let run = |device: &Device, packed: &Packed<f64>| {
            let mut all = packed.gae(device).to_vec();
            all.push(packed.returns(device, 0.99, MaskedReturn::Skip));
            all.push(packed.kl_reward(device, RewardKl::K3, 0.1));
            all.push(packed.quantile(device, 0.37, QuantileMethod::Linear, false));
            all
        };
        let device = emulated(set, 0);
        let whole = run(&device, &packed);
        for i in [2, 6, 9, 13] {
            let range = packed.cu_seqlens[i] as usize..packed.cu_seqlens[i + 1] as usize;
            let alone = run(&device, &packed.only(i));
            for k in 0..4 {
                assert_eq!(bits_of(&alone[k]), bits_of(&whole[k][range.clone()]), "{set:?} {i}");
            }
            assert_eq!(alone[4][0].to_bits(), whole[4][i].to_bits());
        }
        let everything = |device: &Device| {
            let grads = [View::from(&packed.per_sequence), View::from(&packed.mask_as_grad())]
                .map(|v: View<'_, f64>| v.to_vec());
            (
                run(device, &packed).iter().map(|x| bits_of(x)).collect::<Vec<_>>(),
                bits_of(&packed.whiten(device, WhitenSettings::VERL).0),
                packed.top(device, 0.2, true).0,
                norm_of(device, &[View::from(&grads[0]), View::from(&grads[1])]).value.to_bits(),
                groups_of(device, &packed),
                deltas_of(device, &grads[1]),
            )
        };
        let zero = everything(&device);
        for seed in 1..4 {
            assert!(everything(&emulated(set, seed)) == zero, "{set:?} seed {seed}");
        }
    }
}

impl Packed<f64> {
    /// As many finite numbers as there are tokens.
    fn mask_as_grad(&self) -> Vec<f64> {
        self.mask.iter().enumerate().map(|(t, &m)| m as f64 + 0.1 * t as f64).collect()
    }
}

fn norm_of<T: Float>(device: &Device, grads: &[View<'_, T>]) -> GlobalNorm {
    let mut norm = GlobalNorm::default();
    grad_norm(device, GradNorm { grads, norm: &mut norm }).unwrap();
    norm
}

fn groups_of(device: &Device, packed: &Packed<f64>) -> Vec<u64> {
    let mut advantage = packed.nan();
    let args = GroupAdvantage {
        reward: (&packed.reward).into(),
        offsets: (&packed.cu_seqlens).into(),
        length: None,
        settings: GroupSettings { scale: GroupScale::BatchStd, ..GroupSettings::default() },
        advantage: (&mut advantage).into(),
        groups: None,
    };
    group_advantage(device, args).unwrap();
    bits_of(&advantage)
}

fn deltas_of(device: &Device, old: &[f64]) -> (Vec<i64>, Vec<u64>) {
    let new: Vec<f64> =
        old.iter().enumerate().map(|(i, &x)| if i % 11 == 5 { -x } else { x }).collect();
    let count = delta_count::<f64>(device, old.into(), (&new).into()).unwrap();
    let (mut index, mut value, mut got) = (vec![-1; count], vec![f64::NAN; count], 0);
    let args = DeltaEncode {
        old: old.into(),
        new: (&new).into(),
        index: (&mut index).into(),
        value: (&mut value).into(),
        count: &mut got,
    };
    delta_encode(device, args).unwrap();
    assert_eq!(got, count);
    (index, bits_of(&value))
}

/// The norm has the CPU's bits: for every dtype, for lengths around a chunk, for more blocks than
/// one level of the last tree holds, with and without 16-byte alignment.
#[test]
fn norms_have_the_bits_of_the_cpu() {
    fn check<T: Float>() {
        let data: Vec<T> = normals(5, 70_000, 2.0).into_iter().map(T::from_f64).collect();
        let lists: [Vec<&[T]>; 5] = [
            vec![],
            vec![&data[..0], &data[..1]],
            vec![&data[1..4096], &data[..4096], &data[3..4100], &data[..17]],
            vec![&data[1..], &data[..12_289]],
            (0..5000).map(|i| &data[i..i + 1 + i % 3]).collect(),
        ];
        for (i, list) in lists.iter().enumerate() {
            let grads: Vec<View<'_, T>> = list.iter().map(|&slice| slice.into()).collect();
            let want = norm_of(&Device::Cpu, &grads);
            for executor in shared_gpus() {
                let got = norm_of(&executor.device, &grads);
                let name = format!("{} {} list {i}", executor.name, T::DTYPE.name());
                assert_eq!(got.value.to_bits(), want.value.to_bits(), "{name}");
            }
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    check::<f64>();
}

/// Every dtype, aligned and not, rows with gaps between them, tails shorter than 16 bytes.
#[test]
fn sparsity_is_what_the_cpu_counts() {
    fn check<T: Float>() {
        for (rows, columns, stride, first) in
            [(1, 1, 1, 0), (3, 100, 100, 0), (9, 257, 260, 3), (40, 64, 64, 1), (2, 0, 4, 0)]
        {
            let n = first + rows * stride;
            let old: Vec<T> = normals(6, n, 1e-3).into_iter().map(T::from_f64).collect();
            let step = normals(7, n, 3e-5);
            let moved = |(i, (w, d)): (usize, (&T, &f64))| {
                if i % 3 == 0 { *w } else { T::from_f64(w.to_f64() + d) }
            };
            let new: Vec<T> = old.iter().zip(&step).enumerate().map(moved).collect();
            let run = |device: &Device| {
                let shape = [rows as i64, columns as i64];
                let view = |x| View::strided(x, &shape, &[stride as i64, 1]).unwrap();
                let (mut stats, mut nnz) = (UpdateSparsity::default(), vec![-7i64; rows]);
                let args = SparsityStats {
                    w0: view(&old[first..]),
                    w1: view(&new[first..]),
                    tol: 1e-5,
                    row_nnz: Some((&mut nnz).into()),
                    stats: &mut stats,
                };
                sparsity_stats(device, args).unwrap();
                (stats, nnz)
            };
            for executor in shared_gpus() {
                let name = format!("{} {} {rows}x{columns}", executor.name, T::DTYPE.name());
                assert_eq!(run(&executor.device), run(&Device::Cpu), "{name}");
            }
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
    check::<f64>();
}

/// The error names the value that the CPU names.
#[test]
fn sparsity_finds_the_first_value_that_is_not_finite() {
    let (rows, columns) = (12, 70);
    let huge = f64::MAX;
    // (operand, flat index, value) written into zeros.
    let cases: [&[(usize, usize, f64)]; 5] = [
        &[(0, 500, f64::NAN), (1, 71, f64::INFINITY)],
        &[(1, 75, f64::NAN), (0, 139, f64::NAN), (0, 138, f64::INFINITY)],
        &[(1, 839, f64::NEG_INFINITY)],
        &[(0, 290, huge), (1, 290, -huge)],
        &[(0, 290, huge), (1, 290, -huge), (1, 345, f64::NAN)],
    ];
    for case in cases {
        let mut w = [vec![0f64; rows * columns], vec![0f64; rows * columns]];
        case.iter().for_each(|&(operand, i, value)| w[operand][i] = value);
        let run = |device: &Device| {
            let mut stats = UpdateSparsity::default();
            let [w0, w1] = [&w[0], &w[1]].map(|w| View::rows_of(w, columns).unwrap());
            let args = SparsityStats { w0, w1, tol: 0.0, row_nnz: None, stats: &mut stats };
            sparsity_stats(device, args).unwrap_err().to_string()
        };
        for executor in shared_gpus() {
            assert_eq!(run(&executor.device), run(&Device::Cpu), "{}", executor.name);
        }
    }
}

/// Elements of 1, 2, 4 and 8 bytes; more chunks than one tile of the scan holds; dense, sparse and
/// no changes.
#[test]
fn deltas_restore_every_bit() {
    const ALL: [usize; 4] = [1, 7, 40_009, usize::MAX];
    fn check<T: Element>(n: usize, first: usize, every: &[usize], value: impl Fn(usize) -> T) {
        let old: Vec<T> = (0..n + first).map(&value).collect();
        for &every in every {
            let change = |i: usize| value(if i % every == every / 2 { i + 1 } else { i });
            let new: Vec<T> = (0..n + first).map(change).collect();
            let (old, new) = (&old[first..], &new[first..]);
            let want = delta_count::<T>(&Device::Cpu, old.into(), new.into()).unwrap();
            for executor in shared_gpus() {
                let device = &executor.device;
                let count = delta_count::<T>(device, old.into(), new.into()).unwrap();
                assert_eq!(count, want, "{} {n}", executor.name);
                let (mut index, mut values, mut got) =
                    (vec![-7i64; count + 2], vec![value(0); count + 2], 0);
                let args = DeltaEncode {
                    old: old.into(),
                    new: new.into(),
                    index: (&mut index).into(),
                    value: (&mut values).into(),
                    count: &mut got,
                };
                delta_encode(device, args).unwrap();
                assert!(got == count && index[count..] == [-7, -7]);
                let mut target = old.to_vec();
                let args = DeltaApply {
                    index: index[..count].into(),
                    value: values[..count].into(),
                    target: (&mut target).into(),
                };
                delta_apply(device, args).unwrap();
                assert!(
                    bytemuck::cast_slice::<T, u8>(&target) == bytemuck::cast_slice::<T, u8>(new),
                    "{} {n}",
                    executor.name
                );
            }
        }
    }
    check(0, 0, &ALL, |i| i as u8);
    check(5_000_000, 0, &[900_001], |i| i as u8);
    check(16_385, 1, &ALL, |i| i as u8);
    check(50_000, 3, &ALL, |i| f16::from_bits(i as u16));
    check(33_001, 0, &ALL, |i| i as i32);
    check(16_384, 1, &ALL, |i| i as f64);
}

/// A vector in device memory, one element behind the start of its buffer.
fn placed<T: Element>(gpu: &Arc<Gpu>, data: &[T]) -> DeviceBuffer<T> {
    let shifted: Vec<T> = [T::zeroed()].into_iter().chain(data.iter().copied()).collect();
    DeviceBuffer::from_host(gpu, &shifted).unwrap()
}

fn vector<T: Element>(buffer: &DeviceBuffer<T>) -> View<'_, T> {
    let n = buffer.len();
    buffer.view(&[n as i64]).unwrap().narrow(1, n - 1).unwrap()
}

/// The operands of the token ops in device memory.
struct Resident {
    cu_seqlens: DeviceBuffer<i64>,
    mask: DeviceBuffer<u8>,
    reward: DeviceBuffer<f32>,
    value: DeviceBuffer<f32>,
    per_sequence: DeviceBuffer<f32>,
}

impl Resident {
    fn new(gpu: &Arc<Gpu>, packed: &Packed<f32>) -> Resident {
        Resident {
            cu_seqlens: placed(gpu, &packed.cu_seqlens),
            mask: placed(gpu, &packed.mask),
            reward: placed(gpu, &packed.reward),
            value: placed(gpu, &packed.value),
            per_sequence: placed(gpu, &packed.per_sequence),
        }
    }

    /// All token ops; their outputs.
    fn run(&self, device: &Device, gpu: &Arc<Gpu>) -> Vec<Vec<f32>> {
        let n = self.reward.len();
        let mut out: Vec<DeviceBuffer<f32>> =
            (0..6).map(|_| placed(gpu, &vec![7.5; n - 1])).collect();
        let mut keep = placed(gpu, &vec![9u8; n - 1]);
        let mut outputs = out.iter_mut().map(|b| b.view_mut(&[n as i64]).unwrap());
        let mut views: Vec<_> = (0..6).map(|_| outputs.next().unwrap()).collect();
        let mut views = views.iter_mut().map(|v| v.narrow(1, n - 1).unwrap());
        let mut next = || views.next().unwrap();
        let (reward, value) = (vector(&self.reward), vector(&self.value));
        let (mask, cu_seqlens) = (Some(vector(&self.mask)), vector(&self.cu_seqlens));
        let (bootstrap, settings) = (Some(vector(&self.per_sequence)), WhitenSettings::VERL);
        let (advantage, returns) = (next(), Some(next()));
        let (gamma, lambda, masked) = (0.99, 0.95, MaskedReturn::Skip);
        gae(
            device,
            Gae { reward, value, mask, cu_seqlens, bootstrap, gamma, lambda, advantage, returns },
        )
        .unwrap();
        let (baseline, returns) = (bootstrap, next());
        discounted_return(
            device,
            DiscountedReturn { reward, mask, cu_seqlens, gamma, masked, baseline, returns },
        )
        .unwrap();
        let args = KlReward {
            score: vector(&self.per_sequence),
            logp: reward,
            reference: value,
            mask,
            cu_seqlens,
            beta: 0.1,
            estimator: RewardKl::K3,
            clamp: 5.0,
            reward: next(),
        };
        kl_reward(device, args).unwrap();
        whiten(device, Whiten { x: reward, mask, settings, y: next(), stats: None }).unwrap();
        let args = GroupAdvantage {
            reward,
            offsets: cu_seqlens,
            length: None,
            settings: GroupSettings::default(),
            advantage: next(),
            groups: None,
        };
        group_advantage(device, args).unwrap();
        let mut whole = keep.view_mut(&[n as i64]).unwrap();
        let args = TopFraction {
            x: reward,
            class: Some(RankedClass { class: vector(&self.mask), ranked: 3, others: false }),
            scope: QuantileScope::PerSequence(cu_seqlens),
            fraction: 0.25,
            keep: whole.narrow(1, n - 1).unwrap(),
            threshold: None,
        };
        top_fraction(device, args).unwrap();
        drop(views);
        let mut all: Vec<Vec<f32>> =
            out.iter().map(|b| b.to_host().unwrap()[1..].to_vec()).collect();
        all.push(keep.to_host().unwrap()[1..].iter().map(|&k| k as f32).collect());
        all
    }
}

fn gpu_of(device: &Device) -> &Arc<Gpu> {
    match device {
        Device::Gpu(gpu) => gpu,
        _ => panic!("a GPU is expected"),
    }
}

/// Operands in device memory, off every alignment, give the bits of operands in host memory; the
/// element in front of an output keeps its value.
#[test]
fn device_memory_gives_the_same_bits() {
    let packed = Packed::<f32>::new(&LENGTHS[..12], |t| t % 7 != 3);
    for executor in shared_gpus() {
        let device = &executor.device;
        let resident = Resident::new(gpu_of(device), &packed);
        let got = resident.run(device, gpu_of(device));
        let [advantage, returns] = packed.gae(device);
        let want = [advantage, returns, packed.returns(device, 0.99, MaskedReturn::Skip)];
        for (k, want) in want.iter().enumerate() {
            assert_eq!(bits_of(&got[k]), bits_of(want), "{} output {k}", executor.name);
        }
        let whitened = packed.whiten(device, WhitenSettings::VERL).0;
        assert_eq!(bits_of(&got[4]), bits_of(&whitened), "{}", executor.name);
        let keep: Vec<f64> = got[6].iter().map(|&k| k as f64).collect();
        assert!(keep.iter().zip(&packed.mask).all(|(&k, &m)| k <= m as f64), "others are not kept");
    }
}

/// Offsets in device memory are not looked at before the launch. Whatever they hold, every access
/// stays inside the operands: the emulator ends a launch that does not. Offsets that fall and rise
/// again are left out, as then two sequences write the same tokens.
#[test]
fn senseless_offsets_stay_in_bounds() {
    let mut packed = Packed::<f32>::new(&[40, 0, 300, 1], |_| true);
    for wild in [
        vec![-5, 100, 1 << 60, i64::MAX, i64::MIN],
        vec![341, 12, 12, -1, 400],
        vec![i64::MIN, i64::MIN, 50, 50, 1 << 40],
    ] {
        packed.cu_seqlens = wild;
        for set in [KernelSet::Sm80, KernelSet::Sm90a] {
            let device = emulated(set, 0);
            Resident::new(gpu_of(&device), &packed).run(&device, gpu_of(&device));
        }
    }
}

/// Indices in device memory that lie outside the target are passed over.
#[test]
fn senseless_indices_write_nothing() {
    for executor in shared_gpus() {
        let gpu = gpu_of(&executor.device);
        let index = placed(gpu, &[-1i64, 2, 5, i64::MAX, i64::MIN, 4]);
        let value = placed(gpu, &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut target = vec![0f32; 5];
        let args = DeltaApply {
            index: vector(&index),
            value: vector(&value),
            target: (&mut target).into(),
        };
        delta_apply(&executor.device, args).unwrap();
        assert_eq!(target, [0.0, 0.0, 2.0, 0.0, 6.0], "{}", executor.name);
    }
}

/// A NaN in device memory makes a quantile that does not skip NaN a NaN.
#[test]
fn a_nan_on_the_device_is_a_result() {
    for executor in shared_gpus() {
        let x = placed(gpu_of(&executor.device), &[1f32, f32::NAN, 3.0]);
        let mut y = [0f32];
        let args = Quantile {
            x: vector(&x),
            mask: None,
            scope: QuantileScope::All,
            q: 0.5,
            method: QuantileMethod::Linear,
            on_nan: OnNan::Error,
            y: (&mut y[..]).into(),
        };
        quantile(&executor.device, args).unwrap();
        assert!(y[0].is_nan(), "{}", executor.name);
    }
}

/// No tokens, no sequences: nothing is launched and nothing fails.
#[test]
fn nothing_to_do_is_no_launch() {
    let driver = Arc::new(EmuDriver::new());
    let device = Device::Gpu(Arc::new(Gpu::new(driver.clone()).unwrap()));
    let none = Packed::<f32>::new(&[], |_| true);
    none.gae(&device);
    none.returns(&device, 1.0, MaskedReturn::Skip);
    none.kl_reward(&device, RewardKl::K1, 0.0);
    assert!(none.quantile(&device, 0.5, QuantileMethod::Linear, false).is_empty());
    norm_of::<f32>(&device, &[]);
    deltas_of(&device, &[]);
    assert!(driver.take_launches().is_empty());
    // One scope of no tokens has a result.
    assert!(none.quantile(&device, 0.5, QuantileMethod::Linear, true)[0].is_nan());
    let empty = Packed::<f32>::new(&[0, 0], |_| true);
    empty.gae(&device);
    assert!(empty.quantile(&device, 0.5, QuantileMethod::Linear, false).iter().all(|y| y.is_nan()));
}

/// Launches of an op, and the bytes they moved in units of the least there is.
fn traffic(driver: &EmuDriver, least: usize) -> (usize, f64) {
    let launches = driver.take_launches();
    let bytes: u64 = launches.iter().map(|(_, c)| c.global_bytes()).sum();
    assert!(launches.iter().all(|(_, c)| c.local_accesses == 0));
    (launches.len(), bytes as f64 / least as f64)
}

/// One launch an op, two for whitening; what is read once is read once.
#[test]
fn launches_and_traffic() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let device = Device::Gpu(Arc::new(gpu));
        let packed = Packed::<f32>::new(&[16_384; 4], |_| true);
        let n = packed.reward.len();
        packed.gae(&device);
        // Reward, value, mask; advantage, returns.
        let (launches, ratio) = traffic(&driver, 17 * n);
        assert!(launches == 1 && ratio <= 1.01, "gae: {ratio}");
        packed.returns(&device, 0.9, MaskedReturn::Reset);
        let (launches, ratio) = traffic(&driver, 9 * n);
        assert!(launches == 1 && ratio <= 1.01, "discounted_return: {ratio}");
        packed.kl_reward(&device, RewardKl::K3, 0.1);
        let (launches, ratio) = traffic(&driver, 13 * n);
        assert!(launches == 1 && ratio <= 1.01, "kl_reward: {ratio}");
        packed.whiten(&device, WhitenSettings::VERL);
        assert_eq!(traffic(&driver, n).0, 2, "whiten");
        packed.quantile(&device, 0.5, QuantileMethod::Lower, false);
        // A count and four digits; the mask each time.
        let (launches, ratio) = traffic(&driver, 5 * 5 * n);
        assert!(launches == 1 && ratio <= 1.01, "quantile: {ratio}");
        packed.top(&device, 0.2, true);
        assert_eq!(traffic(&driver, n).0, 1, "top_fraction");
        let mut advantage = packed.nan();
        let args = GroupAdvantage {
            reward: (&packed.reward).into(),
            offsets: (&packed.cu_seqlens).into(),
            length: None,
            settings: GroupSettings { scale: GroupScale::BatchStd, ..GroupSettings::default() },
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(&device, args).unwrap();
        assert_eq!(traffic(&driver, n).0, 1, "group_advantage");
        reads_of_weights(&driver, &device);
    }
}

fn reads_of_weights(driver: &EmuDriver, device: &Device) {
    let (rows, columns) = (64, 4096);
    let n = rows * columns;
    let w: Vec<bf16> = normals(9, n, 1.0).into_iter().map(bf16::from_f64).collect();
    norm_of(device, &[View::from(&w), View::from(&w[..4096])]);
    let (launches, ratio) = traffic(driver, 2 * (n + 4096));
    assert!(launches == 1 && ratio <= 1.05, "grad_norm: {ratio}");
    let view = View::rows_of(&w, columns).unwrap();
    let mut stats = UpdateSparsity::default();
    let args = SparsityStats { w0: view, w1: view, tol: 0.0, row_nnz: None, stats: &mut stats };
    sparsity_stats(device, args).unwrap();
    let (launches, ratio) = traffic(driver, 4 * n);
    assert!(launches == 1 && ratio <= 1.05, "sparsity_stats: {ratio}");
    assert_eq!(delta_count::<bf16>(device, (&w).into(), (&w).into()).unwrap(), 0);
    let (launches, ratio) = traffic(driver, 4 * n);
    assert!(launches == 1 && ratio <= 1.02, "delta_count: {ratio}");
    let mut new = w.clone();
    new[100_000] = bf16::from_f32(77.0);
    let (mut index, mut value, mut count) = ([0i64], [bf16::ZERO], 0);
    let args = DeltaEncode {
        old: (&w).into(),
        new: (&new).into(),
        index: (&mut index[..]).into(),
        value: (&mut value[..]).into(),
        count: &mut count,
    };
    delta_encode(device, args).unwrap();
    assert_eq!((index, value, count), ([100_000], [bf16::from_f32(77.0)], 1));
    // One chunk of 16,384 is read again, one warp's part of it twice.
    let (launches, ratio) = traffic(driver, 4 * (n + 16_384 + 2048));
    assert!(launches == 2 && ratio <= 1.02, "delta_encode: {ratio}");
}
