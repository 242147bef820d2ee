//! Matrix products with dense and 4-bit weights and their adapters.

pub(crate) mod gemm_cpu;
pub(crate) mod gemm_gpu;
pub(crate) mod gemm_mma;
mod product;

pub mod fan;
pub mod lora_grad;
pub mod matmul;
pub mod nf4_matmul;
pub mod nf4_matmul_grouped;

pub use fan::*;
pub use lora_grad::*;
pub use matmul::*;
pub use nf4_matmul::*;
pub use nf4_matmul_grouped::*;
pub use product::{Lora, Product, ProductDx};
