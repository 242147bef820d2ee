//! Advantages of tokens as verl computes them.

use crate::policy::verl::*;
use gradus::ops::{Gae, MaskedReturn, gae};

#[test]
fn reinforce_plus_plus_matches_verl() {
    for batch in Batch::open("reinforce_plus_plus") {
        let gamma = batch.file.number("gamma").unwrap();
        let returns = batch.returns(gamma, MaskedReturn::Reset, None);
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&returns));
    }
}

#[test]
fn gae_matches_verl() {
    for batch in Batch::open("gae") {
        let (reward, value) = (batch.file.f64("token_reward"), batch.file.f64("value"));
        let (mut advantage, mut returns) =
            (vec![f64::NAN; reward.len()], vec![f64::NAN; reward.len()]);
        let args = Gae {
            reward: (&reward).into(),
            value: (&value).into(),
            mask: batch.mask(),
            cu_seqlens: (&batch.cu_seqlens).into(),
            bootstrap: None,
            gamma: batch.file.number("gamma").unwrap(),
            gae_lambda: batch.file.number("lam").unwrap(),
            advantage: (&mut advantage).into(),
            returns: Some((&mut returns).into()),
        };
        gae(&batch.device, args).unwrap();
        batch.check("returns", &returns);
        batch.check("advantage", &batch.whiten(&advantage));
    }
}
