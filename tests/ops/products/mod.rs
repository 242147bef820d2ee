//! Matrix products, dense and of 4-bit weights, with adapters.

mod arguments;
mod fan;
mod lora_grad;
mod matmul;
mod nf4_matmul;
mod nf4_matmul_grouped;
pub mod support;
