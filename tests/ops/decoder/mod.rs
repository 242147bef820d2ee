//! What else a decoder computes.

mod attention;
mod copy_rows;
mod dtypes;
mod rmsnorm;
mod rope;
