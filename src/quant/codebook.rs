//! Code books: the two 4-bit ones and the 8-bit dynamic maps, bit for bit those of bitsandbytes.

use std::sync::LazyLock;

use super::QuantType;

/// Normal-float 4 in index order, ascending. Quantiles of the normal distribution, scaled to
/// [-1, 1], with an exact zero (Dettmers et al. 2023, arXiv:2305.14314, appendix E).
pub const NF4_CODE: [f32; 16] = floats([
    0xBF80_0000,
    0xBF32_39B1,
    0xBF06_6B30,
    0xBECA_32A0,
    0xBE91_A24D,
    0xBE3D_353F,
    0xBDBA_7871,
    0,
    0x3DA2_FAFF,
    0x3E24_CAE3,
    0x3E7C_04DD,
    0x3EAD_033A,
    0x3EE1_A4B8,
    0x3F10_07AB,
    0x3F39_13B3,
    0x3F80_0000,
]);

/// bitsandbytes' 4-bit float in its own index order: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4, then the
/// same negated. Index 8 is +0.
pub const FP4_CODE: [f32; 16] = floats([
    0,
    0x3BAA_AAAB,
    0x3F2A_AAAB,
    0x3F80_0000,
    0x3EAA_AAAB,
    0x3F00_0000,
    0x3E2A_AAAB,
    0x3E80_0000,
    0,
    0xBBAA_AAAB,
    0xBF2A_AAAB,
    0xBF80_0000,
    0xBEAA_AAAB,
    0xBF00_0000,
    0xBE2A_AAAB,
    0xBE80_0000,
]);

const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// FP4 indices in ascending order of value. A value in (0, 1/384] gets code 8, one in (-1/384, 0]
/// code 0; both decode to zero.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

/// What the quantiser needs: a value that exceeds `r` of the bounds has the code `order[r]`.
#[derive(Clone, Copy)]
pub(crate) struct Thresholds {
    /// f32 midpoints of neighbouring codes, ascending.
    pub bounds: [f32; 15],
    /// Code of each rank.
    pub order: [u8; 16],
}

impl QuantType {
    /// The values of the codes, in index order.
    pub const fn code(self) -> &'static [f32; 16] {
        match self {
            QuantType::Nf4 => &NF4_CODE,
            QuantType::Fp4 => &FP4_CODE,
        }
    }

    /// Name in checkpoints.
    pub const fn name(self) -> &'static str {
        match self {
            QuantType::Nf4 => "nf4",
            QuantType::Fp4 => "fp4",
        }
    }

    pub(crate) const fn thresholds(self) -> Thresholds {
        let order = match self {
            QuantType::Nf4 => NF4_ORDER,
            QuantType::Fp4 => FP4_ORDER,
        };
        let code = self.code();
        let mut bounds = [0.0; 15];
        let mut i = 0;
        while i < 15 {
            bounds[i] = (code[order[i] as usize] + code[order[i + 1] as usize]) / 2.0;
            i += 1;
        }
        Thresholds { bounds, order }
    }
}

const fn floats(bits: [u32; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = f32::from_bits(bits[i]);
        i += 1;
    }
    out
}

/// The 8-bit dynamic map (Dettmers 2016, arXiv:1511.04561): seven decades, each with twice as many
/// points as the one below, plus 0 and 1; ascending. `signed` has 127 negative values and 0 at
/// index 127; unsigned has 0 at index 0 and twice the points per decade.
pub fn dynamic_map(signed: bool) -> &'static [f32; 256] {
    static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| build_dynamic_map(true));
    static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| build_dynamic_map(false));
    if signed { &SIGNED } else { &UNSIGNED }
}

fn build_dynamic_map(signed: bool) -> [f32; 256] {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0; 256];
    map[1] = 1.0;
    let mut len = 2;
    for (i, decade) in DECADES.into_iter().enumerate() {
        let intervals = 1usize << (i + !signed as usize);
        for j in 0..intervals {
            let (left, right) = (tenth_to_one(j, intervals), tenth_to_one(j + 1, intervals));
            let point = decade * ((left + right) / 2.0);
            map[len] = point;
            len += 1;
            if signed {
                map[len] = -point;
                len += 1;
            }
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// Point `i` of `intervals + 1` evenly spaced from 0.1 to 1. The upper half counts down from 1 and
/// both halves fuse multiply and add; two roundings would change 42 of the 256 map entries.
fn tenth_to_one(i: usize, intervals: usize) -> f32 {
    let step = (1.0f32 - 0.1) / intervals as f32;
    if i < intervals.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((intervals - i) as f32, 1.0)
    }
}

/// f32 midpoints of neighbouring entries of an ascending 8-bit table.
pub(crate) fn midpoints(table: &[f32; 256]) -> [f32; 255] {
    std::array::from_fn(|i| (table[i] + table[i + 1]) * 0.5)
}
