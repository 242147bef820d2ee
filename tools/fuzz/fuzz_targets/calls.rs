//! Sequences of calls of the C ABI, valid ones and changed ones, on one context after another.
#![no_main]

#[path = "../../../ffi/tests/common/mod.rs"]
mod common;

use std::ptr::null_mut;

use common::calls::{Call, Rng, create};
use common::parsed::{Struct, ops, structs};
use gradus_c::sys;
use libfuzzer_sys::fuzz_target;

/// A byte chooses the op, the next the number of changes, four the seed.
fn run(ops: &[Struct], structs: &[Struct], data: &[u8]) {
    let ctx = create("cpu");
    for step in data.chunks_exact(6).take(16) {
        let op = &ops[step[0] as usize % ops.len()];
        let seed = u32::from_le_bytes([step[2], step[3], step[4], step[5]]);
        let mut rng = Rng(seed as u64);
        let mut call = Call::valid(op, structs, &mut rng, step[1] & 64 != 0);
        (0..step[1] % 4).for_each(|_| call.change(&mut rng));
        let handle = if step[1] & 32 != 0 { ctx.wrapping_add(seed as u64) } else { ctx };
        call.run(handle, null_mut());
    }
    // SAFETY: created above.
    assert_eq!(unsafe { sys::gradus_destroy(ctx) }, 0);
}

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static HEADER: (Vec<Struct>, Vec<Struct>) = (ops(), structs());
    }
    HEADER.with(|(ops, structs)| run(ops, structs, data));
});
