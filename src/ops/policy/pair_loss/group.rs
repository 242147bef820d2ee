//! What losses over the samples of a group share: operands and their checks.

use crate::check::Check;
use crate::device::Device;
use crate::dtype::Real;
use crate::error::Result;
use crate::ops::policy::group_advantage::check_rewards;
use crate::ops::policy::pair_loss::terms::check_terms;
use crate::ops::policy::pair_loss::{BetaMmlLoss, CopgLoss};
use crate::ops::policy::tokens::finite;
use crate::view::{View, ViewMut};

/// `G` groups of `B` samples. The fields mean what they mean in [`CopgLoss`].
pub(crate) struct GroupLoss<'a, R> {
    pub logp: View<'a, R>,
    pub reference: Option<View<'a, R>>,
    pub reward: Option<View<'a, R>>,
    pub offsets: View<'a, i64>,
    pub beta: f64,
    pub weight: Option<View<'a, R>>,
    pub loss: ViewMut<'a, R>,
    pub dlogp: ViewMut<'a, R>,
    pub total: Option<ViewMut<'a, f64>>,
}

impl<'a, R> From<CopgLoss<'a, R>> for GroupLoss<'a, R> {
    fn from(a: CopgLoss<'a, R>) -> GroupLoss<'a, R> {
        let CopgLoss { logp, reference, reward, offsets, beta, weight, loss, dlogp, total } = a;
        let reward = Some(reward);
        GroupLoss { logp, reference, reward, offsets, beta, weight, loss, dlogp, total }
    }
}

impl<'a, R> From<BetaMmlLoss<'a, R>> for GroupLoss<'a, R> {
    fn from(a: BetaMmlLoss<'a, R>) -> GroupLoss<'a, R> {
        let BetaMmlLoss { logp, offsets, beta, weight, loss, dlogp, total } = a;
        let (reference, reward) = (None, None);
        GroupLoss { logp, reference, reward, offsets, beta, weight, loss, dlogp, total }
    }
}

impl<R: Real> GroupLoss<'_, R> {
    pub fn check(&self, check: &Check, device: &Device) -> Result<()> {
        check.rank(device, "logp", &self.logp, 1)?;
        let samples = self.logp.extent(0);
        check.opt_shape(device, "reference", &self.reference, &[samples])?;
        check.opt_shape(device, "reward", &self.reward, &[samples])?;
        let groups = check.cu_seqlens(device, "offsets", &self.offsets, samples)?;
        check_terms(check, device, groups, &self.weight, &self.loss, &self.total)?;
        check.shape(device, "dlogp", &self.dlogp, &[samples])?;
        check.positive("beta", self.beta)?;
        finite(check, "logp", &self.logp, &None)?;
        if let Some(reference) = &self.reference {
            finite(check, "reference", reference, &None)?;
        }
        self.reward.as_ref().map_or(Ok(()), |reward| check_rewards(check, reward))
    }
}
