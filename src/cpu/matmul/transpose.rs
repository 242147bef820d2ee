//! Rows of a weight become lanes of a panel. A product of one row does nothing else with most of its
//! time, so tiles are transposed in registers: 16 x 16 with AVX-512, 8 x 8 with AVX2. A tile is as
//! long as a cache line, which is read once: rows that lie a power of two apart share a few lines of the
//! first-level cache, which would not keep it for a second reading.

use super::tile::{Lane, WIDTH};

/// Rows that are packed side by side.
pub(crate) const ROWS: usize = 16;

/// `panel[step · WIDTH + lane + i] = from[i][step]` from a step on, one after another.
pub(crate) fn each<A: Lane>(from: &[&[A]; ROWS], lane: usize, step: usize, panel: &mut [A]) {
    for (step, lanes) in panel.chunks_exact_mut(WIDTH).enumerate().skip(step) {
        for (to, row) in lanes[lane..][..ROWS].iter_mut().zip(from) {
            *to = row[step];
        }
    }
}

/// The same of f32, from the first step on.
pub(crate) fn f32(from: &[&[f32]; ROWS], lane: usize, panel: &mut [f32]) {
    let steps = panel.len() / WIDTH;
    assert!(lane + ROWS <= WIDTH && from.iter().all(|row| row.len() == steps));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    {
        done = steps / ROWS * ROWS;
        let rows = from.map(|row| row.as_ptr());
        let to = panel[lane..].as_mut_ptr();
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected; rows and panel hold `done` steps, checked above.
            unsafe { x86::tiles_avx512(&rows, done, to) };
        } else if std::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            unsafe { x86::tiles_avx2(&rows, done, to) };
        } else {
            done = 0;
        }
    }
    each(from, lane, done, panel);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ROWS, WIDTH};

    /// `to[step · WIDTH + i] = rows[i][step]` for `steps` steps, a multiple of 16.
    ///
    /// # Safety
    /// The rows hold so many elements, and `to` so many groups of [`WIDTH`] but for what lies behind
    /// the last 16 elements.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn tiles_avx512(rows: &[*const f32; ROWS], steps: usize, to: *mut f32) {
        for step in (0..steps).step_by(16) {
            let mut tile = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                // SAFETY: the caller's rows hold 16 more elements.
                tile[i] = unsafe { _mm512_loadu_ps(rows[i].add(step)) };
            }
            let tile = transposed_16(tile);
            for i in 0..16 {
                // SAFETY: the caller's panel holds 16 more steps.
                unsafe { _mm512_storeu_ps(to.add((step + i) * WIDTH), tile[i]) };
            }
        }
    }

    /// Pairs, then fours within 128 bits, then the 128-bit parts twice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed_16(rows: [__m512; 16]) -> [__m512; 16] {
        let (mut a, mut b) = (rows, rows);
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..4 {
            a[4 * i] = _mm512_shuffle_ps::<0b0100_0100>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 1] = _mm512_shuffle_ps::<0b1110_1110>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 2] = _mm512_shuffle_ps::<0b0100_0100>(b[4 * i + 1], b[4 * i + 3]);
            a[4 * i + 3] = _mm512_shuffle_ps::<0b1110_1110>(b[4 * i + 1], b[4 * i + 3]);
        }
        // a[4g + j] holds rows 4g.. of steps j, 4 + j, 8 + j, 12 + j.
        for j in 0..4 {
            b[j] = _mm512_shuffle_f32x4::<0b1000_1000>(a[j], a[4 + j]);
            b[4 + j] = _mm512_shuffle_f32x4::<0b1101_1101>(a[j], a[4 + j]);
            b[8 + j] = _mm512_shuffle_f32x4::<0b1000_1000>(a[8 + j], a[12 + j]);
            b[12 + j] = _mm512_shuffle_f32x4::<0b1101_1101>(a[8 + j], a[12 + j]);
        }
        for j in 0..4 {
            a[j] = _mm512_shuffle_f32x4::<0b1000_1000>(b[j], b[8 + j]);
            a[8 + j] = _mm512_shuffle_f32x4::<0b1101_1101>(b[j], b[8 + j]);
            a[4 + j] = _mm512_shuffle_f32x4::<0b1000_1000>(b[4 + j], b[12 + j]);
            a[12 + j] = _mm512_shuffle_f32x4::<0b1101_1101>(b[4 + j], b[12 + j]);
        }
        a
    }

    /// As [`tiles_avx512`], in tiles of 8 x 8.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn tiles_avx2(rows: &[*const f32; ROWS], steps: usize, to: *mut f32) {
        for step in (0..steps).step_by(8) {
            for half in [0, 8] {
                let mut tile = [_mm256_setzero_ps(); 8];
                for i in 0..8 {
                    // SAFETY: the caller's rows hold 8 more elements.
                    tile[i] = unsafe { _mm256_loadu_ps(rows[half + i].add(step)) };
                }
                let tile = transposed_8(tile);
                for i in 0..8 {
                    // SAFETY: the caller's panel holds 8 more steps.
                    unsafe { _mm256_storeu_ps(to.add((step + i) * WIDTH + half), tile[i]) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn transposed_8(rows: [__m256; 8]) -> [__m256; 8] {
        let (mut a, mut b) = (rows, rows);
        for i in 0..4 {
            b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..2 {
            a[4 * i] = _mm256_shuffle_ps::<0b0100_0100>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 1] = _mm256_shuffle_ps::<0b1110_1110>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 2] = _mm256_shuffle_ps::<0b0100_0100>(b[4 * i + 1], b[4 * i + 3]);
            a[4 * i + 3] = _mm256_shuffle_ps::<0b1110_1110>(b[4 * i + 1], b[4 * i + 3]);
        }
        for j in 0..4 {
            b[j] = _mm256_permute2f128_ps::<0x20>(a[j], a[4 + j]);
            b[4 + j] = _mm256_permute2f128_ps::<0x31>(a[j], a[4 + j]);
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_transposes() {
        for steps in [0usize, 1, 15, 16, 17, 40, 64] {
            let data: Vec<f32> = (0..ROWS * steps).map(|i| i as f32).collect();
            let from = std::array::from_fn(|i| &data[i * steps..][..steps]);
            let check = |panel: &[f32], lane: usize, steps: usize| {
                for (i, row) in from.iter().enumerate() {
                    for step in 0..steps {
                        assert_eq!(panel[step * WIDTH + lane + i], row[step], "{i} {step}");
                    }
                }
            };
            for lane in [0, 16] {
                let mut panel = vec![-1.0; steps * WIDTH];
                f32(&from, lane, &mut panel);
                check(&panel, lane, steps);
                #[cfg(target_arch = "x86_64")]
                if std::is_x86_feature_detected!("avx2") && steps > 0 {
                    let (mut panel, whole) = (vec![-1.0; steps * WIDTH], steps / 16 * 16);
                    // SAFETY: the feature was detected; rows and panel hold as many steps.
                    unsafe {
                        let to = panel[lane..].as_mut_ptr();
                        x86::tiles_avx2(&from.map(|row| row.as_ptr()), whole, to);
                    }
                    check(&panel, lane, whole);
                }
            }
        }
    }
}
