//! What a machine can do at best: measured on the CPU, nominal on a GPU.

use std::hint::black_box;
use std::time::Instant;

use gradus::device::DriverInfo;
use rayon::prelude::*;

use super::case::Work;

/// Rates of a device, per second.
#[derive(Clone, Debug)]
pub struct Floors {
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Product name.
    pub name: String,
    /// Where the rates come from.
    pub source: &'static str,
    /// Bytes read and written, where known; the same below.
    pub bytes: Option<f64>,
    /// In f32.
    pub f32_flops: Option<f64>,
    /// In f64.
    pub f64_flops: Option<f64>,
    /// Products of 16-bit operands.
    pub product_flops: Option<f64>,
}

/// Nominal rates of the data sheets: part of the name, TB/s, TFLOP/s in f32 and f64 (without
/// tensor cores) and of dense bf16 products. The first that fits is taken.
const GPUS: [(&str, [f64; 4]); 6] = [
    ("H200", [4.8, 66.9, 33.5, 989.0]),
    ("H100 PCIe", [2.0, 51.2, 25.6, 756.0]),
    ("H100 NVL", [3.9, 60.0, 30.0, 835.0]),
    ("H100", [3.35, 66.9, 33.5, 989.0]),
    ("A100-SXM4-80GB", [2.039, 19.5, 9.7, 312.0]),
    ("A100", [1.555, 19.5, 9.7, 312.0]),
];

impl Floors {
    /// Measured now, on all threads: a copy larger than any cache, and chains of fused
    /// multiply-adds in registers.
    pub fn of_cpu(seconds: f64) -> Floors {
        let f32_flops = fma_peak(seconds);
        Floors {
            device: "cpu",
            name: cpu_name(),
            source: "measured: a copy of 128 MiB, f32 multiply-adds in registers (f64: half)",
            bytes: Some(copy_bandwidth(seconds)),
            f32_flops: Some(f32_flops),
            f64_flops: Some(f32_flops / 2.0),
            product_flops: Some(f32_flops),
        }
    }

    /// Nominal, if the device is in the table.
    pub fn of_gpu(info: &DriverInfo) -> Floors {
        let rates = GPUS.iter().find(|(name, _)| info.name.contains(name)).map(|(_, rates)| rates);
        let at = |i: usize, unit: f64| rates.map(|rates| rates[i] * unit);
        Floors {
            device: "cuda",
            name: info.name.clone(),
            source: if rates.is_some() { "nominal: the data sheet's rates" } else { "unknown" },
            bytes: at(0, 1e12),
            f32_flops: at(1, 1e12),
            f64_flops: at(2, 1e12),
            product_flops: at(3, 1e12),
        }
    }

    /// Nominal rates of a product, by name.
    #[cfg(feature = "emu")]
    pub fn nominal(name: &str) -> Floors {
        let info = DriverInfo {
            name: name.into(),
            ordinal: 0,
            capability: (9, 0),
            cuda: (12, 4),
            multiprocessors: 132,
            memory: 0,
            shared_per_block: 232_448,
        };
        Floors::of_gpu(&info)
    }

    fn flops(&self, work: Work) -> Option<f64> {
        match work {
            Work::F32 => self.f32_flops,
            Work::F64 => self.f64_flops,
            Work::Products => self.product_flops,
        }
    }

    /// Milliseconds below which the work cannot be done, and what it waits for.
    pub fn floor(&self, bytes: u64, flops: u64, work: Work) -> Option<(f64, &'static str)> {
        let memory = bytes as f64 / self.bytes? * 1e3;
        let compute = flops as f64 / self.flops(work)? * 1e3;
        Some(if compute > memory { (compute, "flops") } else { (memory, "bytes") })
    }

    /// One line.
    pub fn describe(&self) -> String {
        let rate = |name: &str, rate: Option<f64>, unit: &str| {
            rate.map_or(String::new(), |rate| format!("  {name} {:.0} {unit}", rate / 1e9))
        };
        format!(
            "{} {}{}{}{}{}  ({})",
            self.device,
            self.name,
            rate("memory", self.bytes, "GB/s"),
            rate("f32", self.f32_flops, "GFLOP/s"),
            rate("f64", self.f64_flops, "GFLOP/s"),
            rate("products", self.product_flops, "GFLOP/s"),
            self.source,
        )
    }
}

/// The processor's name.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.to_string())
}

/// The best of repeated runs of `body`, each doing `work`, for a while: units a second.
fn best(seconds: f64, work: f64, mut body: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), 0f64);
    let mut runs = 0;
    while runs < 3 || start.elapsed().as_secs_f64() < seconds {
        let one = Instant::now();
        body();
        best = best.max(work / one.elapsed().as_secs_f64().max(1e-9));
        runs += 1;
    }
    best
}

/// Bytes read and written a second by copies of 128 MiB, in pieces on all threads.
fn copy_bandwidth(seconds: f64) -> f64 {
    const WORDS: usize = 1 << 24;
    let (from, mut to) = (vec![1u64; WORDS], vec![0u64; WORDS]);
    let piece = WORDS / (4 * rayon::current_num_threads());
    best(seconds.min(0.5), (16 * WORDS) as f64, || {
        to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        black_box(&mut to);
    })
}

/// Accumulators of the chains: enough to cover the latency of a multiply-add.
const CHAINS: usize = 12;
const LANES: usize = 16;
const STEPS: usize = 1 << 16;

/// Flops a second of chains of multiply-adds on all threads.
fn fma_peak(seconds: f64) -> f64 {
    let threads = rayon::current_num_threads();
    let flops = (2 * CHAINS * LANES * STEPS * threads) as f64;
    best(seconds.min(0.5), flops, || {
        (0..threads).into_par_iter().with_max_len(1).for_each(|i| {
            black_box(chains(black_box(1.0 + i as f32 * 1e-6)));
        });
    })
}

/// `CHAINS · LANES · STEPS` multiply-adds. Vectors are spelled out on x86: left to itself the
/// compiler made a vector of one lane of each chain, with gathers and scatters, at a hundredth of
/// the speed.
fn chains(a: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn avx512(a: f32) -> f32 {
            let (a, half) = (_mm512_set1_ps(a), _mm512_set1_ps(0.5));
            let mut sums = [_mm512_setzero_ps(); CHAINS];
            for _ in 0..STEPS {
                for chain in &mut sums {
                    *chain = _mm512_fmadd_ps(*chain, half, a);
                }
            }
            sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(a: f32) -> f32 {
            let (a, half) = (_mm256_set1_ps(a), _mm256_set1_ps(0.5));
            let mut sums = [_mm256_setzero_ps(); CHAINS];
            // Half the lanes, twice as often.
            for _ in 0..2 * STEPS {
                for chain in &mut sums {
                    *chain = _mm256_fmadd_ps(*chain, half, a);
                }
            }
            sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
        }
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected just above.
            return unsafe { avx512(a) };
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the features were detected just above.
            return unsafe { avx2(a) };
        }
    }
    let mut sums = [[0f32; LANES]; CHAINS];
    for _ in 0..STEPS {
        for chain in &mut sums {
            for sum in chain {
                *sum = sum.mul_add(0.5, a);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DriverInfo {
        DriverInfo {
            name: name.into(),
            ordinal: 0,
            capability: (9, 0),
            cuda: (12, 4),
            multiprocessors: 132,
            memory: 80 << 30,
            shared_per_block: 227 << 10,
        }
    }

    #[test]
    fn the_longer_of_two_floors_binds() {
        let floors = Floors::of_gpu(&device("NVIDIA H100 80GB HBM3"));
        assert_eq!(floors.bytes, Some(3.35e12));
        let (ms, bound) = floors.floor(3_350_000_000, 1, Work::F32).unwrap();
        assert!((ms - 1.0).abs() < 1e-12 && bound == "bytes", "{ms} {bound}");
        let (ms, bound) = floors.floor(1, 989_000_000_000, Work::Products).unwrap();
        assert!((ms - 1.0).abs() < 1e-12 && bound == "flops", "{ms} {bound}");
        assert_eq!(Floors::of_gpu(&device("NVIDIA H200")).bytes, Some(4.8e12));
        assert_eq!(Floors::of_gpu(&device("NVIDIA H100 PCIe")).bytes, Some(2e12));
    }

    #[test]
    fn an_unknown_gpu_has_no_floor() {
        let floors = Floors::of_gpu(&device("NVIDIA Something"));
        assert_eq!(floors.floor(1, 1, Work::F64), None);
        assert!(floors.describe().ends_with("(unknown)"));
    }

    /// A thread does 16 multiply-adds a step with AVX2; a compiler that fills vectors the wrong way
    /// once got to 1 GFLOP/s.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_peak_is_one_of_vectors() {
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            let peak = fma_peak(0.05);
            assert!(peak > 5e9, "{peak}");
        }
    }
}
