//! Advantages of groups of samples of one prompt: A = (R − baseline) / scale, with ragged groups
//! given by offsets.

pub(crate) mod cpu;
pub(crate) mod gpu;

use std::collections::HashMap;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::{Error, Result};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Largest |reward|: squares and sums of up to 2^63 of them stay finite in f64.
const REWARD_LIMIT: f64 = 1e140;

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBaseline {
    /// Nothing: A = R (REINFORCE).
    None,
    /// Mean of the group (GRPO, arXiv:2402.03300, §4.1.2; Dr. GRPO, arXiv:2503.20783).
    Mean,
    /// Mean of the other samples of the group (RLOO, arXiv:2402.14740).
    LeaveOneOut,
    /// Mean weighted by completion length, Σ len·R / Σ len (OPO, arXiv:2505.23585).
    LengthWeighted,
    /// The best sample gets best − second best, all others 0 (pass@k policy optimization,
    /// arXiv:2503.19595). The first of equal samples counts as the best; the result is then 0.
    Max2,
}

/// What the difference to the baseline is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScale {
    /// 1.
    None,
    /// Standard deviation of the group.
    GroupStd,
    /// Standard deviation of all scorable rewards of the call.
    BatchStd,
    /// Standard deviation of the other samples of the group; where it is 0 or not defined the
    /// advantage is not divided (NeMo-RL).
    LooStd,
    /// (number of nonzero rewards) / (number of rewards), so that A grows as correct answers get
    /// rare (GPG, arXiv:2504.02546); at least one reward counts as nonzero.
    NonzeroShare,
}

/// How `eps` guards a division by a standard deviation σ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpsForm {
    /// σ + eps (TRL, verl's groups).
    AddToStd,
    /// sqrt(σ² + eps) (verl's whitening).
    AddToVariance,
    /// sqrt(max(σ², eps)) (OpenRLHF's whitening).
    FloorVariance,
}

impl EpsForm {
    /// The divisor for a variance.
    pub(crate) fn divisor(self, variance: f64, eps: f64) -> f64 {
        match self {
            EpsForm::AddToStd => variance.sqrt() + eps,
            EpsForm::AddToVariance => (variance + eps).sqrt(),
            EpsForm::FloorVariance => variance.max(eps).sqrt(),
        }
    }
}

/// What a group with one scorable reward gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSingle {
    /// 0: one sample has nothing to be compared with (TRL's RLOO, NeMo-RL).
    Zero,
    /// The reward itself: baseline 0, group standard deviation 1 (verl).
    Raw,
}

/// Settings of [`group_advantage`]. The default is GRPO as TRL computes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupSettings {
    /// What is subtracted.
    pub baseline: GroupBaseline,
    /// What it is divided by.
    pub scale: GroupScale,
    /// Subtracted from the count in a variance: 1 is Bessel's correction, 0 the population; 0 or 1.
    pub ddof: u8,
    /// Guard of a division by a standard deviation; finite, >= 0.
    pub eps: f64,
    /// Where `eps` goes.
    pub eps_form: EpsForm,
    /// What a group with one scorable reward gets.
    pub on_single: OnSingle,
}

impl Default for GroupSettings {
    fn default() -> GroupSettings {
        GroupSettings {
            baseline: GroupBaseline::Mean,
            scale: GroupScale::GroupStd,
            ddof: 1,
            eps: 1e-4,
            eps_form: EpsForm::AddToStd,
            on_single: OnSingle::Zero,
        }
    }
}

impl GroupSettings {
    /// True if groups matter at all: plain `R` over a batch scale does not look at them.
    pub(crate) fn compares_in_group(&self) -> bool {
        self.baseline != GroupBaseline::None
            || matches!(self.scale, GroupScale::GroupStd | GroupScale::LooStd)
    }
}

/// What [`group_advantage`] found in one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupStats {
    /// Samples in the group.
    pub size: usize,
    /// Samples whose reward is not NaN.
    pub scorable: usize,
    /// Mean of the scorable rewards; 0 without any.
    pub mean: f64,
    /// Standard deviation of the scorable rewards with the settings' `ddof`; 0 where not defined.
    pub std: f64,
    /// True if the group compares nothing: fewer than two scorable rewards, or all equal.
    pub degenerate: bool,
}

/// Arguments of [`group_advantage`].
#[derive(Debug)]
pub struct GroupAdvantage<'a, R> {
    /// `[B]` rewards, groups one after another. NaN abstains: it enters no statistic and gets 0.
    pub reward: View<'a, R>,
    /// `[G + 1]` offsets of the groups in `reward`; see [`Grouping`] for rewards in another order.
    pub offsets: View<'a, i64>,
    /// `[B]` completion lengths >= 0, needed by [`GroupBaseline::LengthWeighted`] only.
    pub length: Option<View<'a, i64>>,
    /// Which advantage.
    pub settings: GroupSettings,
    /// `[B]` output.
    pub advantage: ViewMut<'a, R>,
    /// Replaced by the statistics of the `G` groups, if wanted.
    pub groups: Option<&'a mut Vec<GroupStats>>,
}

/// A_i = (R_i − baseline) / scale over the group of sample i.
///
/// A group whose scorable rewards are all equal gets exactly 0, whatever their value: statistics
/// are taken in f64 about the group's smallest reward, in two passes. Two settings look at no
/// group and keep `A = R / scale` for every group: baseline `None` with scale `None`, `BatchStd`
/// or `NonzeroShare`. If the rewards of the whole batch are equal, `BatchStd` gives 0.
///
/// | published as | baseline | scale | other settings |
/// |---|---|---|---|
/// | GRPO (TRL; verl) | `Mean` | `GroupStd` | eps 1e-4; 1e-6 |
/// | Dr. GRPO | `Mean` | `None` | |
/// | RLOO | `LeaveOneOut` | `None` | |
/// | OPO | `LengthWeighted` | `None` | |
/// | pass@k | `Max2` | `GroupStd` | eps 1e-6 |
/// | GPG | `Mean` | `NonzeroShare` | |
/// | NeMo-RL | `LeaveOneOut` | `LooStd` | eps 1e-6 |
/// | GDPO (arXiv:2601.05242) | `Mean` | `GroupStd` | one call per reward, weighted sum, then one call over the batch as a single group |
///
/// # Errors
/// `InvalidArgument` for shapes and offsets that do not fit, settings out of range, |reward| above
/// 1e140, a negative length, or lengths missing where they are needed; `NonFinite` for an infinite
/// reward.
///
/// # Cost
/// Reads rewards four times, writes advantages: `O(B)`, parallel over groups.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{GroupAdvantage, GroupSettings, group_advantage}};
/// let reward = vec![1.0f64, 0.0, 0.0, 1.0, 7.3, 7.3, 7.3];
/// let (offsets, mut advantage) = (vec![0i64, 4, 7], vec![0.0; 7]);
/// group_advantage(&Device::Cpu, GroupAdvantage {
///     reward: (&reward).into(),
///     offsets: (&offsets).into(),
///     length: None,
///     settings: GroupSettings { eps: 0.0, ..GroupSettings::default() },
///     advantage: (&mut advantage).into(),
///     groups: None,
/// })?;
/// let unit = 0.5 / (1.0f64 / 3.0).sqrt();
/// assert_eq!(advantage, [unit, -unit, -unit, unit, 0.0, 0.0, 0.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn group_advantage<R: Real>(device: &Device, args: GroupAdvantage<'_, R>) -> Result<()> {
    let check = Check("group_advantage");
    check.rank(device, "reward", &args.reward, 1)?;
    let samples = args.reward.extent(0);
    check.cu_seqlens(device, "offsets", &args.offsets, samples)?;
    check.opt_shape(device, "length", &args.length, &[samples])?;
    check.shape(device, "advantage", &args.advantage, &[samples])?;
    let settings = &args.settings;
    check.non_negative("settings.eps", settings.eps)?;
    check.that(settings.ddof <= 1, "settings.ddof", settings.ddof, "0 or 1")?;
    check_rewards(&check, &args.reward)?;
    if settings.baseline == GroupBaseline::LengthWeighted {
        let expected = "completion lengths, which baseline LengthWeighted needs";
        check.that(args.length.is_some(), "length", "none", expected)?;
    }
    if let Some(length) = &args.length {
        check_lengths(&check, "length", length)?;
    }
    on_device!(device, check, args: GroupAdvantage<R: Real> => cpu::group_advantage, gpu::group_advantage)
}

/// Rewards are NaN (abstain) or finite and small enough to square. Those in device memory cannot
/// be looked at without waiting for the device.
pub(crate) fn check_rewards<R: Real>(check: &Check, reward: &View<'_, R>) -> Result<()> {
    let known = if reward.is_host() { reward.extent(0) } else { 0 };
    for i in 0..known {
        let r = reward.at(i).to_f64();
        if r.is_infinite() {
            return Err(Error::NonFinite { op: check.0, arg: "reward".into(), index: i });
        }
        if r.abs() > REWARD_LIMIT {
            let got = format!("{r} at index {i}");
            return Err(Error::invalid(check.0, "reward", got, "|reward| <= 1e140"));
        }
    }
    Ok(())
}

/// Counts are >= 0, as far as they are in host memory.
pub(crate) fn check_lengths(check: &Check, arg: &str, length: &View<'_, i64>) -> Result<()> {
    let known = if length.is_host() { length.extent(0) } else { 0 };
    match (0..known).find(|&i| length.at(i) < 0) {
        Some(i) => {
            let got = format!("{} at index {i}", length.at(i));
            Err(Error::invalid(check.0, arg, got, "lengths >= 0"))
        }
        None => Ok(()),
    }
}

/// A stable permutation that brings samples with arbitrary group ids into contiguous groups, in
/// order of each group's first sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    order: Vec<usize>,
    offsets: Vec<i64>,
}

impl Grouping {
    /// Groups samples by id.
    ///
    /// ```
    /// use gradus::ops::Grouping;
    /// let grouping = Grouping::by_id(&[7, 3, 7, 9, 3]);
    /// assert_eq!(grouping.offsets(), [0, 2, 4, 5]);
    /// assert_eq!(grouping.gather(&[0, 1, 2, 3, 4])?, [0, 2, 1, 4, 3]);
    /// # Ok::<(), gradus::Error>(())
    /// ```
    pub fn by_id(ids: &[i64]) -> Grouping {
        let mut group_of_id = HashMap::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (sample, &id) in ids.iter().enumerate() {
            let group = *group_of_id.entry(id).or_insert(members.len());
            if group == members.len() {
                members.push(Vec::new());
            }
            members[group].push(sample);
        }
        let mut offsets = vec![0];
        for group in &members {
            offsets.push(offsets[offsets.len() - 1] + group.len() as i64);
        }
        Grouping { order: members.concat(), offsets }
    }

    /// `order()[j]` is the sample that stands at place `j` of the grouped order.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// `G + 1` offsets of the groups in the grouped order.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// Values per sample brought into the grouped order; one value per sample, or an error.
    pub fn gather<T: Copy>(&self, values: &[T]) -> Result<Vec<T>> {
        self.check("values", values.len())?;
        Ok(self.order.iter().map(|&sample| values[sample]).collect())
    }

    /// Values in the grouped order brought back to the samples' own order.
    pub fn scatter<T: Copy>(&self, grouped: &[T]) -> Result<Vec<T>> {
        self.check("grouped", grouped.len())?;
        let mut values = grouped.to_vec();
        for (&sample, &value) in self.order.iter().zip(grouped) {
            values[sample] = value;
        }
        Ok(values)
    }

    fn check(&self, arg: &str, len: usize) -> Result<()> {
        let samples = self.order.len();
        let expected = format!("{samples}, one per sample");
        Check("grouping").that(len == samples, arg, format!("{len} values"), &expected)
    }
}
