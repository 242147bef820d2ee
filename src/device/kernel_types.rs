//! What parameters of kernels are made of. The structs, constants and enums of each kernel are in
//! [`params`], which `kernelc` writes from the headers that the kernel includes
//! (`kernels/<family>/<op>.h`), so neither side can know another layout.

use std::fmt;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

// Values of an enum or constants of a header may be the kernels' alone.
#[allow(dead_code)]
#[path = "../../kernels/generated/params.rs"]
pub(crate) mod params;

/// `const T` of C++: what a kernel reads and does not write.
#[derive(Clone, Copy, Debug)]
pub struct Const<T>(PhantomData<T>);

/// `void` of C++: elements whose dtype the kernel's name says.
#[derive(Clone, Copy, Debug)]
pub struct Void;

/// A device address of elements `T`: `T*` of a kernel, and `const T*` if `T` is [`Const`].
#[repr(transparent)]
pub struct Ptr<T> {
    address: u64,
    element: PhantomData<fn() -> T>,
}

impl<T> Ptr<T> {
    /// The operand that is not given.
    pub const NULL: Ptr<T> = Ptr::new(0);

    /// A device address, of whatever it may be of.
    pub const fn new(address: u64) -> Ptr<T> {
        Ptr { address, element: PhantomData }
    }

    /// The number.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// Whether the operand was not given.
    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// The address `bytes` further on.
    pub const fn byte_add(self, bytes: usize) -> Ptr<T> {
        Ptr::new(self.address + bytes as u64)
    }

    /// The same address of elements of another type.
    pub const fn cast<U>(self) -> Ptr<U> {
        Ptr::new(self.address)
    }

    /// For a kernel that only reads what another one wrote.
    pub const fn as_const(self) -> Ptr<Const<T>> {
        self.cast()
    }
}

impl<T> Ptr<T> {
    /// `void*`.
    pub const fn untyped_mut(self) -> Ptr<Void> {
        self.cast()
    }
}

impl<T> Ptr<Const<T>> {
    /// `const void*`.
    pub const fn untyped(self) -> Ptr<Const<Void>> {
        self.cast()
    }
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Ptr<T> {
        *self
    }
}

impl<T> Copy for Ptr<T> {}

impl<T> Default for Ptr<T> {
    fn default() -> Ptr<T> {
        Ptr::NULL
    }
}

impl<T> fmt::Debug for Ptr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

// SAFETY: a number beside nothing.
unsafe impl<T: 'static> Zeroable for Ptr<T> {}
// SAFETY: a number beside nothing.
unsafe impl<T: 'static> Pod for Ptr<T> {}

/// A vector of any stride, or a matrix with contiguous rows, as kernels take it: `Column<T>` of
/// `kernels/types.h`. Address 0 is an operand that was not given.
#[repr(C)]
pub struct Column<T> {
    /// Device address of element 0.
    pub at: Ptr<T>,
    /// Elements from one element of the vector, or row of the matrix, to the next.
    pub stride: i64,
}

impl<T> Column<T> {
    /// The operand that is not given.
    pub const NONE: Column<T> = Column { at: Ptr::NULL, stride: 0 };
}

impl<T> Clone for Column<T> {
    fn clone(&self) -> Column<T> {
        *self
    }
}

impl<T> Copy for Column<T> {}

impl<T> fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {}", self.at, self.stride)
    }
}

// SAFETY: two numbers of 8 bytes.
unsafe impl<T: 'static> Zeroable for Column<T> {}
// SAFETY: two numbers of 8 bytes.
unsafe impl<T: 'static> Pod for Column<T> {}

#[cfg(all(test, feature = "emu"))]
mod tests {
    use std::mem::offset_of;
    use std::sync::Arc;

    use super::params::gae::{KlRewardParams, WhitenParams};
    use super::params::group_advantage::GroupAdvantageParams;
    use super::params::offpolicy_weight::OffPolicyParams;
    use super::params::pair_loss::PreferenceParams;
    use super::params::policy_loss::PolicyLossParams;
    use super::params::quantile::QuantileParams;
    use super::params::seq_reduce::SeqReduceParams;
    use super::params::vocab_kl::VocabKlParams;
    use super::params::*;
    use crate::device::{EmuDriver, Gpu, Grid, Kernels, shipped};

    /// What a kernel says whose parameters are zeros, but for the number `value` at `offset`.
    fn outcome(
        (kernels, kernel, threads): (&Kernels, &str, u64),
        size: usize,
        offset: usize,
        value: i32,
    ) -> String {
        let mut bytes = vec![0u8; size];
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        let gpu = Gpu::new(Arc::new(EmuDriver::new())).unwrap();
        let grid = Grid::linear(1, threads as u32);
        let done = gpu.launch_bytes(kernels, kernel, grid, &bytes).and_then(|()| gpu.synchronize());
        done.err().map_or(String::new(), |e| e.to_string())
    }

    #[test]
    fn an_unknown_number_of_an_enum_ends_the_kernel() {
        let mut checked = 0;
        let mut check = |kernel: (&Kernels, &str, u64), size, offset, last: i32| {
            for unknown in [last + 1, 999, -1] {
                let message = outcome(kernel, size, offset, unknown);
                assert!(message.contains("`trap`"), "{} {offset} {unknown}: {message}", kernel.1);
            }
            let message = outcome(kernel, size, offset, last);
            assert!(!message.contains("`trap`"), "{} {offset} {last}: {message}", kernel.1);
            checked += 1;
        };
        macro_rules! enums {
            ($op:ident, $kernel:literal, $threads:expr, $params:ty, $($($field:ident).+: $last:expr),+) => {
                $(check(
                    (&shipped::$op, $kernel, $threads),
                    size_of::<$params>(),
                    offset_of!($params, $($field).+),
                    $last as i32,
                );)+
            };
        }
        enums!(POLICY_LOSS, "policy_loss_f32", policy_loss::THREADS, PolicyLossParams<f32>,
            s.loss: policy_loss::Loss::KlCov,
            s.ratio: policy_loss::RatioLevel::SequenceSum,
            s.kl_estimator: policy_loss::KlEstimator::Abs,
            s.kl_gradient: policy_loss::KlGradient::None,
            s.kl_weight: policy_loss::KlWeight::RatioDetached);
        enums!(GROUP_ADVANTAGE, "group_advantage_f32", group_advantage::THREADS,
            GroupAdvantageParams<f32>,
            baseline: group_advantage::Baseline::Max2,
            scale: group_advantage::Scale::NonzeroShare,
            eps_form: moments::EpsForm::FloorVariance);
        enums!(OFFPOLICY_WEIGHT, "offpolicy_weight_f32", offpolicy_weight::THREADS,
            OffPolicyParams<f32>,
            level: offpolicy_weight::Level::SequenceMean,
            bound: offpolicy_weight::Bound::SequenceMask,
            reject_by: offpolicy_weight::RejectBy::K3,
            reject_level: offpolicy_weight::RejectLevel::SequenceMax);
        enums!(PAIR_LOSS, "preference_f32", pair_loss::THREADS, PreferenceParams<f32>,
            kind: pair_loss::Kind::Orpo,
            score: pair_loss::Score::Alpha);
        enums!(SEQ_REDUCE, "seq_reduce_f32", seq_reduce::THREADS, SeqReduceParams<f32>,
            reduction: seq_reduce::Reduction::Min);
        enums!(QUANTILE, "quantile_f32", quantile::THREADS, QuantileParams<f32>,
            method: quantile::Method::Higher);
        enums!(GAE, "kl_reward_f32", gae::THREADS, KlRewardParams<f32>,
            estimator: gae::RewardKl::Abs);
        enums!(GAE, "whiten_moments_f32", gae::THREADS, WhitenParams<f32>,
            eps_form: moments::EpsForm::FloorVariance);
        enums!(VOCAB_KL, "vocab_kl_f32", rows::THREADS, VocabKlParams,
            kind: vocab_kl::DivergenceKind::TotalVariation);
        enums!(VOCAB_KL, "vocab_kl_bwd_f32", rows::THREADS, VocabKlParams,
            kind: vocab_kl::DivergenceKind::TotalVariation);
        assert_eq!(checked, 20);
    }
}
