//! All ops of tokens together: bits of a sequence alone, operands in device memory, offsets that make no sense, nothing
//! to do.

use std::sync::Arc;

use crate::common::bits_of;
use crate::common::devices::{emulated, gpu_of, placed, shared_gpus, vector};
use crate::policy::sequences::*;
use gradus::device::{DeviceBuffer, EmuDriver, Gpu, KernelSet};
use gradus::ops::*;
use gradus::{Device, ViewMut};

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
            (
                run(device, &packed).iter().map(|x| bits_of(x)).collect::<Vec<_>>(),
                bits_of(&packed.whiten(device, WhitenSettings::VERL).0),
                packed.top(device, 0.2, true).0,
                groups_of(device, &packed),
            )
        };
        let zero = everything(&device);
        for seed in 1..4 {
            assert!(everything(&emulated(set, seed)) == zero, "{set:?} seed {seed}");
        }
    }
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
        let mut views: Vec<_> = out.iter_mut().map(|b| b.view_mut(&[n as i64]).unwrap()).collect();
        let mut views = views.iter_mut().map(|v| v.narrow(1, n - 1).unwrap());
        let mut next = || views.next().unwrap();
        self.returns(device, [next(), next(), next(), next()]);
        let mut whole = keep.view_mut(&[n as i64]).unwrap();
        self.comparisons(device, [next(), next()], whole.narrow(1, n - 1).unwrap());
        drop(views);
        let mut all: Vec<Vec<f32>> =
            out.iter().map(|b| b.to_host().unwrap()[1..].to_vec()).collect();
        all.push(keep.to_host().unwrap()[1..].iter().map(|&k| k as f32).collect());
        all
    }

    /// The ops along a sequence: GAE, returns, rewards with a KL penalty.
    fn returns(&self, device: &Device, out: [ViewMut<'_, f32>; 4]) {
        let [advantage, gae_returns, returns, kl] = out;
        let (reward, value) = (vector(&self.reward), vector(&self.value));
        let (mask, cu_seqlens) = (Some(vector(&self.mask)), vector(&self.cu_seqlens));
        let bootstrap = Some(vector(&self.per_sequence));
        let (gamma, masked) = (0.99, MaskedReturn::Skip);
        let args = Gae {
            reward,
            value,
            mask,
            cu_seqlens,
            bootstrap,
            gamma,
            gae_lambda: 0.95,
            advantage,
            returns: Some(gae_returns),
        };
        gae(device, args).unwrap();
        let baseline = bootstrap;
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
            reward: kl,
        };
        kl_reward(device, args).unwrap();
    }

    /// The ops that compare tokens: whitening, group advantages, top fractions.
    fn comparisons(
        &self,
        device: &Device,
        [whitened, advantage]: [ViewMut<'_, f32>; 2],
        keep: ViewMut<'_, u8>,
    ) {
        let (reward, cu_seqlens) = (vector(&self.reward), vector(&self.cu_seqlens));
        let (mask, settings) = (Some(vector(&self.mask)), WhitenSettings::VERL);
        whiten(device, Whiten { x: reward, mask, settings, y: whitened, stats: None }).unwrap();
        let args = GroupAdvantage {
            reward,
            offsets: cu_seqlens,
            length: None,
            settings: GroupSettings::default(),
            advantage,
            groups: None,
        };
        group_advantage(device, args).unwrap();
        let args = TopFraction {
            x: reward,
            class: Some(RankedClass { class_ids: vector(&self.mask), ranked: 3, others: false }),
            scope: QuantileScope::PerSequence(cu_seqlens),
            fraction: 0.25,
            keep,
            threshold: None,
        };
        top_fraction(device, args).unwrap();
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
    assert!(driver.take_launches().is_empty());
    // One scope of no tokens has a result.
    assert!(none.quantile(&device, 0.5, QuantileMethod::Linear, true)[0].is_nan());
    let empty = Packed::<f32>::new(&[0, 0], |_| true);
    empty.gae(&device);
    assert!(empty.quantile(&device, 0.5, QuantileMethod::Linear, false).iter().all(|y| y.is_nan()));
}
