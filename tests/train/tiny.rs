//! Models of a block, for tests that need a folder or a teacher.

use gradus::Device;
use gradus_rft::model::{Decoder, ModelConfig, RopeScaling};

/// A Llama of one block that reads sequences of `max_positions`.
pub fn shape(hidden: usize, vocab: usize, max_positions: usize) -> ModelConfig {
    ModelConfig {
        vocab,
        hidden,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 24,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions,
        qkv_bias: false,
        qk_norm: false,
        tie_embeddings: false,
        language_part: false,
    }
}

/// A model of bytes that ends sequences as fresh ones do.
pub fn teacher() -> Decoder {
    Decoder::random(&shape(16, 256, 1024), Device::Cpu, 5).unwrap()
}
