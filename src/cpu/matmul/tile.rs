//! The register tile: `R` rows of the output by 32 columns, held in registers while k runs.
//!
//! One step of k loads 32 packed values of B, broadcasts one value of each row of A and does 32·R
//! fused multiply-adds. Every output element is therefore one chain c = fma(a_k, b_k, c) in
//! increasing k, whatever R, the vector width or the block of k: c is spilled to memory as f32
//! between blocks, which loses nothing.

/// Columns of a packed panel.
pub(super) const COLUMNS: usize = 32;

/// Rows of the largest tile.
pub(super) const ROWS: usize = 8;

/// Rows of A with their strides in elements.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub ptr: *const f32,
    pub row_stride: usize,
    pub k_stride: usize,
}

/// An output tile: `rows` by `columns` at `ptr`.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub ptr: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
}

// SAFETY: the drivers in `mod.rs` hand disjoint tiles of borrowed memory to threads.
unsafe impl Send for Left {}
// SAFETY: as above.
unsafe impl Sync for Left {}
// SAFETY: as above.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// Vectors of f32 that together make one row of a panel.
trait Vector: Copy {
    /// Vectors per 32 columns.
    const PER_ROW: usize;
    const LANES: usize = COLUMNS / Self::PER_ROW;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(ptr: *const f32) -> Self;
    unsafe fn store(self, ptr: *mut f32);
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
}

/// c += a·b over `depth` steps of k, for one tile of `R` rows.
///
/// # Safety
/// `a` covers `R` rows and `depth` steps, `b` is a packed panel of `depth` steps, `out` is
/// writable for its rows and columns, and the caller runs on a machine that has `V`.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const N: usize>(
    a: Left,
    b: *const f32,
    depth: usize,
    out: Out,
) {
    // SAFETY: every offset is inside what the caller vouches for.
    unsafe {
        let mut edge = [0f32; COLUMNS];
        let mut acc = [[V::splat(0.0); N]; R];
        let whole = out.columns == COLUMNS;
        for r in 0..R {
            let row = out.ptr.add(r * out.stride);
            let from =
                if whole { row.cast_const() } else { edge_load(&mut edge, row, out.columns) };
            for v in 0..N {
                acc[r][v] = V::load(from.add(v * V::LANES));
            }
        }
        for k in 0..depth {
            let mut bk = [V::splat(0.0); N];
            for v in 0..N {
                bk[v] = V::load(b.add(k * COLUMNS + v * V::LANES));
            }
            for r in 0..R {
                let x = V::splat(*a.ptr.add(r * a.row_stride + k * a.k_stride));
                for v in 0..N {
                    acc[r][v] = V::fma(x, bk[v], acc[r][v]);
                }
            }
        }
        for r in 0..R {
            let row = out.ptr.add(r * out.stride);
            let to = if whole { row } else { edge.as_mut_ptr() };
            for v in 0..N {
                acc[r][v].store(to.add(v * V::LANES));
            }
            if !whole {
                std::ptr::copy_nonoverlapping(edge.as_ptr(), row, out.columns);
            }
        }
    }
}

#[inline(always)]
unsafe fn edge_load(edge: &mut [f32; COLUMNS], row: *const f32, columns: usize) -> *const f32 {
    // SAFETY: the caller's row holds `columns` <= 32 values.
    unsafe { std::ptr::copy_nonoverlapping(row, edge.as_mut_ptr(), columns) };
    edge.as_ptr()
}

/// All rows of `out` in tiles of 8, 4, 2 and 1.
#[inline(always)]
unsafe fn rows<V: Vector, const N: usize>(a: Left, b: *const f32, depth: usize, out: Out) {
    let mut first = 0;
    while first < out.rows {
        // SAFETY: as the caller's; `first` stays inside the rows.
        unsafe {
            let left = Left { ptr: a.ptr.add(first * a.row_stride), ..a };
            let part = Out { ptr: out.ptr.add(first * out.stride), ..out };
            first += match out.rows - first {
                ROWS.. => {
                    tile::<V, ROWS, N>(left, b, depth, part);
                    ROWS
                }
                4.. => {
                    tile::<V, 4, N>(left, b, depth, part);
                    4
                }
                2.. => {
                    tile::<V, 2, N>(left, b, depth, part);
                    2
                }
                _ => {
                    tile::<V, 1, N>(left, b, depth, part);
                    1
                }
            };
        }
    }
}

impl Vector for [f32; 8] {
    const PER_ROW: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> Self {
        // SAFETY: the caller's pointer has 8 readable values.
        unsafe { ptr.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32) {
        // SAFETY: the caller's pointer has 8 writable values.
        unsafe { ptr.cast::<[f32; 8]>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
        let mut d = c;
        for l in 0..8 {
            d[l] = a[l].mul_add(b[l], c[l]);
        }
        d
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Left, Out, Vector, rows};
    use std::arch::x86_64::*;

    impl Vector for __m512 {
        const PER_ROW: usize = 2;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: only reached from `avx512`.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(ptr: *const f32) -> Self {
            // SAFETY: only reached from `avx512`; the pointer has 16 readable values.
            unsafe { _mm512_loadu_ps(ptr) }
        }
        #[inline(always)]
        unsafe fn store(self, ptr: *mut f32) {
            // SAFETY: only reached from `avx512`; the pointer has 16 writable values.
            unsafe { _mm512_storeu_ps(ptr, self) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: only reached from `avx512`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    impl Vector for __m256 {
        const PER_ROW: usize = 4;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: only reached from `avx2`.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(ptr: *const f32) -> Self {
            // SAFETY: only reached from `avx2`; the pointer has 8 readable values.
            unsafe { _mm256_loadu_ps(ptr) }
        }
        #[inline(always)]
        unsafe fn store(self, ptr: *mut f32) {
            // SAFETY: only reached from `avx2`; the pointer has 8 writable values.
            unsafe { _mm256_storeu_ps(ptr, self) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self, b: Self, c: Self) -> Self {
            // SAFETY: only reached from `avx2`.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(a: Left, b: *const f32, depth: usize, out: Out) {
        // SAFETY: the caller's, and the feature is enabled here.
        unsafe { rows::<__m512, 2>(a, b, depth, out) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(a: Left, b: *const f32, depth: usize, out: Out) {
        // SAFETY: the caller's, and the features are enabled here.
        unsafe { rows::<__m256, 4>(a, b, depth, out) }
    }
}

/// out += a·b over `depth` steps of k, `b` being one packed panel.
///
/// # Safety
/// `a` covers `out.rows` rows and `depth` steps; `b` holds `depth` times 32 values; `out` is
/// writable for its rows and at most 32 columns, and nobody else touches it.
pub(super) unsafe fn accumulate(a: Left, b: *const f32, depth: usize, out: Out) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the caller's, and the feature was just detected.
            return unsafe { x86::avx512(a, b, depth, out) };
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the caller's, and the features were just detected.
            return unsafe { x86::avx2(a, b, depth, out) };
        }
    }
    // SAFETY: the caller's; arrays need no feature.
    unsafe { rows::<[f32; 8], 4>(a, b, depth, out) }
}
