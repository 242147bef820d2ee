//! Products of 4-bit weights.

mod arrangements;
mod oracle;
mod tensor_cores;
