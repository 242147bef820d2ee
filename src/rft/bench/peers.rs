//! Shapes for a comparison with other libraries, which `tools/peers/gpu_compare.py` drives: small
//! ones in f32 and bf16, and those of models of 8 to 70 billion parameters in bf16.
//!
//! Weights of 4 bits are as bitsandbytes stores them: maxima of 64 values, double-quantized 256 at
//! a time (`dq` in a row's name).

use gradus::dtype::Float;

use super::case::Case;
use super::policy::policy;
use super::products::{FourBit, RANK, dense, four_bit};
use super::quantize::{dequantize, dequantize_to};
use super::vocabulary::{Pass, head, logprobs, logprobs_train};

/// What is measured: rows M, matrices `[N, K]`, heads `[rows, H, V]`.
struct Shapes {
    rows: &'static [usize],
    matrices: &'static [[usize; 2]],
    heads: &'static [[usize; 3]],
}

/// One matrix of attention and one of the MLP; a head that two cores finish in less than a second.
const SMALL: Shapes = Shapes {
    rows: &[1, 64, 512],
    matrices: &[[1536, 1536], [8960, 1536]],
    heads: &[[128, 1024, 32_000]],
};

/// Decoding one and many samples up to training, on matrices that are square, wide, tall and both
/// large; heads of 128 k tokens with few and many rows, and of Qwen2.5's 1.5 billion parameters.
const LARGE: Shapes = Shapes {
    rows: &[1, 4, 16, 64, 256, 2048, 8192],
    matrices: &[[4096, 4096], [14_336, 4096], [4096, 14_336], [28_672, 8192]],
    heads: &[[1024, 4096, 128_256], [8192, 4096, 128_256], [2048, 1536, 151_936]],
};

/// Builds with debug assertions leave bf16 out; their figures mean nothing, but names and costs of
/// the large rows are tested in them.
#[cfg(not(debug_assertions))]
type Wide = gradus::bf16;
#[cfg(debug_assertions)]
type Wide = f32;

pub fn small() -> Vec<Case> {
    #[allow(unused_mut, reason = "bf16 is left out of builds with debug assertions")]
    let mut cases = of::<f32>(&SMALL);
    #[cfg(not(debug_assertions))]
    cases.extend(of::<gradus::bf16>(&SMALL));
    cases
}

pub fn large() -> Vec<Case> {
    large_of::<Wide>()
}

/// The large rows of a dtype.
pub fn large_of<T: Float>() -> Vec<Case> {
    of::<T>(&LARGE)
}

/// What the CPU is compared on: one matrix of a model of 8 billion parameters, logits of Qwen2.5, the
/// loss of 64 completions. 4-bit weights had the row's dtype, as bitsandbytes' have.
pub fn cpu() -> Vec<Case> {
    let mut cases = vec![policy([64, 1024], false), policy([64, 1024], true)];
    cases.extend(on_cpu::<f32>());
    #[cfg(not(debug_assertions))]
    cases.extend(on_cpu::<gradus::bf16>());
    cases
}

fn on_cpu<T: Float>() -> Vec<Case> {
    let [n, k] = [4096, 4096];
    let mut cases = vec![logprobs::<T>(64), logprobs_train::<T>(64)];
    cases.extend([false, true].map(|nested| dequantize_to::<T>([n, k], nested, T::DTYPE)));
    for m in [1, 16, 512] {
        cases.push(dense::<T>([m, n, k], false));
        let four = FourBit { nested: true, dtype: T::DTYPE, ..FourBit::forward([m, n, k]) };
        cases.push(four_bit::<T>(four));
    }
    cases
}

fn of<T: Float>(shapes: &Shapes) -> Vec<Case> {
    let mut cases = Vec::new();
    for &[n, k] in shapes.matrices {
        for &m in shapes.rows {
            let four = FourBit { nested: true, ..FourBit::forward([m, n, k]) };
            cases.push(dense::<T>([m, n, k], false));
            cases.push(four_bit::<T>(four));
            cases.push(four_bit::<T>(FourBit { rank: RANK, ..four }));
            cases.push(four_bit::<T>(FourBit { dx: true, ..four }));
        }
        cases.push(dequantize::<T>(n, k, true));
    }
    for &extents in shapes.heads {
        for pass in [Pass::Forward, Pass::Score, Pass::Train] {
            cases.push(head::<T>(extents, pass));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cost of decoding is the weight's 0.516 bytes a value, that of training its flops.
    #[test]
    fn costs_are_those_of_the_floor_table() {
        let cases = large();
        let find = |name: &str| cases.iter().find(|c| c.name().starts_with(name)).unwrap();
        let decode = find("nf4_matmul 1 x 4096 x 4096 dq");
        let codes = decode.bytes - size_of::<Wide>() as u64 * 2 * 4096;
        assert!((codes as f64 / (1 << 24) as f64 - 0.51587).abs() < 1e-5, "{codes}");
        assert_eq!(find("nf4_matmul_dx 8192 x 28672 x 8192 dq").flops, 2 * 8192 * 28_672 * 8192);
        let (forward, train) = ("8192 x 4096 x 128256", "8192 x 4096 x 128256 train");
        let flops = |shape: &str| cases.iter().find(|c| c.shape == shape).unwrap().flops;
        assert_eq!(flops(train), 3 * flops(forward));
    }

    /// Every kind of row runs on the emulated device, as it is and from a graph. In f32: bf16 passed
    /// too, but its code for the CPU takes 100 CPU seconds of every build of these tests.
    #[cfg(feature = "emu")]
    #[test]
    fn rows_run_on_a_gpu_and_from_a_graph() {
        use crate::bench::timing::timed;
        use gradus::Device;
        use gradus::device::{EmuDriver, Gpu};
        let gpu = std::sync::Arc::new(Gpu::new(std::sync::Arc::new(EmuDriver::new())).unwrap());
        let device = Device::Gpu(gpu.clone());
        let (rows, matrices, heads) = (&[1, 20][..], &[[64, 256]][..], &[[3, 64, 256]][..]);
        for case in of::<f32>(&Shapes { rows, matrices, heads }) {
            let case = case.with_one_set();
            let (_, how) = timed(&device, &gpu, &case, [1e-3, 0.0]).unwrap();
            assert!(how.graph.is_ok(), "{} {how:?}", case.name());
        }
    }
}
