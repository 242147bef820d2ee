//! Asking for memory ahead of its use, where the processor cannot see the pattern: rows read piece by piece.

/// Fetches `bytes` bytes from `from` on into the caches. Any address will do: a prefetch does not fault.
#[inline(always)]
pub(crate) fn fetch<T>(from: *const T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(line)) };
    }
    let _ = (from, bytes);
}
