//! 4-bit quantization on the CPU: groups of whole blocks are gathered into f32 first, so that blocks
//! which cross strided rows and all dtypes share one path.

use crate::alloc::Gather;
use crate::device::parallel;
use crate::dtype::Float;
use crate::ops::quantize::nf4_quantize::{NESTED_BLOCKSIZE, Nf4Quantize, Nf4QuantizeAbsmax};
use crate::ops::support::math;
use crate::quant::codebook::{Bounds, Thresholds};
use crate::view::View;

/// Values gathered at a time: the largest block size, a multiple of all others.
const GROUP: usize = 4096;
const LANES: usize = 16;
/// Maxima below this count as this when values are scaled.
const TINY: f32 = 1e-38;
/// Bits of f32 infinity: magnitudes from here on are not finite.
const INFINITY_BITS: u32 = 0x7F80_0000;

/// Quantizes, or returns the flat index of the first value that is not finite.
pub(crate) fn quantize<T: Float>(a: Nf4Quantize<'_, T>) -> Result<(), usize> {
    let (x, mut absmax, mut packed) = (a.x, a.absmax, a.packed);
    let (numel, blocksize) = (x.extent(0) * x.extent(1), a.blocksize);
    let maxima = parallel::map(numel.div_ceil(GROUP), GROUP, |group| {
        let mut values = [0.0; GROUP];
        let len = gather(x, group * GROUP, &mut values);
        values[..len].chunks(blocksize).map(math::max_magnitude).gathered()
    });
    if let Some(group) = maxima.iter().position(|g| g.iter().any(|&m| m >= INFINITY_BITS)) {
        let k = x.extent(1);
        let not_finite = |i: &usize| !x.row(i / k)[i % k].to_f32().is_finite();
        return Err((group * GROUP..numel).find(not_finite).unwrap_or(group * GROUP));
    }
    let thresholds = a.quant_type.thresholds();
    let packed = packed.as_mut_slice().unwrap_or(&mut []);
    parallel::for_each(packed.chunks_mut(GROUP / 2).gathered(), GROUP * LANES, |group, bytes| {
        let mut values = [0.0; GROUP];
        let len = gather(x, group * GROUP, &mut values);
        scale(&mut values[..len], blocksize, &maxima[group]);
        encode(&values, bytes, &thresholds);
    });
    for (block, &bits) in maxima.iter().flatten().enumerate() {
        let max = f32::from_bits(bits);
        let short = (block + 1) * blocksize > numel;
        absmax.set(block, if short { max.max(TINY) } else { max });
    }
    Ok(())
}

/// Copies elements `first..` of the flattened matrix into `values`; returns how many there were.
fn gather<T: Float>(x: View<'_, T>, first: usize, values: &mut [f32]) -> usize {
    let k = x.extent(1);
    let len = values.len().min(x.extent(0) * k - first);
    let mut done = 0;
    while done < len {
        let (row, column) = ((first + done) / k, (first + done) % k);
        let part = (k - column).min(len - done);
        let source = &x.row(row)[column..column + part];
        for (value, &s) in values[done..done + part].iter_mut().zip(source) {
            *value = s.to_f32();
        }
        done += part;
    }
    len
}

/// Divides each block by its maximum: full blocks by the reciprocal, as the peer does.
#[inline(always)]
fn scale_body(values: &mut [f32], blocksize: usize, maxima: &[u32]) {
    for (block, &max) in values.chunks_mut(blocksize).zip(maxima) {
        let max = f32::from_bits(max).max(TINY);
        if block.len() == blocksize {
            let inverse = 1.0 / max;
            block.iter_mut().for_each(|v| *v = (*v * inverse).clamp(-1.0, 1.0));
        } else {
            block.iter_mut().for_each(|v| *v = (*v / max).clamp(-1.0, 1.0));
        }
    }
}

math::dispatch_simd!(fn scale(values: &mut [f32], blocksize: usize, maxima: &[u32]) = scale_body);

/// Codes of scaled values, two to a byte; `values` is readable to a multiple of 16. An ascending
/// code book needs no lookup.
#[inline(always)]
fn encode_body(values: &[f32], bytes: &mut [u8], thresholds: &Thresholds) {
    let ascending = thresholds.order.is_sorted();
    let (vectors, _) = values.as_chunks::<LANES>();
    for (lanes, out) in vectors.iter().zip(bytes.chunks_mut(LANES / 2)) {
        let mut rank = [0u32; LANES];
        for bound in thresholds.bounds {
            for l in 0..LANES {
                rank[l] += (lanes[l] > bound) as u32;
            }
        }
        if !ascending {
            rank = rank.map(|r| thresholds.order[r as usize & 15] as u32);
        }
        let pairs: [u8; LANES / 2] =
            std::array::from_fn(|i| (rank[2 * i] << 4 | rank[2 * i + 1]) as u8);
        out.copy_from_slice(&pairs[..out.len()]);
    }
}

math::dispatch_simd!(fn encode(values: &[f32], bytes: &mut [u8], thresholds: &Thresholds) = encode_body);

/// Mean in f32: the sum of `lane_sum` over lanes of 8, or of 1 below 8 values, then the values
/// left over, then the lanes in order.
pub(crate) fn mean(values: &[f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let sum = if values.len() < 8 { sum_lanes::<1>(values) } else { sum_lanes::<8>(values) };
    sum / values.len() as f32
}

fn sum_lanes<const W: usize>(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<W>();
    let lanes = lane_sum(vectors);
    let left_over = rest.iter().fold(0.0, |sum, v| sum + v);
    lanes.iter().fold(left_over, |sum, v| sum + v)
}

/// Vectors go to 4 accumulators in turn. Every `1 << power` rounds an accumulator is emptied into
/// the next of 4 levels, so that only sums of like size are added.
fn lane_sum<const W: usize>(vectors: &[[f32; W]]) -> [f32; W] {
    const LEVELS: usize = 4;
    let (rounds, rest) = vectors.as_chunks::<4>();
    let power = (ceil_log2(rounds.len()) / LEVELS).max(4);
    let mut level = [[[0.0; W]; 4]; LEVELS];
    for (i, round) in rounds.iter().enumerate() {
        (0..4).for_each(|k| add(&mut level[0][k], &round[k]));
        let done = i + 1;
        if done % (1 << power) != 0 {
            continue;
        }
        for j in 1..LEVELS {
            let below = std::mem::replace(&mut level[j - 1], [[0.0; W]; 4]);
            (0..4).for_each(|k| add(&mut level[j][k], &below[k]));
            if !(done >> (j * power)).is_multiple_of(1 << power) {
                break;
            }
        }
    }
    let [mut total, upper @ ..] = level;
    for sums in &upper {
        (0..4).for_each(|k| add(&mut total[k], &sums[k]));
    }
    let [mut sum, others @ ..] = total;
    rest.iter().for_each(|vector| add(&mut sum, vector));
    others.iter().for_each(|other| add(&mut sum, other));
    sum
}

fn add<const W: usize>(sum: &mut [f32; W], term: &[f32; W]) {
    sum.iter_mut().zip(term).for_each(|(s, t)| *s += t);
}

fn ceil_log2(n: usize) -> usize {
    if n <= 2 { 1 } else { (n - 1).ilog2() as usize + 1 }
}

/// The mean, and 8-bit codes of absmax − mean in blocks of 256.
pub(crate) fn quantize_absmax(a: Nf4QuantizeAbsmax<'_>) {
    let (absmax, mut codes, mut nested) = (a.absmax.to_vec(), a.codes, a.nested);
    let offset = mean(&absmax);
    *a.offset = offset;
    let table: [f32; 256] = std::array::from_fn(|i| a.table.at(i));
    let bounds = Bounds::new(&table);
    for (block, values) in absmax.chunks(NESTED_BLOCKSIZE).enumerate() {
        let centered = values.iter().map(|v| v - offset);
        let max = centered.clone().fold(0f32, |max, v| max.max(v.abs()));
        nested.set(block, max);
        let inverse = 1.0 / max;
        for (i, v) in centered.enumerate() {
            let code = if max == 0.0 { 0 } else { grid_code(v * inverse, &bounds) };
            codes.set(block * NESTED_BLOCKSIZE + i, code);
        }
    }
}

/// Code of the grid point next to `scaled`. NaN, which a subnormal maximum can cause (0 · ∞),
/// goes to the first point.
fn grid_code(scaled: f32, bounds: &Bounds) -> u8 {
    const LAST: f32 = 65535.0;
    let point = ((scaled.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add(LAST, 0.5) as u32;
    let value = 2.0 * point as f32 / LAST - 1.0;
    bounds.code(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means of torch 2.4.1 on one thread; 8200 values and more need the second level, 262144 a
    /// wider first one.
    #[test]
    fn mean_has_the_bits_of_torch() {
        let value = |i: u64| ((i * 7919) % 10007) as f32 / 16384.0 * 1.000_000_1 + 0.1;
        for (n, bits) in [
            (1, 0x3DCC_CCCD),
            (3, 0x3EC2_6DE0),
            (4, 0x3EBB_DD35),
            (7, 0x3ED4_D7C7),
            (8, 0x3ED5_B936),
            (37, 0x3ED4_17F7),
            (100, 0x3ED0_11AF),
            (1000, 0x3ECF_ABB0),
            (8200, 0x3ECF_8EA2),
            (20_000, 0x3ECF_8B8F),
            (32_767, 0x3ECF_8C3A),
            (262_144, 0x3ECF_8B30),
        ] {
            let values: Vec<f32> = (0..n).map(value).collect();
            assert_eq!(mean(&values).to_bits(), bits, "{n} values");
        }
        assert_eq!(mean(&[]), 0.0);
    }
}
