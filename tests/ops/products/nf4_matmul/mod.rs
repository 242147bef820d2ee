//! Products of 4-bit weights; what they share with dense products.

mod arrangements;
mod oracle;
mod refusals;
mod residual;
mod tensor_cores;
