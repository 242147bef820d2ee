//! Matrix products and adapters: `include/gradus/products.h`.

use gradus::Result;
use gradus::ops::*;
use gradus::quant::Nf4View;

use crate::field::impl_op;
use crate::memory::room;
use crate::quant::{adapters, nf4};
use crate::sys::*;
use crate::tensor::Tensors;

impl_op!(gradus_matmul_args {
    float x,
    |args, t| matmul(Matmul {
        x, w, bias,
        lora: &adapters(t, args.lora, args.lora_count)?,
        adapter, s, residual, y,
    })
});

impl_op!(gradus_matmul_dx_args {
    float dy,
    |args, t| matmul_dx(MatmulDx {
        dy, w,
        lora: &adapters(t, args.lora, args.lora_count)?,
        adapter, accumulate, dx,
    })
});

impl_op!(gradus_nf4_matmul_args {
    float x,
    |args, t| nf4_matmul(Nf4Matmul {
        x, w, bias,
        lora: &adapters(t, args.lora, args.lora_count)?,
        adapter, s, residual, y,
    })
});

impl_op!(gradus_nf4_matmul_dx_args {
    float dy,
    |args, t| nf4_matmul_dx(Nf4MatmulDx {
        dy, w,
        lora: &adapters(t, args.lora, args.lora_count)?,
        adapter, accumulate, dx,
    })
});

/// The weights of a mixture's experts.
fn experts<'a>(t: &Tensors<'a>, at: *const gradus_nf4, count: i64) -> Result<Vec<Nf4View<'a>>> {
    let all = t.list("w", at, count)?;
    let mut found = room(t.op, all.len())?;
    for (i, one) in all.iter().enumerate() {
        found.push(nf4(t, &format!("w[{i}]"), one)?);
    }
    Ok(found)
}

impl_op!(gradus_nf4_matmul_grouped_args {
    float x,
    |args, t| nf4_matmul_grouped(Nf4MatmulGrouped {
        x, offsets,
        w: &experts(t, args.w, args.w_count)?,
        y,
    })
});

impl_op!(gradus_nf4_matmul_grouped_dx_args {
    float dy,
    |args, t| nf4_matmul_grouped_dx(Nf4MatmulGroupedDx {
        dy, offsets,
        w: &experts(t, args.w, args.w_count)?,
        accumulate, dx,
    })
});
