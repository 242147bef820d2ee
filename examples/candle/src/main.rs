//! A softmax policy of 8 states and 16 actions learns the action that is rewarded, by REINFORCE on
//! gradus' log-probs and candle's gradients.

use candle_core::{DType, Device, Result, Tensor, Var};
use gradus_candle::logprob;

const STATES: usize = 8;
const ACTIONS: usize = 16;

fn main() -> Result<()> {
    let logits = Var::zeros((STATES, ACTIONS), DType::F32, &Device::Cpu)?;
    for step in 0..=200 {
        // Every action of every state once: the exact gradient of the expected reward.
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for action in 0..ACTIONS {
            let logp = logprob(&logits, &[action as i32; STATES], 1.0)?;
            let reward: Vec<f32> =
                (0..STATES).map(|s| (s * 5 % ACTIONS == action) as u8 as f32).collect();
            let reward = Tensor::from_vec(reward, STATES, &Device::Cpu)?;
            total = (total + (logp.exp()?.detach() * reward)?.mul(&logp)?.sum_all()?)?;
        }
        let loss = (total.neg()? / STATES as f64)?;
        let gradient = loss.backward()?.get(&logits).expect("the policy has a gradient").clone();
        logits.set(&(logits.as_tensor() - (gradient * 20.0)?)?)?;
        if step % 50 == 0 {
            let right: Vec<i32> = (0..STATES).map(|s| (s * 5 % ACTIONS) as i32).collect();
            let reward = logprob(&logits, &right, 1.0)?.exp()?.mean_all()?.to_scalar::<f32>()?;
            println!("step {step:3}  expected reward {reward:.3}");
        }
    }
    Ok(())
}
