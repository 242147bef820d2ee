//! One 4-bit weight as a bitsandbytes checkpoint stores it: the codes under the weight's own name,
//! everything else behind it.
//!
//! | key | dtype, shape |
//! |---|---|
//! | `W` | u8 `[ceil(n·k / 2), 1]`, the first of two codes in the high nibble |
//! | `W.absmax` | f32 `[blocks]`; double-quantized u8 `[blocks]` |
//! | `W.quant_map` | f32 `[16]` |
//! | `W.nested_absmax`, `W.nested_quant_map` | f32 `[ceil(blocks / 256)]`, `[256]`; only double-quantized |
//! | `W.quant_state.bitsandbytes__nf4` (or `__fp4`) | u8: JSON |
//!
//! Reading and writing are inverse, byte for byte.

use serde_json::{Map, Value};

use crate::io::json;
use crate::io::python_json;
use crate::io::safetensors::{TensorData, Tensors};
use crate::pretrained::weights::WeightFiles;
use gradus::check::Check;
use gradus::device;
use gradus::dtype::DType;
use gradus::error::{Error, Result};
use gradus::quant::nf4::check_geometry;
use gradus::quant::{Nf4Options, Nf4Parts, Nf4Tensor, OwnedAbsmax, QuantType};

const STATE: &str = "quant_state.bitsandbytes__";

/// Key and kind of the quant state of weight `name`, if the files hold one.
fn find_state(files: &WeightFiles, name: &str) -> Option<(QuantType, String)> {
    let keys = [QuantType::Nf4, QuantType::Fp4].map(|t| (t, format!("{name}.{STATE}{}", label(t))));
    keys.into_iter().find(|(_, key)| files.info(key).is_some())
}

fn read_state(files: &mut WeightFiles, key: &str, quant_type: QuantType) -> Result<State> {
    let folder = files.folder().to_path_buf();
    // A state is some 200 bytes.
    if let Some(info) = files.info(key).filter(|info| info.end - info.begin > 1 << 16) {
        let reason = format!("`{key}`: a quant state of {} bytes", info.end - info.begin);
        return Err(Error::format(folder, reason));
    }
    let wrong = |reason: String| Error::format(&folder, format!("`{key}`: {reason}"));
    let state = json::parse_object(&values::<u8>(files, key)?).map_err(&wrong)?;
    State::parse(&state, quant_type).map_err(&wrong)
}

/// Extents of the 4-bit weight called `name`, if the files hold one.
pub(super) fn shape(files: &mut WeightFiles, name: &str) -> Result<Option<[usize; 2]>> {
    let Some((quant_type, key)) = find_state(files, name) else { return Ok(None) };
    Ok(Some(read_state(files, &key, quant_type)?.shape))
}

/// The 4-bit weight called `name`, if the files hold one.
///
/// # Errors
/// `Format` for parts that are missing, of another dtype or do not fit together.
pub(super) fn read(files: &mut WeightFiles, name: &str) -> Result<Option<Nf4Tensor>> {
    let Some((quant_type, key)) = find_state(files, name) else { return Ok(None) };
    let state = read_state(files, &key, quant_type)?;
    let nested = match state.nested {
        None => None,
        Some((offset, blocksize)) => Some(Nested {
            offset,
            blocksize,
            absmax: values::<f32>(files, &format!("{name}.nested_absmax"))?,
            table: values::<f32>(files, &format!("{name}.nested_quant_map"))?,
        }),
    };
    let absmax_key = format!("{name}.absmax");
    let absmax = match nested {
        None => OwnedAbsmax::F32(values::<f32>(files, &absmax_key)?),
        Some(nested) => OwnedAbsmax::Nested {
            codes: values::<u8>(files, &absmax_key)?,
            nested: nested.absmax,
            table: nested.table,
            offset: nested.offset,
            nested_blocksize: nested.blocksize,
        },
    };
    let parts = Nf4Parts {
        // `bnb_4bit_quant_storage` may call the same bytes bf16 or f32.
        packed: files.read(name)?.bytes,
        absmax,
        code: values::<f32>(files, &format!("{name}.quant_map"))?,
        n: state.shape[0],
        k: state.shape[1],
        blocksize: state.blocksize,
        dtype: state.dtype,
        quant_type,
    };
    let tensor = Nf4Tensor::from_parts(parts);
    tensor.map(Some).map_err(|e| Error::format(files.folder(), format!("`{name}`: {e}")))
}

/// The 4-bit weight called `name`, if the files hold one, with zeros for values.
pub(super) fn outline(files: &mut WeightFiles, name: &str) -> Result<Option<Nf4Tensor>> {
    let Some((quant_type, key)) = find_state(files, name) else { return Ok(None) };
    let State { blocksize, dtype, shape, nested } = read_state(files, &key, quant_type)?;
    let nested = nested.map(|(_, blocksize)| blocksize);
    of_zeros(shape, blocksize, nested, dtype, quant_type)
        .map(Some)
        .map_err(|e| Error::format(files.folder(), format!("`{name}`: {e}")))
}

/// What quantizing a weight of `dtype` with `options` gives, with zeros for values.
pub(super) fn zeros(shape: [usize; 2], options: &Nf4Options, dtype: DType) -> Result<Nf4Tensor> {
    let nested = options.double_quant.then_some(256);
    of_zeros(shape, options.blocksize, nested, dtype, options.quant_type)
}

fn of_zeros(
    [n, k]: [usize; 2],
    blocksize: usize,
    nested: Option<usize>,
    dtype: DType,
    quant_type: QuantType,
) -> Result<Nf4Tensor> {
    let check = Check("outline");
    let numel = check_geometry(check, "weight", n, k, blocksize, dtype)?;
    let blocks = numel.div_ceil(blocksize);
    let what = "a 4-bit weight";
    let absmax = match nested {
        None => OwnedAbsmax::F32(device::zeros(blocks, what)?),
        Some(nested_blocksize) => {
            check.that(nested_blocksize > 0, "nested_blocksize", nested_blocksize, "at least 1")?;
            OwnedAbsmax::Nested {
                codes: device::zeros(blocks, what)?,
                nested: device::zeros(blocks.div_ceil(nested_blocksize), what)?,
                table: vec![0.0; 256],
                offset: 0.0,
                nested_blocksize,
            }
        }
    };
    let packed = device::zeros(numel.div_ceil(2), what)?;
    let code = vec![0.0; 16];
    Nf4Tensor::from_parts(Nf4Parts { packed, absmax, code, n, k, blocksize, dtype, quant_type })
}

struct Nested {
    offset: f32,
    blocksize: usize,
    absmax: Vec<f32>,
    table: Vec<f32>,
}

fn values<T: gradus::dtype::Element>(files: &mut WeightFiles, name: &str) -> Result<Vec<T>> {
    let data = files.read(name)?;
    data.to_vec().map_err(|e| Error::format(files.folder(), format!("`{name}`: {e}")))
}

fn label(quant_type: QuantType) -> &'static str {
    match quant_type {
        QuantType::Nf4 => "nf4",
        QuantType::Fp4 => "fp4",
    }
}

/// The JSON of a quant state.
struct State {
    blocksize: usize,
    dtype: DType,
    shape: [usize; 2],
    /// Offset and block size of the maxima's own quantization.
    nested: Option<(f32, usize)>,
}

impl State {
    fn parse(
        raw: &Map<String, Value>,
        quant_type: QuantType,
    ) -> std::result::Result<State, String> {
        let need = |name: &str| format!("`{name}` is missing");
        let kind: String = json::field(raw, "quant_type")?.ok_or_else(|| need("quant_type"))?;
        if kind != label(quant_type) {
            return Err(format!("`quant_type` = `{kind}`, the key says {}", label(quant_type)));
        }
        let dtype: String = json::field(raw, "dtype")?.ok_or_else(|| need("dtype"))?;
        let nested = match json::field::<f32>(raw, "nested_offset")? {
            None => None,
            Some(offset) => {
                let dtype: Option<String> = json::field(raw, "nested_dtype")?;
                if dtype.as_deref().is_some_and(|name| name != "float32") {
                    return Err("`nested_dtype` is not float32".into());
                }
                let blocksize = json::field(raw, "nested_blocksize")?;
                Some((offset, blocksize.ok_or_else(|| need("nested_blocksize"))?))
            }
        };
        Ok(State {
            blocksize: json::field(raw, "blocksize")?.ok_or_else(|| need("blocksize"))?,
            dtype: [DType::F32, DType::Bf16, DType::F16]
                .into_iter()
                .find(|&d| torch_name(d) == dtype)
                .ok_or_else(|| format!("`dtype` = `{dtype}` is not a float of 16 or 32 bits"))?,
            shape: json::field(raw, "shape")?.ok_or_else(|| need("shape"))?,
            nested,
        })
    }

    /// The text that Python's `json.dumps` writes for this state.
    fn text(parts: &Nf4Parts) -> String {
        let mut text = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}, {}]"#,
            label(parts.quant_type),
            parts.blocksize,
            torch_name(parts.dtype),
            parts.n,
            parts.k
        );
        if let OwnedAbsmax::Nested { offset, nested_blocksize, .. } = &parts.absmax {
            let offset = python_json::float(*offset as f64);
            text += &format!(
                r#", "nested_blocksize": {nested_blocksize}, "nested_dtype": "float32", "nested_offset": {offset}"#
            );
        }
        text + "}"
    }
}

/// torch's name of a dtype.
pub(super) fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::Bf16 => "bfloat16",
        DType::F64 => "float64",
        DType::F32 | DType::U8 | DType::I32 | DType::I64 => "float32",
    }
}

/// Adds the tensors of the 4-bit weight called `name` to `tensors`.
pub(super) fn insert(tensors: &mut Tensors, name: &str, parts: &Nf4Parts) {
    let mut put = |key: String, data: TensorData| tensors.insert(key, data);
    put(format!("{name}.quant_map"), TensorData::new(&[parts.code.len()], &parts.code));
    match &parts.absmax {
        OwnedAbsmax::F32(absmax) => {
            put(format!("{name}.absmax"), TensorData::new(&[absmax.len()], absmax));
        }
        OwnedAbsmax::Nested { codes, nested, table, .. } => {
            put(format!("{name}.absmax"), TensorData::new(&[codes.len()], codes));
            put(format!("{name}.nested_absmax"), TensorData::new(&[nested.len()], nested));
            put(format!("{name}.nested_quant_map"), TensorData::new(&[table.len()], table));
        }
    }
    let text = State::text(parts).into_bytes();
    let key = format!("{name}.{STATE}{}", label(parts.quant_type));
    put(key, TensorData::new(&[text.len()], &text));
    put(name.into(), TensorData::new(&[parts.packed.len(), 1], &parts.packed));
}
