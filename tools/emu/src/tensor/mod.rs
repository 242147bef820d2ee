//! Tensor-core arithmetic and the layouts around it, as functions of plain arrays.
//!
//! | module | instructions | what it holds |
//! |---|---|---|
//! | [`numerics`] | `mma`, `wgmma` | element formats, and how the products of one output are summed and rounded |
//! | [`fragment`] | `mma`, `wgmma` | which lane and register holds which element of a 16 x k, k x 8 or 16 x 8 tile |
//! | [`mma`] | `mma.sync` | the warp-wide matrix products, registers to registers |
//! | [`ldmatrix`] | `ldmatrix`, `stmatrix` | which 16-byte rows of shared memory go to which lane |
//! | [`swizzle`] | TMA, `wgmma` | the 32, 64 and 128-byte permutations of shared memory |
//! | [`tensor_map`] | `cp.async.bulk.tensor` | the description of a global tensor, and the bytes a box copies |
//! | [`reduce`] | `cp.reduce.async.bulk` | the operations of the copy engine on elements |
//! | [`wgmma`] | `wgmma.mma_async` | matrix descriptors, and the products of a warpgroup |
//! | [`mbarrier`] | `mbarrier.*` | the state machine of a barrier in shared memory |
//!
//! Nothing here knows of the scheduler, of the register file or of memory: an instruction arrives
//! as the registers of its warp, and shared memory is read through [`wgmma::SharedRead`].

#![forbid(unsafe_code)]

mod exact;
pub mod fragment;
mod fused;
pub mod ldmatrix;
pub mod mbarrier;
pub mod mma;
pub mod numerics;
pub mod reduce;
pub mod swizzle;
pub mod tensor_map;
pub mod wgmma;

pub use numerics::Numerics;

/// One 32-bit register of a warp: element `l` belongs to lane `l`.
pub type Row = [u32; 32];
