//! Per-thread work buffers that are reused from call to call: the hot loops of a decode step would
//! otherwise spend their time in the allocator.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers a thread keeps; a product nests at most this many.
const KEPT: usize = 8;

/// Calls `body` with `len` zeros. A task that is stolen meanwhile takes another buffer.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with(|free| free.borrow_mut().pop()).unwrap_or_default();
    buffer.clear();
    buffer.resize(len, 0.0);
    let result = body(&mut buffer);
    FREE.with(|free| {
        let mut free = free.borrow_mut();
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
    result
}
