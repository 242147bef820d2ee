//! Rows of a weight become lanes of a panel. A product of one row does nothing else with most of its
//! time, so tiles are transposed in registers: 16 x 16 with AVX-512, 8 x 8 with AVX2. A tile is as
//! long as a cache line, which is read once: rows that lie a power of two apart share a few lines of the
//! first-level cache, which would not keep it for a second reading.

use super::tile::{Accumulator, WIDTH};

/// Rows that are packed side by side.
pub(crate) const ROWS: usize = 16;

/// `panel[step · WIDTH + lane + i] = from[i][step]` from a step on, one after another.
pub(crate) fn each<A: Accumulator>(from: &[&[A]; ROWS], lane: usize, step: usize, panel: &mut [A]) {
    for (step, lanes) in panel.chunks_exact_mut(WIDTH).enumerate().skip(step) {
        for (to, row) in lanes[lane..][..ROWS].iter_mut().zip(from) {
            *to = row[step];
        }
    }
}

/// [`each`] for f32 from the first step on, with vectors where the machine has them.
pub(crate) fn f32(from: &[&[f32]; ROWS], lane: usize, panel: &mut [f32]) {
    let steps = panel.len() / WIDTH;
    assert!(lane + ROWS <= WIDTH && from.iter().all(|row| row.len() == steps));
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    #[cfg(target_arch = "x86_64")]
    let done = {
        let whole = steps / ROWS * ROWS;
        let rows = from.map(|row| row.as_ptr());
        let to = panel.as_mut_ptr().wrapping_add(lane);
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was detected; rows and panel hold `whole` steps, checked above.
            unsafe { x86::tiles_avx512(&rows, whole, to) };
            whole
        } else if std::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            unsafe { x86::tiles_avx2(&rows, whole, to) };
            whole
        } else {
            0
        }
    };
    each(from, lane, done, panel);
}

/// True if [`carry_f32`] has vectors to work with.
pub(crate) fn carries_f32() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `sums[i] = fma(x[step], from[i][step], sums[i])` from a step on, in order.
pub(crate) fn carry_each<A: Accumulator>(
    from: &[&[A]; WIDTH],
    step: usize,
    x: &[A],
    sums: &mut [A],
) {
    for (step, x) in x.iter().enumerate().skip(step) {
        for (sum, row) in sums.iter_mut().zip(from) {
            *sum = x.fma(row[step], *sum);
        }
    }
}

/// [`carry_each`] for f32 from the first step on: tiles are multiplied in the registers that they were transposed in.
pub(crate) fn carry_f32(from: &[&[f32]; WIDTH], x: &[f32], sums: &mut [f32]) {
    assert!(sums.len() >= WIDTH && from.iter().all(|row| row.len() == x.len()));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if carries_f32() {
        done = x.len() / ROWS * ROWS;
        let rows = from.map(|row| row.as_ptr());
        // SAFETY: the features were detected; rows, x and sums are as long as checked above.
        unsafe {
            match std::is_x86_feature_detected!("avx512f") {
                true => x86::carry_avx512(&rows, &x[..done], sums.as_mut_ptr()),
                false => x86::carry_avx2(&rows, &x[..done], sums.as_mut_ptr()),
            }
        }
    }
    carry_each(from, done, x, sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ROWS, WIDTH};
    use crate::ops::support::prefetch::fetch;

    /// Steps that are fetched ahead of their tile: 16 rows are more streams than a processor follows.
    const AHEAD: usize = 64;

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
                fetch(rows[i].wrapping_add(step + AHEAD), 1);
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

    /// 4 steps of 16 rows at a time: loads bring rows i, 4 + i, 8 + i and 12 + i into one vector, which
    /// leaves 4 x 4 transpositions within 128 bits. Whole tiles would need more registers than there
    /// are. Two sets of 16 rows take turns, as the sums of one wait for each other.
    ///
    /// # Safety
    /// The rows hold as many elements as `x`, a multiple of 16; `sums` holds one for each row.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn carry_avx512(rows: &[*const f32; WIDTH], x: &[f32], sums: *mut f32) {
        // SAFETY: the caller's sums.
        let mut c = unsafe { [_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(16))] };
        for (block, x) in x.as_chunks::<4>().0.iter().enumerate() {
            for (half, c) in c.iter_mut().enumerate() {
                let mut v = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    for part in 0..4 {
                        let row = rows[16 * half + 4 * part + i].wrapping_add(4 * block);
                        // SAFETY: the caller's rows hold 4 more elements.
                        let four = _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(row) });
                        v[i] = _mm512_mask_mov_ps(v[i], 0xF << (4 * part), four);
                    }
                }
                let (a, b) = (_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpacklo_ps(v[2], v[3]));
                let (d, e) = (_mm512_unpackhi_ps(v[0], v[1]), _mm512_unpackhi_ps(v[2], v[3]));
                let steps = [
                    _mm512_shuffle_ps::<0b0100_0100>(a, b),
                    _mm512_shuffle_ps::<0b1110_1110>(a, b),
                    _mm512_shuffle_ps::<0b0100_0100>(d, e),
                    _mm512_shuffle_ps::<0b1110_1110>(d, e),
                ];
                for i in 0..4 {
                    *c = _mm512_fmadd_ps(_mm512_set1_ps(x[i]), steps[i], *c);
                }
            }
        }
        // SAFETY: the caller's sums.
        unsafe {
            _mm512_storeu_ps(sums, c[0]);
            _mm512_storeu_ps(sums.add(16), c[1]);
        }
    }

    /// As [`carry_avx512`], in four tiles of 8 rows.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn carry_avx2(rows: &[*const f32; WIDTH], x: &[f32], sums: *mut f32) {
        let mut c = [_mm256_setzero_ps(); 4];
        for (i, c) in c.iter_mut().enumerate() {
            // SAFETY: the caller's sums.
            *c = unsafe { _mm256_loadu_ps(sums.add(8 * i)) };
        }
        for (block, x) in x.as_chunks::<8>().0.iter().enumerate() {
            for (part, c) in c.iter_mut().enumerate() {
                let mut tile = [_mm256_setzero_ps(); 8];
                for i in 0..8 {
                    let row = rows[8 * part + i].wrapping_add(8 * block);
                    // SAFETY: the caller's rows hold 8 more elements.
                    tile[i] = unsafe { _mm256_loadu_ps(row) };
                }
                let tile = transposed_8(tile);
                for i in 0..8 {
                    *c = _mm256_fmadd_ps(_mm256_set1_ps(x[i]), tile[i], *c);
                }
            }
        }
        for (i, c) in c.into_iter().enumerate() {
            // SAFETY: the caller's sums.
            unsafe { _mm256_storeu_ps(sums.add(8 * i), c) };
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
                    fetch(rows[half + i].wrapping_add(step + AHEAD), 1);
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

    /// Chains in order, to the last bit, whatever the vectors.
    #[test]
    fn every_path_carries_the_same_chains() {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0;
        for steps in [0usize, 1, 15, 16, 40, 64] {
            let data: Vec<f32> = (0..WIDTH * steps).map(value).collect();
            let x: Vec<f32> = (0..steps).map(|i| value(i * 31 + 5)).collect();
            let from = std::array::from_fn(|i| &data[i * steps..][..steps]);
            let start: Vec<f32> = (0..WIDTH).map(|i| value(i + 77)).collect();
            let (mut want, mut got) = (start.clone(), start.clone());
            carry_each(&from, 0, &x, &mut want);
            carry_f32(&from, &x, &mut got);
            assert_eq!(got, want, "{steps}");
            #[cfg(target_arch = "x86_64")]
            if carries_f32() {
                let (mut got, whole) = (start, steps / 16 * 16);
                // SAFETY: the features were detected; rows and sums are as long as they should be.
                unsafe {
                    let rows = from.map(|row| row.as_ptr());
                    x86::carry_avx2(&rows, &x[..whole], got.as_mut_ptr());
                }
                carry_each(&from, whole, &x, &mut got);
                assert_eq!(got, want, "{steps}");
            }
        }
    }

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
                        let to = panel.as_mut_ptr().wrapping_add(lane);
                        x86::tiles_avx2(&from.map(|row| row.as_ptr()), whole, to);
                    }
                    check(&panel, lane, whole);
                }
            }
        }
    }
}
