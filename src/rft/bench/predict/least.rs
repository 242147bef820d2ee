//! The least that the parts of a step have to move and to compute, by their extents.
//!
//! Weights of products are read once a pass, in 4 bits; the head once in 16. Activations stay on the chip.
//! A forward pass has 2 flops a weight and token, the gradients of inputs 2 more; of frozen weights
//! there are none. Keys are seen by all tokens behind them.

use super::step::{RANK, StepShape};
use crate::bench::case::Work;
use crate::bench::floors::Floors;

/// Bytes of memory, and flops of 16-bit products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Least {
    /// Bytes.
    pub bytes: f64,
    /// Flops.
    pub flops: f64,
}

/// Sizes that the parts are made of.
struct Sizes {
    /// Weights of the blocks, of the head, and of all adapters.
    weights: f64,
    head: f64,
    adapters: f64,
    /// Elements of the keys and values of a token, in all blocks.
    cache: f64,
    /// Flops of a pair of a query and a key, in all blocks.
    pair: f64,
}

/// Bytes of a 4-bit weight: its code, its share of an 8-bit maximum of 64 and of an f32 one of 256 of those.
const FOUR_BIT: f64 = 0.5 + 1.0 / 64.0 + 4.0 / 16_384.0;

impl Sizes {
    fn of(shape: &StepShape, layers: usize) -> Sizes {
        let m = &shape.model;
        let (h, ffn) = (m.hidden as f64, m.ffn as f64);
        let [q, kv] = [m.heads, m.kv_heads].map(|heads| (heads * m.head_dim) as f64);
        let maps = [[h, q], [h, kv], [h, kv], [q, h], [h, ffn], [h, ffn], [ffn, h]];
        let layers = layers as f64;
        Sizes {
            weights: layers * maps.iter().map(|[i, o]| i * o).sum::<f64>(),
            head: h * m.vocab as f64,
            adapters: layers * RANK as f64 * maps.iter().map(|[i, o]| i + o).sum::<f64>(),
            cache: layers * 2.0 * kv,
            pair: layers * 4.0 * q,
        }
    }
}

impl Least {
    /// Of the parts of a step, in their order.
    pub fn of(shape: &StepShape, layers: usize) -> [Least; 4] {
        let s = Sizes::of(shape, layers);
        let [prompts, prompt, new] =
            [shape.prompts, shape.prompt_tokens, shape.new_tokens].map(|n| n as f64);
        let slots = prompts * shape.samples as f64;
        let per_token = 2.0 * (s.weights + s.adapters);
        let weights = FOUR_BIT * s.weights + 2.0 * s.adapters;
        // Keys of a prompt are read once for all of its samples.
        let decode = Least {
            bytes: weights + 2.0 * s.head + 2.0 * s.cache * (prompts * prompt + slots * new / 2.0),
            flops: slots * (per_token + 2.0 * s.head + s.pair * shape.context() as f64),
        };
        let prefill = Least {
            bytes: weights + 2.0 * s.head + 2.0 * s.cache * prompts * prompt,
            flops: prompts * (prompt * per_token + s.pair * prompt * prompt / 2.0 + 2.0 * s.head),
        };
        let (sequences, tokens) = (shape.micro_batch as f64, prompt + new - 1.0);
        let micro_batch = Least {
            bytes: 2.0 * (weights + 2.0 * s.head) + 8.0 * s.adapters,
            flops: sequences
                * (tokens * (2.0 * per_token + 2.0 * s.adapters)
                    + 3.5 * s.pair * tokens * tokens / 2.0
                    + 4.0 * new * s.head),
        };
        // Weight and moments in f32 are read and written, the gradient is read, a 16-bit copy is written.
        let update = Least { bytes: 30.0 * s.adapters, flops: 0.0 };
        [decode, prefill, micro_batch, update]
    }

    /// Microseconds of the floor, and what it waits for.
    pub fn floor(&self, floors: &Floors) -> (f64, &'static str) {
        let floor = floors.floor(self.bytes as u64, self.flops as u64, Work::Products);
        floor.map_or((0.0, "unknown"), |(ms, binds)| (1e3 * ms, binds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen2.5 with 7 billion parameters: 6.53 billion of them in blocks, 40.4 million in adapters.
    #[test]
    fn sizes_are_those_of_the_model() {
        let shape = StepShape::reference();
        let s = Sizes::of(&shape, shape.model.layers);
        assert_eq!(
            s.weights,
            28.0 * (2.0 * 3584.0 * 3584.0 + 2.0 * 3584.0 * 512.0 + 3.0 * 3584.0 * 18_944.0)
        );
        assert_eq!((s.adapters, s.cache), (40_370_176.0, 28_672.0));
        let [decode, _, micro_batch, update] = Least::of(&shape, shape.model.layers);
        // 3.4 GB of weights, 36,864 tokens of cache at 57 KB, 1.1 GB of head.
        assert!((decode.bytes / 6.64e9 - 1.0).abs() < 0.01, "{decode:?}");
        // A token takes 4 flops a weight.
        let products = 4.0 * s.weights * 4.0 * 767.0;
        assert!(micro_batch.flops > products && micro_batch.flops < 1.2 * products);
        assert_eq!(update.bytes, 30.0 * 40_370_176.0);
    }
}
