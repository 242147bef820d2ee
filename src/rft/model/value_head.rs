//! A linear value head V(h) = w·h + b on the final hidden states, with its own parameters, so that
//! a critic can be fitted before the policy moves.

use gradus::error::{Error, Result};

/// Weights of the head, and nothing else: it is trained by its own optimizer state.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueHead {
    /// `[hidden + 1]`: the weight, then the bias. Zero at the start: V = 0.
    pub weight: Vec<f32>,
}

impl ValueHead {
    /// V = 0 for every state.
    pub fn new(hidden: usize) -> ValueHead {
        ValueHead { weight: vec![0.0; hidden + 1] }
    }

    /// One value per row of `hidden` (`[T, hidden]`), summed in f64 in index order.
    pub fn forward(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let d = self.weight.len() - 1;
        if !hidden.len().is_multiple_of(d) {
            let got = format!("{} elements", hidden.len());
            return Err(Error::invalid("value_head", "hidden", got, format!("a multiple of {d}")));
        }
        let bias = self.weight[d] as f64;
        let value = |row: &[f32]| {
            let dot: f64 = row.iter().zip(&self.weight).map(|(&h, &w)| h as f64 * w as f64).sum();
            (dot + bias) as f32
        };
        Ok(hidden.chunks_exact(d).map(value).collect())
    }

    /// Adds the weight gradient for output gradients `dvalue` to `dweight` (`[hidden + 1]`). The
    /// critic does not push gradients into the policy's trunk.
    pub fn backward(&self, hidden: &[f32], dvalue: &[f32], dweight: &mut [f32]) {
        let d = self.weight.len() - 1;
        let mut sum = vec![0f64; d + 1];
        for (row, &dv) in hidden.chunks_exact(d).zip(dvalue) {
            sum.iter_mut().zip(row).for_each(|(s, &h)| *s += dv as f64 * h as f64);
            sum[d] += dv as f64;
        }
        dweight.iter_mut().zip(&sum).for_each(|(w, s)| *w = (*w as f64 + s) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_is_the_finite_difference() {
        let hidden = [0.5f32, -1.0, 2.0, 0.25];
        let mut head = ValueHead { weight: vec![0.3, -0.7, 0.1] };
        let dvalue = [1.0f32, -2.0];
        let mut dweight = vec![0f32; 3];
        head.backward(&hidden, &dvalue, &mut dweight);
        let objective = |head: &ValueHead| -> f64 {
            let values = head.forward(&hidden).unwrap();
            values.iter().zip(&dvalue).map(|(&v, &g)| v as f64 * g as f64).sum()
        };
        for i in 0..3 {
            let at = head.weight[i];
            head.weight[i] = at + 0.25;
            let up = objective(&head);
            head.weight[i] = at - 0.25;
            let down = objective(&head);
            head.weight[i] = at;
            assert!(((up - down) / 0.5 - dweight[i] as f64).abs() < 1e-5, "{i}");
        }
        assert!(head.forward(&hidden[..3]).is_err());
    }
}
