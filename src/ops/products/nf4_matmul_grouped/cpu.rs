//! 4-bit products of the experts of a mixture on the CPU: one after another.

use crate::dtype::Float;
use crate::error::Result;
use crate::ops::products::nf4_matmul::cpu::{nf4_matmul, nf4_matmul_dx};
use crate::ops::{Nf4MatmulGrouped, Nf4MatmulGroupedDx};

pub(crate) fn nf4_matmul_grouped<T: Float>(a: Nf4MatmulGrouped<'_, T>) -> Result<()> {
    a.each(|part| {
        nf4_matmul(part);
        Ok(())
    })
}

pub(crate) fn nf4_matmul_grouped_dx<T: Float>(a: Nf4MatmulGroupedDx<'_, T>) -> Result<()> {
    a.each(|part| {
        nf4_matmul_dx(part);
        Ok(())
    })
}
