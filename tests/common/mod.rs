//! Shared by the integration tests: golden files, random tensors, error measures, gradient checks.
#![allow(dead_code)]

pub mod devices;

use std::path::{Path, PathBuf};

use gradus::rng::{Purpose, Rng};

/// A safetensors file of `tests/golden` with its settings.
pub struct Golden {
    pub name: String,
    bytes: Vec<u8>,
    pub settings: serde_json::Value,
}

/// The root of the repository, from the folder of any package in it.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.ancestors().find(|folder| folder.join("tests/golden").is_dir());
    root.unwrap_or(package).to_path_buf()
}

/// Where the peers' data is: `GRADUS_GOLDEN`, for executables that were carried elsewhere, or the
/// folder of the sources.
pub fn golden_folder() -> PathBuf {
    match std::env::var_os("GRADUS_GOLDEN") {
        Some(folder) => folder.into(),
        None => root().join("tests/golden"),
    }
}

impl Golden {
    /// All golden files of a family (a folder of `tests/golden`), sorted by name. Never empty.
    pub fn family(family: &str) -> Vec<Golden> {
        let folder = golden_folder().join(family);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "no golden files in {}", folder.display());
        paths.iter().map(|path| Golden::open(path)).collect()
    }

    pub fn open(path: &Path) -> Golden {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        let settings = metadata
            .get("settings")
            .map(|text| serde_json::from_str(text).unwrap())
            .unwrap_or(serde_json::Value::Null);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Golden { name, bytes, settings }
    }

    fn file(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub fn has(&self, tensor: &str) -> bool {
        self.file().tensor(tensor).is_ok()
    }

    pub fn shape(&self, tensor: &str) -> Vec<usize> {
        self.file().tensor(tensor).unwrap().shape().to_vec()
    }

    pub fn dtype(&self, tensor: &str) -> safetensors::Dtype {
        self.file().tensor(tensor).unwrap().dtype()
    }

    pub fn raw(&self, tensor: &str) -> Vec<u8> {
        let file = self.file();
        file.tensor(tensor)
            .unwrap_or_else(|e| panic!("{}: {tensor}: {e}", self.name))
            .data()
            .to_vec()
    }

    /// Elements of a tensor stored as `T`, bit for bit.
    pub fn get<T: bytemuck::Pod>(&self, tensor: &str) -> Vec<T> {
        let raw = self.raw(tensor);
        bytemuck::allocation::pod_collect_to_vec(&raw)
    }

    /// Any float tensor, widened to f64.
    pub fn f64(&self, tensor: &str) -> Vec<f64> {
        use safetensors::Dtype;
        match self.dtype(tensor) {
            Dtype::F64 => self.get(tensor),
            Dtype::F32 => self.get::<f32>(tensor).into_iter().map(f64::from).collect(),
            Dtype::BF16 => {
                self.get::<gradus::bf16>(tensor).into_iter().map(|x| x.to_f64()).collect()
            }
            Dtype::F16 => self.get::<gradus::f16>(tensor).into_iter().map(|x| x.to_f64()).collect(),
            other => panic!("{}: {tensor} is {other:?}", self.name),
        }
    }

    /// A number of the settings.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.settings.get(key).and_then(|v| v.as_f64())
    }

    /// A string of the settings.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(|v| v.as_str())
    }
}

/// `n` standard normals times `scale`, the same for the same seed.
pub fn normals(seed: u64, n: usize, scale: f64) -> Vec<f64> {
    let mut rng = Rng::new(seed, Purpose::User, [0, 0, 0]);
    (0..n).map(|_| rng.normal() * scale).collect()
}

/// Distance of `got` from `want` in units in the last place of f32 at the size of `scale`.
pub fn ulps_f32(got: f32, want: f64, scale: f64) -> f64 {
    let size = scale.abs().max(f32::MIN_POSITIVE as f64) as f32;
    let ulp = (f32::from_bits(size.to_bits() + 1) - size) as f64;
    (got as f64 - want).abs() / ulp
}

/// Largest |a - b| / max(|b|, floor).
pub fn max_rel(a: &[f64], b: &[f64], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (x, y)| {
        assert!(x.is_finite() == y.is_finite(), "{x} against {y}");
        if x.is_finite() { f64::max(worst, (x - y).abs() / y.abs().max(floor)) } else { worst }
    })
}

/// Checks `grad` against central differences of `f` at `x` with step `h`; returns the largest
/// error relative to max(|gradient|, 1e-3·largest gradient).
pub fn check_gradient(f: impl Fn(&[f64]) -> f64, x: &[f64], grad: &[f64], h: f64) -> f64 {
    assert_eq!(x.len(), grad.len());
    let largest = grad.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    assert!(largest > 0.0, "a gradient of zeros proves nothing");
    let mut point = x.to_vec();
    let mut worst = 0.0f64;
    for i in 0..x.len() {
        point[i] = x[i] + h;
        let up = f(&point);
        point[i] = x[i] - h;
        let down = f(&point);
        point[i] = x[i];
        let slope = (up - down) / (2.0 * h);
        worst = worst.max((slope - grad[i]).abs() / grad[i].abs().max(1e-3 * largest));
    }
    worst
}

/// Rounded to f32.
pub fn f32s(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// [`normals`] rounded to f32.
pub fn normals_f32(seed: u64, n: usize, scale: f64) -> Vec<f32> {
    f32s(&normals(seed, n, scale))
}

/// Widened to f64.
pub fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

/// The call was refused, and its message names `arg`. Returns the message.
#[track_caller]
pub fn refused(result: gradus::Result<()>, arg: &str) -> String {
    let text = result.expect_err(arg).to_string();
    assert!(text.contains(&format!("argument `{arg}`")), "`{arg}` is not named in: {text}");
    text
}

/// The call was refused for an invalid `arg`, and its message holds `text`.
#[track_caller]
pub fn refused_with(result: gradus::Result<()>, arg: &str, text: &str) {
    assert_eq!(result.as_ref().map_err(|e| e.code()), Err(1), "{arg}");
    let message = refused(result, arg);
    assert!(message.contains(text), "{text}: {message}");
}

/// Bit patterns, for equality that tells -0 from 0.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// `body` on a pool of so many threads.
pub fn in_pool<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(body)
}

/// `body` on pools of 1, 2, 4 and 7 threads gives the same bits; returns the result.
pub fn same_on_any_pool(body: impl Fn() -> Vec<f32> + Sync + Send) -> Vec<f32> {
    let one = in_pool(1, &body);
    for n in [2, 4, 7] {
        assert_eq!(bits(&one), bits(&in_pool(n, &body)), "{n} threads");
    }
    one
}

/// The statistics of a policy loss agree: counts exactly, sums to rounding.
pub fn same_stats(name: &str, want: &gradus::ops::PolicyStats, got: &gradus::ops::PolicyStats) {
    let counts = |s: &gradus::ops::PolicyStats| {
        [
            s.n_tokens,
            s.n_sequences,
            s.n_empty,
            s.n_clip_lo,
            s.n_clip_hi,
            s.n_dual,
            s.n_opsm,
            s.n_nonfinite,
        ]
    };
    let sums = |s: &gradus::ops::PolicyStats| {
        let mut list =
            vec![s.sum_ratio, s.sum_ratio2, s.min_ratio, s.max_ratio, s.max_abs_log_ratio];
        list.push(s.sum_entropy);
        list.extend(s.sum_kl);
        list.extend(s.grad2_by_class);
        list
    };
    assert_eq!(counts(want), counts(got), "{name}");
    devices::close(name, &sums(want), &sums(got), 1e-11, 1.0);
}

/// All NaN are one: a GPU has a payload of its own.
pub fn bits_of<R: gradus::dtype::Float>(x: &[R]) -> Vec<u64> {
    let one_nan = |x: f64| if x.is_nan() { f64::NAN } else { x };
    x.iter().map(|v| one_nan(v.to_f64()).to_bits()).collect()
}

/// Codes and maxima agree bit for bit.
pub fn same_parts(name: &str, want: &gradus::quant::Nf4Parts, got: &gradus::quant::Nf4Parts) {
    assert_eq!(want.packed, got.packed, "{name}: packed");
    use gradus::quant::OwnedAbsmax;
    match (&want.absmax, &got.absmax) {
        (OwnedAbsmax::F32(a), OwnedAbsmax::F32(b)) => assert_eq!(bits(a), bits(b), "{name}"),
        (
            OwnedAbsmax::Nested { codes, nested, offset, .. },
            OwnedAbsmax::Nested { codes: codes2, nested: nested2, offset: offset2, .. },
        ) => {
            assert_eq!(bits(&[*offset]), bits(&[*offset2]), "{name}: offset");
            assert_eq!(bits(nested), bits(nested2), "{name}: nested");
            assert_eq!(codes, codes2, "{name}: codes of the maxima");
        }
        _ => panic!("{name}: other kinds of maxima"),
    }
}
