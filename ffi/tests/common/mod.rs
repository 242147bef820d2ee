//! Shared by the tests of the C ABI and by the fuzz targets.
#![allow(dead_code)]

pub mod calls;
#[path = "header.rs"]
pub mod parsed;
pub mod settings;

use std::ffi::c_void;

use gradus_c::sys;

macro_rules! by_name {
    ($($op:ident $export:ident $args:ident;)*) => {
        /// The export of an op.
        ///
        /// # Safety
        /// As the header asks.
        pub unsafe fn dispatch(op: &str, ctx: u64, stream: *mut c_void, args: *mut c_void) -> i32 {
            match op {
                // SAFETY: the caller's promise.
                $(stringify!($op) => unsafe { sys::$export(ctx, stream, args.cast()) },)*
                other => panic!("{other} is no op"),
            }
        }
    };
}
gradus_c::each_op!(by_name);
