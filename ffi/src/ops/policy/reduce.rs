//! Reductions over the tokens of a sequence, and quantiles: the last part of `include/gradus/policy.h`.

use gradus::ops::*;
use gradus::{Result, View};

use crate::field::impl_op;
use crate::sys::*;
use crate::tensor::{Tensors, is_absent};

/// All tokens, or each sequence by itself.
fn scope<'a>(t: &Tensors<'a>, cu_seqlens: &gradus_tensor) -> Result<QuantileScope<'a>> {
    let offsets: Option<View<'a, i64>> = t.opt_read("cu_seqlens", cu_seqlens)?;
    Ok(offsets.map_or(QuantileScope::All, QuantileScope::PerSequence))
}

impl_op!(gradus_quantile_args {
    real x,
    defaults { q: 0.5 },
    |args, t| quantile(Quantile {
        x, mask,
        scope: scope(t, &args.cu_seqlens)?,
        q, method,
        on_nan: t.choice("skip_nan", args.skip_nan, &[OnNan::Error, OnNan::Skip])?,
        y,
    })
});

impl_op!(gradus_top_fraction_args {
    real x,
    defaults { fraction: 1.0 },
    |args, t| top_fraction(TopFraction {
        x,
        class: args.ranked_class(t)?,
        scope: scope(t, &args.cu_seqlens)?,
        fraction, keep, threshold,
    })
});

impl gradus_top_fraction_args {
    fn ranked_class<'a>(&self, t: &Tensors<'a>) -> Result<Option<RankedClass<'a>>> {
        if is_absent(&self.class_ids) {
            return Ok(None);
        }
        let ranked = u8::try_from(self.ranked);
        Ok(Some(RankedClass {
            class_ids: t.read("class_ids", &self.class_ids)?,
            ranked: ranked.map_err(|_| t.invalid("ranked", self.ranked, "0 to 255"))?,
            others: t.flag("others", self.others)?,
        }))
    }
}
