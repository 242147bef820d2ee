//! Lanes in vectors of 512 and 256 bits. Written out: from loops over arrays the compiler made scalar code in
//! one build and vectors in another.

use std::arch::x86_64::*;

use super::{COLUMNS, HEIGHT, LANES, Pair, QUAD, Stretch};
use crate::ops::products::gemm_cpu::tile::Accumulator;

/// Bits of the vectors that this machine has, 512 or 256, if it has them with multiply-adds.
pub(super) fn vectors() -> Option<usize> {
    use std::is_x86_feature_detected as has;
    if has!("avx512f") {
        return Some(512);
    }
    (has!("avx2") && has!("fma") && has!("f16c")).then_some(256)
}

/// A vector register.
pub(crate) trait Vector: Copy {
    /// Its elements.
    type Element: Copy;
    /// How many.
    const LEN: usize;
    /// # Safety
    /// The machine has these vectors.
    unsafe fn zero() -> Self;
    /// # Safety
    /// As above, and `from` is so many readable elements.
    unsafe fn load(from: *const Self::Element) -> Self;
    /// # Safety
    /// As above, and `to` is so many writable elements.
    unsafe fn store(self, to: *mut Self::Element);
    /// `self · b + c`, rounded once.
    ///
    /// # Safety
    /// The machine has these vectors.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
}

macro_rules! vector {
    ($vector:ty, $element:ty, $len:literal, $zero:ident, $load:ident, $store:ident, $fma:ident) => {
        impl Vector for $vector {
            type Element = $element;
            const LEN: usize = $len;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller's.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const $element) -> Self {
                // SAFETY: the caller's.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $element) {
                // SAFETY: the caller's.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn fma(self, b: Self, c: Self) -> Self {
                // SAFETY: the caller's.
                unsafe { $fma(self, b, c) }
            }
        }
    };
}
vector!(__m512, f32, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);
vector!(__m256, f32, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);
vector!(__m512d, f64, 8, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_fmadd_pd);
vector!(__m256d, f64, 4, _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_fmadd_pd);

/// A stretch as the loops see it.
struct Raw<A> {
    x: *const A,
    w: [*const A; COLUMNS],
    apart: usize,
    steps: usize,
    lanes: *mut A,
    pitch: usize,
    fresh: bool,
}

impl<A> Raw<A> {
    /// Rows `first ..` of a stretch whose lengths were compared.
    fn of(stretch: &mut Stretch<'_, A>, first: usize, steps: usize) -> Raw<A> {
        Raw {
            x: stretch.x[first * stretch.apart..].as_ptr(),
            apart: stretch.apart,
            w: stretch.w.map(|w| w.as_ptr()),
            steps,
            lanes: stretch.lanes[first * stretch.pitch * LANES..].as_mut_ptr(),
            pitch: stretch.pitch,
            fresh: stretch.fresh,
        }
    }
}

/// All chains of `R` rows, as many lanes at a time as a vector holds.
///
/// # Safety
/// The machine has the vectors, and the stretch is as large as [`Stretch::steps`] asks.
#[inline(always)]
unsafe fn carry_body<V: Vector, const R: usize>(raw: &Raw<V::Element>) {
    let Raw { x, apart, w, steps, lanes, pitch, fresh } = *raw;
    // SAFETY: the caller's.
    unsafe {
        for from in (0..LANES).step_by(V::LEN) {
            let mut c = [[V::zero(); COLUMNS]; R];
            if !fresh {
                for i in 0..R {
                    for j in 0..COLUMNS {
                        c[i][j] = V::load(lanes.add((i * pitch + j) * LANES + from));
                    }
                }
            }
            let mut step = from;
            while step < steps {
                let mut a = [V::zero(); R];
                for i in 0..R {
                    a[i] = V::load(x.add(i * apart + step));
                }
                for j in 0..COLUMNS {
                    let b = V::load(w[j].add(step));
                    for i in 0..R {
                        c[i][j] = a[i].fma(b, c[i][j]);
                    }
                }
                step += LANES;
            }
            for i in 0..R {
                for j in 0..COLUMNS {
                    c[i][j].store(lanes.add((i * pitch + j) * LANES + from));
                }
            }
        }
    }
}

/// # Safety
/// As [`carry_body`].
// One function per height: in a function that holds several, the compiler may keep accumulators in memory.
#[target_feature(enable = "avx512f")]
unsafe fn rows_512<A: Accumulator, const R: usize>(raw: &Raw<A>) {
    // SAFETY: the caller's.
    unsafe { carry_body::<A::Wide, R>(raw) }
}

/// # Safety
/// As [`carry_body`].
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_256<A: Accumulator, const R: usize>(raw: &Raw<A>) {
    // SAFETY: the caller's.
    unsafe { carry_body::<A::Narrow, R>(raw) }
}

/// # Safety
/// The machine has AVX-512; steps are the stretch's.
pub(super) unsafe fn carry_512<A: Accumulator>(mut stretch: Stretch<'_, A>, steps: usize) {
    let raw = Raw::of(&mut stretch, 0, steps);
    // SAFETY: the caller's.
    unsafe {
        match stretch.height {
            1 => rows_512::<A, 1>(&raw),
            2 => rows_512::<A, 2>(&raw),
            3 => rows_512::<A, 3>(&raw),
            _ => rows_512::<A, 4>(&raw),
        }
    }
}

/// Two rows at a time: 12 of 16 registers.
///
/// # Safety
/// The machine has AVX2 and FMA; steps are the stretch's.
pub(super) unsafe fn carry_256<A: Accumulator>(mut stretch: Stretch<'_, A>, steps: usize) {
    for first in (0..stretch.height).step_by(2) {
        let raw = Raw::of(&mut stretch, first, steps);
        // SAFETY: the caller's.
        unsafe {
            match stretch.height - first {
                1 => rows_256::<A, 1>(&raw),
                _ => rows_256::<A, 2>(&raw),
            }
        }
    }
}

/// Stamps the loop over one row whose counterparts are 16-bit numbers, widened on the way.
macro_rules! carry_narrow {
    ($name:ident, $features:literal, $vector:ty, $widen:ident) => {
        /// # Safety
        /// The machine has the features; rows hold as many elements as `x`, whole vectors of 16 lanes, and
        /// `lanes` one vector for each of them.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(x: &[f32], w: [*const u16; COLUMNS], lanes: &mut [f32]) {
            const PARTS: usize = LANES / <$vector>::LEN;
            let (x, steps, lanes) = (x.as_ptr(), x.len(), lanes.as_mut_ptr());
            // SAFETY: the caller's.
            unsafe {
                let mut c = [[<$vector>::zero(); PARTS]; COLUMNS];
                for j in 0..COLUMNS {
                    for part in 0..PARTS {
                        c[j][part] = <$vector>::load(lanes.add(j * LANES + part * <$vector>::LEN));
                    }
                }
                for step in (0..steps).step_by(LANES) {
                    for part in 0..PARTS {
                        let at = step + part * <$vector>::LEN;
                        let a = <$vector>::load(x.add(at));
                        for j in 0..COLUMNS {
                            c[j][part] = a.fma($widen(w[j].add(at)), c[j][part]);
                        }
                    }
                }
                for j in 0..COLUMNS {
                    for part in 0..PARTS {
                        c[j][part].store(lanes.add(j * LANES + part * <$vector>::LEN));
                    }
                }
            }
        }
    };
}
carry_narrow!(carry_bf16_512, "avx512f,avx2,fma", __m512, bf16_512);
carry_narrow!(carry_f16_512, "avx512f,avx2,fma", __m512, f16_512);
carry_narrow!(carry_bf16_256, "avx2,fma,f16c", __m256, bf16_256);
carry_narrow!(carry_f16_256, "avx2,fma,f16c", __m256, f16_256);

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn bf16_512(from: *const u16) -> __m512 {
    // SAFETY: the caller's 16 elements.
    let words = unsafe { _mm256_loadu_si256(from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn f16_512(from: *const u16) -> __m512 {
    // SAFETY: the caller's 16 elements.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bf16_256(from: *const u16) -> __m256 {
    // SAFETY: the caller's 8 elements.
    let words = unsafe { _mm_loadu_si128(from.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_256(from: *const u16) -> __m256 {
    // SAFETY: the caller's 8 elements.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
}

/// The sums of up to 4 rows and 4 columns from `column` on, all segments one after another in 16 registers.
///
/// # Safety
/// The machine has AVX-512; the pairs' rows, and `height` rows of 4 sums `pitch` apart, are there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn finish_512(
    pairs: &[Pair<'_, f32>],
    height: usize,
    column: usize,
    sums: *mut f32,
    pitch: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        match height {
            1 => finish_rows::<1>(pairs, column, sums, pitch),
            2 => finish_rows::<2>(pairs, column, sums, pitch),
            3 => finish_rows::<3>(pairs, column, sums, pitch),
            _ => finish_rows::<4>(pairs, column, sums, pitch),
        }
    }
}

/// # Safety
/// As [`finish_512`], with `R` rows.
#[target_feature(enable = "avx512f")]
unsafe fn finish_rows<const R: usize>(
    pairs: &[Pair<'_, f32>],
    column: usize,
    sums: *mut f32,
    pitch: usize,
) {
    let mut c = [_mm512_setzero_ps(); HEIGHT * QUAD];
    for &Pair { x, apart, w, steps } in pairs {
        let (x, w) = (x.as_ptr(), w.as_ptr().wrapping_add(column * steps));
        for step in (0..steps).step_by(LANES) {
            // SAFETY: the caller's rows.
            unsafe {
                let mut a = [_mm512_setzero_ps(); R];
                for i in 0..R {
                    a[i] = _mm512_loadu_ps(x.add(i * apart + step));
                }
                for j in 0..QUAD {
                    let b = _mm512_loadu_ps(w.add(j * steps + step));
                    for i in 0..R {
                        c[i * QUAD + j] = _mm512_fmadd_ps(a[i], b, c[i * QUAD + j]);
                    }
                }
            }
        }
    }
    let all = tree_512(c);
    let rows = [
        _mm512_castps512_ps128(all),
        _mm512_extractf32x4_ps::<1>(all),
        _mm512_extractf32x4_ps::<2>(all),
        _mm512_extractf32x4_ps::<3>(all),
    ];
    for (i, &row) in rows.iter().enumerate().take(R) {
        // SAFETY: the caller's sums.
        unsafe { _mm_storeu_ps(sums.add(i * pitch), row) };
    }
}

/// The trees of 16 elements, side by side: what one half of a vector is added to comes from the other half of
/// it, so a level is a blend, a shuffle and an addition for two vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn tree_512(mut v: [__m512; 16]) -> __m512 {
    let blocks = _mm512_setr_epi64(2, 3, 8, 9, 6, 7, 12, 13);
    let odd = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    for i in 0..8 {
        let other = _mm512_shuffle_f32x4::<0b0100_1110>(v[i], v[i + 8]);
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xFF00, v[i], v[i + 8]), other);
    }
    for i in 0..4 {
        let (a, b) = (_mm512_castps_pd(v[i]), _mm512_castps_pd(v[i + 4]));
        let other = _mm512_castpd_ps(_mm512_permutex2var_pd(a, blocks, b));
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xF0F0, v[i], v[i + 4]), other);
    }
    for i in 0..2 {
        let (a, b) = (_mm512_castps_pd(v[i]), _mm512_castps_pd(v[i + 2]));
        let other = _mm512_castpd_ps(_mm512_shuffle_pd::<0b0101_0101>(a, b));
        v[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xCCCC, v[i], v[i + 2]), other);
    }
    let other = _mm512_permutex2var_ps(v[0], odd, v[1]);
    _mm512_add_ps(_mm512_mask_blend_ps(0xAAAA, v[0], v[1]), other)
}

/// 16 trees at a time. Returns how many sums it made.
///
/// # Safety
/// The machine has AVX-512; there are 16 lanes for every sum.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn sum_512(lanes: &[f32], sums: &mut [f32]) -> usize {
    let (from, whole) = (lanes.as_ptr(), sums.len() / 16);
    for group in 0..whole {
        let mut v = [_mm512_setzero_ps(); 16];
        for i in 0..16 {
            // SAFETY: the caller's lanes.
            v[i] = unsafe { _mm512_loadu_ps(from.add((16 * group + i) * LANES)) };
        }
        // SAFETY: the caller's sums.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(16 * group), tree_512(v)) };
    }
    16 * whole
}

/// As [`sum_512`], 8 elements at a time.
///
/// # Safety
/// The machine has AVX2; there are 16 lanes for every sum.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sum_256(lanes: &[f32], sums: &mut [f32]) -> usize {
    let (from, whole) = (lanes.as_ptr(), sums.len() / 8);
    for group in 0..whole {
        let mut v = [_mm256_setzero_ps(); 8];
        for i in 0..8 {
            // SAFETY: the caller's lanes.
            unsafe {
                let element = from.add((8 * group + i) * LANES);
                v[i] = _mm256_add_ps(_mm256_loadu_ps(element), _mm256_loadu_ps(element.add(8)));
            }
        }
        for i in 0..4 {
            let other = _mm256_permute2f128_ps::<0x21>(v[i], v[i + 4]);
            v[i] = _mm256_add_ps(_mm256_blend_ps::<0xF0>(v[i], v[i + 4]), other);
        }
        for i in [0, 2] {
            let (a, b) = (_mm256_castps_pd(v[i]), _mm256_castps_pd(v[i + 1]));
            let other = _mm256_castpd_ps(_mm256_shuffle_pd::<0b0101>(a, b));
            v[i] = _mm256_add_ps(_mm256_blend_ps::<0xCC>(v[i], v[i + 1]), other);
        }
        // SAFETY: the caller's sums.
        unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(8 * group), _mm256_hadd_ps(v[0], v[2])) };
    }
    8 * whole
}
