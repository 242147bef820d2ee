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

/// What the quantizer needs: a value that exceeds `r` of the bounds has the code `order[r]`.
#[derive(Clone, Copy)]
pub(crate) struct Thresholds {
    /// f32 midpoints of neighboring codes, ascending.
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

/// The upper bounds of the 256 codes of an ascending table: a value has the code `c` if it exceeds
/// exactly `c` of them. f32 midpoints of neighbors; the last is infinite.
pub(crate) struct Bounds([f32; 256]);

impl Bounds {
    pub(crate) fn new(table: &[f32; 256]) -> Bounds {
        let midpoint = |i: usize| (table[i] + table[i + 1]) * 0.5;
        Bounds(std::array::from_fn(|i| if i < 255 { midpoint(i) } else { f32::INFINITY }))
    }

    /// Number of bounds below `x`, in eight halvings without a branch; 0 for NaN.
    #[inline(always)]
    pub(crate) fn code(&self, x: f32) -> u8 {
        let mut below = 0usize;
        for half in [128, 64, 32, 16, 8, 4, 2, 1] {
            below += if self.0[(below + half - 1) & 255] < x { half } else { 0 };
        }
        below as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_books_are_those_of_bitsandbytes() {
        let hex = |table: &[f32]| table.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let signed = dynamic_map(true);
        assert_eq!((signed[127], signed[255], signed[0]), (0.0, 1.0, -0.992_968_74));
        assert!(
            (0..127).all(|j| signed[j] == -signed[254 - j]),
            "the two halves mirror each other"
        );
        assert_eq!(hex(&signed[128..]), SIGNED_UPPER_HALF);
        for map in [signed, dynamic_map(false)] {
            assert!(map.windows(2).all(|w| w[0] < w[1]));
        }
        assert_eq!((dynamic_map(false)[0], dynamic_map(false)[255]), (0.0, 1.0));
        assert_eq!(NF4_CODE[1], -0.696_192_8);
        assert_eq!(FP4_CODE[8].to_bits(), 0);
    }

    /// SHA-256 of the little-endian bytes.
    #[test]
    fn code_books_have_the_published_checksums() {
        use sha2::{Digest, Sha256};
        let sum = |table: &[f32]| {
            let bytes: Vec<u8> = table.iter().flat_map(|v| v.to_le_bytes()).collect();
            Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(
            sum(&NF4_CODE),
            "8501941daa1b8a90ad1bbfeb632e5101b5dddbc4bb52d6e55abcfd777e60c06a"
        );
        assert_eq!(
            sum(dynamic_map(true)),
            "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
        );
        assert_eq!(
            sum(dynamic_map(false)),
            "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398"
        );
    }

    /// f32 bits of the signed dynamic map from index 128 on.
    #[rustfmt::skip]
    const SIGNED_UPPER_HALF: [u32; 128] = [
        0x3513A3B7, 0x365A1A94, 0x370205FF, 0x37B24206, 0x38378034, 0x388AEFB3, 0x38BA1F4B, 0x3923D70B,
        0x398CE705, 0x39C7E283, 0x3A016F01, 0x3A1EECC1, 0x3A3C6A80, 0x3A59E83E, 0x3A7765FF, 0x3AA7EF9D,
        0x3AF1A9FC, 0x3B1DB22D, 0x3B428F5C, 0x3B676C8A, 0x3B8624DD, 0x3B989374, 0x3BAB020D, 0x3BBD70A4,
        0x3BCFDF3B, 0x3BE24DD3, 0x3BF4BC6A, 0x3C039581, 0x3C0CCCCD, 0x3C160418, 0x3C1F3B64, 0x3C3AE148,
        0x3C68F5C3, 0x3C8B851F, 0x3CA28F5D, 0x3CB9999A, 0x3CD0A3D7, 0x3CE7AE15, 0x3CFEB852, 0x3D0AE148,
        0x3D166667, 0x3D21EB85, 0x3D2D70A3, 0x3D38F5C3, 0x3D447AE1, 0x3D500000, 0x3D5B851F, 0x3D670A3D,
        0x3D728F5D, 0x3D7E147B, 0x3D84CCCD, 0x3D8A8F5D, 0x3D9051EB, 0x3D96147B, 0x3D9BD70A, 0x3DA1999A,
        0x3DA75C2A, 0x3DAD1EB8, 0x3DB2E148, 0x3DB8A3D7, 0x3DBE6667, 0x3DC428F7, 0x3DC9EB85, 0x3DDB3334,
        0x3DF80000, 0x3E0A6666, 0x3E18CCCD, 0x3E273333, 0x3E35999A, 0x3E440000, 0x3E526666, 0x3E60CCCD,
        0x3E6F3333, 0x3E7D9999, 0x3E860000, 0x3E8D3334, 0x3E946666, 0x3E9B999A, 0x3EA2CCCC, 0x3EAA0000,
        0x3EB13333, 0x3EB86666, 0x3EBF999A, 0x3EC6CCCC, 0x3ECE0000, 0x3ED53333, 0x3EDC6666, 0x3EE3999A,
        0x3EEACCCC, 0x3EF20000, 0x3EF93332, 0x3F003333, 0x3F03CCCC, 0x3F076666, 0x3F0B0000, 0x3F0E999A,
        0x3F123334, 0x3F15CCCD, 0x3F196666, 0x3F1D0000, 0x3F20999A, 0x3F243334, 0x3F27CCCD, 0x3F2B6666,
        0x3F2F0000, 0x3F32999A, 0x3F363334, 0x3F39CCCD, 0x3F3D6666, 0x3F410000, 0x3F44999A, 0x3F483333,
        0x3F4BCCCD, 0x3F4F6666, 0x3F530000, 0x3F56999A, 0x3F5A3333, 0x3F5DCCCD, 0x3F616666, 0x3F650000,
        0x3F68999A, 0x3F6C3333, 0x3F6FCCCD, 0x3F736666, 0x3F770000, 0x3F7A999A, 0x3F7E3333, 0x3F800000,
    ];
}
