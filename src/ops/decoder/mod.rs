//! The rest of a decoder's forward and backward pass.

pub mod attention;
pub mod convert;
pub mod copy_rows;
pub mod dropout;
pub mod embedding;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;

pub use attention::*;
pub use convert::*;
pub use copy_rows::*;
pub use dropout::*;
pub use embedding::*;
pub use rmsnorm::*;
pub use rope::*;
pub use swiglu::*;
