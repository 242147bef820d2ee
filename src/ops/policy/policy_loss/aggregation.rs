//! One weight per sequence: the only place where losses are averaged.

use crate::alloc::{self, Gather};
use crate::error::{Error, Result};

/// How per-token losses become one number: Total = Σ_i w_i·Σ_t L_t, N_i scored tokens in sequence
/// i, B sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// w = 1 / Σ N: every token counts the same (TRL bnpo, dapo; verl token-mean).
    TokenMean,
    /// w = 1 / tokens with the caller's count, for a batch that is cut into several calls.
    TokenMeanOf {
        /// Scored tokens of the whole batch.
        tokens: f64,
    },
    /// w_i = 1 / (B·N_i) (DeepSeekMath GRPO, GSPO).
    SequenceMeanTokenMean {
        /// Whether sequences without a scored token count in B (TRL: yes, verl: no).
        count_empty: bool,
    },
    /// w = 1 / B (LUSPO; verl seq-mean-token-sum).
    SequenceMeanTokenSum {
        /// Whether sequences without a scored token count in B.
        count_empty: bool,
    },
    /// w = 1 / (B·length) (Dr. GRPO, arXiv:2503.20783; verl seq-mean-token-sum-norm).
    Constant {
        /// The fixed length, usually the longest completion allowed.
        length: f64,
        /// Whether sequences without a scored token count in B (TRL: yes, verl: no).
        count_empty: bool,
    },
    /// w = 1.
    TokenSum,
}

/// The weight of each sequence; `lengths` are scored tokens. A sequence without any gets weight 0.
///
/// # Errors
/// `InvalidArgument` for a negative length or a count that is not a positive number.
///
/// # Example
/// ```
/// use gradus::ops::{Aggregation, seq_weights};
/// assert_eq!(seq_weights(Aggregation::TokenMean, &[3, 1, 0])?, [0.25, 0.25, 0.0]);
/// let per_sequence = Aggregation::SequenceMeanTokenMean { count_empty: false };
/// assert_eq!(seq_weights(per_sequence, &[2, 1, 0])?, [0.25, 0.5, 0.0]);
/// # Ok::<(), gradus::Error>(())
/// ```
pub fn seq_weights(aggregation: Aggregation, lengths: &[i64]) -> Result<Vec<f64>> {
    if let Some(i) = lengths.iter().position(|&n| n < 0) {
        let got = format!("{} at index {i}", lengths[i]);
        return Err(Error::invalid("seq_weights", "lengths", got, "lengths >= 0"));
    }
    let positive = |arg: &str, x: f64| match x.is_finite() && x > 0.0 {
        true => Ok(x),
        false => Err(Error::invalid("seq_weights", arg, x, "a finite number > 0")),
    };
    let sequences = |count_empty: bool| {
        let counted = lengths.iter().filter(|&&n| count_empty || n > 0).count();
        counted.max(1) as f64
    };
    let total = lengths.iter().map(|&n| n as f64).sum::<f64>().max(1.0);
    let fill = |weight: &dyn Fn(i64) -> f64| {
        alloc::or_out_of_memory("seq_weights", || lengths.iter().map(|&n| weight(n)).gathered())
    };
    let all = |w: f64| fill(&|_| w);
    let mut weights = match aggregation {
        Aggregation::TokenMean => all(1.0 / total),
        Aggregation::TokenMeanOf { tokens } => all(1.0 / positive("tokens", tokens)?),
        Aggregation::SequenceMeanTokenMean { count_empty } => {
            let b = sequences(count_empty);
            fill(&|n| 1.0 / (b * n.max(1) as f64))
        }
        Aggregation::SequenceMeanTokenSum { count_empty } => all(1.0 / sequences(count_empty)),
        Aggregation::Constant { length, count_empty } => {
            all(1.0 / (sequences(count_empty) * positive("length", length)?))
        }
        Aggregation::TokenSum => all(1.0),
    }?;
    weights.iter_mut().zip(lengths).filter(|(_, n)| **n == 0).for_each(|(w, _)| *w = 0.0);
    Ok(weights)
}
