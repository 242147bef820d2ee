//! Whitening of advantages over a batch: mean 0, variance 1.

pub(crate) mod cpu;
pub(crate) mod gpu;

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::EpsForm;
use crate::ops::policy::tokens::{finite, is_action};
use crate::ops::support::dispatch::on_device;
use crate::view::{View, ViewMut};

/// Settings of [`whiten`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WhitenSettings {
    /// 1 for Bessel's correction of the variance, 0 for the population's.
    pub ddof: u8,
    /// Guard of the division; finite, >= 0.
    pub eps: f64,
    /// Where `eps` goes.
    pub eps_form: EpsForm,
    /// Added to the count in the means; finite, >= 0. 0 is right, verl has 1e-8.
    pub count_eps: f64,
    /// False adds the mean back after the division.
    pub shift_mean: bool,
}

impl WhitenSettings {
    /// `masked_whiten` of verl and of TRL's PPO.
    pub const VERL: WhitenSettings = WhitenSettings {
        ddof: 1,
        eps: 1e-8,
        eps_form: EpsForm::AddToVariance,
        count_eps: 1e-8,
        shift_mean: true,
    };
    /// Advantage normalization of OpenRLHF.
    pub const OPENRLHF: WhitenSettings = WhitenSettings {
        ddof: 0,
        eps: 1e-8,
        eps_form: EpsForm::FloorVariance,
        count_eps: 0.0,
        shift_mean: true,
    };
}

/// What [`whiten`] measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WhitenStats {
    /// Tokens of the mask.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation with the settings' `ddof`.
    pub std: f64,
}

/// Arguments of [`whiten`].
#[derive(Debug)]
pub struct Whiten<'a, R> {
    /// `[T]` values of the whole batch: whiten before it is split, or the result depends on the
    /// split.
    pub x: View<'a, R>,
    /// `[T]` nonzero where a token counts. Others are never read and get 0.
    pub mask: Option<View<'a, u8>>,
    /// Which variance and guard.
    pub settings: WhitenSettings,
    /// `[T]` output.
    pub y: ViewMut<'a, R>,
    /// Replaced by what was measured, if wanted.
    pub stats: Option<&'a mut WhitenStats>,
}

/// y_t = (x_t − mean) / σ over all tokens of the mask, guarded by `eps`; exactly 0 if they are all
/// equal.
///
/// REINFORCE++ is [`discounted_return`](crate::ops::discounted_return()), then this; its baseline variant is
/// [`group_advantage`](crate::ops::group_advantage()) without scale,
/// [`seq_broadcast`](crate::ops::seq_broadcast), then this.
///
/// # Errors
/// `InvalidArgument` for shapes that do not fit, settings out of range, or fewer than two tokens in
/// the mask, which have no spread; `NonFinite` for a used value that is not finite. A mask in device
/// memory is not counted before the launch: one token gives 0. There a NaN in x enters no statistic.
///
/// # Cost
/// Reads x four times and writes y; sequential on the CPU and in fixed chunks on a GPU, so that the
/// sums have one order. Asking for the statistics makes the call wait for a GPU.
///
/// # Example
/// ```
/// use gradus::{Device, ops::{Whiten, WhitenSettings, whiten}};
/// let (x, mut y) = (vec![1f32, 3.0], vec![0f32; 2]);
/// whiten(&Device::Cpu, Whiten {
///     x: (&x).into(),
///     mask: None,
///     settings: WhitenSettings { ddof: 0, eps: 0.0, ..WhitenSettings::OPENRLHF },
///     y: (&mut y).into(),
///     stats: None,
/// })?;
/// assert_eq!(y, [-1.0, 1.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn whiten<R: Real>(device: &Device, args: Whiten<'_, R>) -> Result<()> {
    let check = Check("whiten");
    check.rank(device, "x", &args.x, 1)?;
    let tokens = args.x.extent(0);
    check.opt_shape(device, "mask", &args.mask, &[tokens])?;
    check.shape(device, "y", &args.y, &[tokens])?;
    let settings = &args.settings;
    check.that(settings.ddof <= 1, "settings.ddof", settings.ddof, "0 or 1")?;
    check.non_negative("settings.eps", settings.eps)?;
    check.non_negative("settings.count_eps", settings.count_eps)?;
    finite(&check, "x", &args.x, &args.mask)?;
    if args.mask.as_ref().is_none_or(|m| m.is_host()) {
        let count = (0..tokens).filter(|&t| is_action(&args.mask, t)).count();
        check.that(
            count >= 2,
            "mask",
            format!("{count} tokens"),
            "at least 2 tokens to compare",
        )?;
    }
    on_device!(device, check, args: Whiten<R: Real> => cpu::whiten, gpu::whiten)
}
