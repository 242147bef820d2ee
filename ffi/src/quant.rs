//! 4-bit weights and adapters: from the header's structs to views, and from the JSON of bitsandbytes.

use gradus::dtype::{DType, Float};
use gradus::ops::Lora;
use gradus::quant::{Absmax, FP4_CODE, NF4_CODE, Nf4View, dynamic_map};
use gradus::{Error, Result};
use serde_json::Value;

use crate::memory::room;
use crate::status::{flag, given_mut, guard, list};
use crate::sys::{self, gradus_dtype, gradus_lora, gradus_nf4, gradus_quant_type};
use crate::tensor::{Tensors, dtype_of, enumerator, is_absent};

/// A 4-bit matrix.
pub(crate) fn nf4<'a>(t: &Tensors<'a>, name: &str, w: &gradus_nf4) -> Result<Nf4View<'a>> {
    let of = |field: &str| format!("{name}.{field}");
    let dtype = dtype_of(w.dtype)
        .ok_or_else(|| t.invalid(&of("dtype"), w.dtype, "GRADUS_F32, GRADUS_BF16 or GRADUS_F16"))?;
    Ok(Nf4View {
        packed: t.read(&of("packed"), &w.packed)?,
        absmax: absmax(t, name, w)?,
        code: t.read(&of("quant_map"), &w.quant_map)?,
        n: t.size(&of("n"), w.n)?,
        k: t.size(&of("k"), w.k)?,
        blocksize: t.size(&of("blocksize"), w.blocksize)?,
        dtype,
    })
}

fn absmax<'a>(t: &Tensors<'a>, name: &str, w: &gradus_nf4) -> Result<Absmax<'a>> {
    let of = |field: &str| format!("{name}.{field}");
    match t.dtype(&of("absmax"), &w.absmax)? {
        DType::F32 if is_absent(&w.nested_absmax) && is_absent(&w.nested_quant_map) => {
            Ok(Absmax::F32(t.read(&of("absmax"), &w.absmax)?))
        }
        DType::U8 => Ok(Absmax::Nested {
            codes: t.read(&of("absmax"), &w.absmax)?,
            nested: t.read(&of("nested_absmax"), &w.nested_absmax)?,
            table: t.read(&of("nested_quant_map"), &w.nested_quant_map)?,
            offset: w.offset as f32,
            nested_blocksize: t.size(&of("nested_blocksize"), w.nested_blocksize)?,
        }),
        other => {
            let expected =
                "f32 without nested_absmax, or u8 with nested_absmax and nested_quant_map";
            Err(t.invalid(&of("absmax.dtype"), other.name(), expected))
        }
    }
}

/// Adapters.
pub(crate) fn adapters<'a, T: Float>(
    t: &Tensors<'a>,
    at: *const gradus_lora,
    count: i64,
) -> Result<Vec<Lora<'a, T>>> {
    let all = list(t.op, "lora", at, count)?;
    let mut found = room(t.op, all.len())?;
    for (i, one) in all.iter().enumerate() {
        found.push(adapter(t, &format!("lora[{i}]"), one)?);
    }
    Ok(found)
}

/// One of them.
pub(crate) fn adapter<'a, T: Float>(
    t: &Tensors<'a>,
    name: &str,
    one: &gradus_lora,
) -> Result<Lora<'a, T>> {
    Ok(Lora {
        a: t.read(&format!("{name}.a"), &one.a)?,
        b: t.read(&format!("{name}.b"), &one.b)?,
        scale: one.scale,
    })
}

const PARSE: &str = "gradus_nf4_parse";
/// bitsandbytes writes some 200 bytes. The bound keeps what the JSON reader allocates small.
const LONGEST_STATE: usize = 1024;

/// bitsandbytes' QuantState, as it stands in a checkpoint.
fn parse(bytes: &[u8], w: &mut gradus_nf4) -> Result<()> {
    let bad = |what: String| Error::format("quant_state", what);
    if bytes.len() > LONGEST_STATE {
        let got = bytes.len();
        return Err(bad(format!("{got} bytes, expected at most {LONGEST_STATE}")));
    }
    let state: Value = serde_json::from_slice(bytes).map_err(|e| bad(format!("no JSON: {e}")))?;
    let field = |name: &str| state.get(name).ok_or_else(|| bad(format!("`{name}` is missing")));
    let number = |name: &str| {
        field(name)?
            .as_i64()
            .ok_or_else(|| bad(format!("`{name}` is {}, expected an integer", state[name])))
    };
    let shape = field("shape")?.as_array().map_or(&[][..], Vec::as_slice);
    let extent = |value: &Value| value.as_i64().filter(|&n| n >= 0);
    let extents = match shape {
        [n, k] => extent(n).zip(extent(k)),
        _ => None,
    };
    let Some((n, k)) = extents.filter(|(n, k)| n.checked_mul(*k).is_some()) else {
        return Err(bad(format!("`shape` is {}, expected two extents", state["shape"])));
    };
    if !matches!(field("quant_type")?.as_str(), Some("nf4" | "fp4")) {
        return Err(bad(format!("`quant_type` is {}, expected nf4 or fp4", state["quant_type"])));
    }
    let dtype = match field("dtype")?.as_str() {
        Some("float32") => gradus_dtype::GRADUS_F32,
        Some("bfloat16") => gradus_dtype::GRADUS_BF16,
        Some("float16") => gradus_dtype::GRADUS_F16,
        _ => {
            let got = &state["dtype"];
            return Err(bad(format!("`dtype` is {got}, expected float32, bfloat16 or float16")));
        }
    };
    let blocksize = number("blocksize")?;
    if !(32..=4096).contains(&blocksize) || blocksize & (blocksize - 1) != 0 {
        return Err(bad(format!(
            "`blocksize` is {blocksize}, expected a power of two, 32 to 4096"
        )));
    }
    // Only double quantization has these two.
    let nested = state.get("nested_blocksize").is_some();
    let nested_blocksize = if nested { number("nested_blocksize")? } else { 0 };
    if nested && nested_blocksize <= 0 {
        return Err(bad(format!(
            "`nested_blocksize` is {nested_blocksize}, expected a number > 0"
        )));
    }
    let offset = if nested {
        field("nested_offset")?.as_f64().filter(|offset| (*offset as f32).is_finite()).ok_or_else(
            || bad(format!("`nested_offset` is {}, expected an f32", state["nested_offset"])),
        )?
    } else {
        0.0
    };
    (w.n, w.k, w.blocksize, w.nested_blocksize) = (n, k, blocksize, nested_blocksize);
    (w.offset, w.dtype) = (offset, dtype as i32);
    Ok(())
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_nf4_parse(
    quant_state: *const u8,
    bytes: usize,
    w: *mut gradus_nf4,
) -> sys::gradus_status {
    guard(|| {
        let bytes = list(PARSE, "quant_state", quant_state, bytes.min(i64::MAX as usize) as i64)?;
        Ok(parse(bytes, given_mut(PARSE, "w", w)?)?)
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_nf4_code(quant_type: i32, values: *mut f32) -> sys::gradus_status {
    guard(|| {
        let to = given_mut("gradus_nf4_code", "values", values as *mut [f32; 16])?;
        let expected = "GRADUS_NF4 (0) or GRADUS_FP4 (1)";
        let found = enumerator(quant_type)
            .ok_or_else(|| Error::invalid("gradus_nf4_code", "quant_type", quant_type, expected))?;
        *to = match found {
            gradus_quant_type::GRADUS_NF4 => NF4_CODE,
            gradus_quant_type::GRADUS_FP4 => FP4_CODE,
        };
        Ok(())
    })
}

/// # Safety
/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gradus_dynamic_map(
    is_signed: i32,
    values: *mut f32,
) -> sys::gradus_status {
    guard(|| {
        let to = given_mut("gradus_dynamic_map", "values", values as *mut [f32; 256])?;
        *to = *dynamic_map(flag("gradus_dynamic_map", "is_signed", is_signed)?);
        Ok(())
    })
}
