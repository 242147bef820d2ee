//! The ops by family. What an op needs is here: its [`Op`](crate::args::Op), which is its defaults and its call.
//! Those in `plain` are written from the header; the other files hold what it cannot say. Exports and tables are made
//! from the lists of the header.

mod decoder;
mod optim;
mod plain;
mod policy;
mod products;
mod quantize;
mod vocabulary;

pub use policy::{gradus_policy_preset, gradus_seq_weights};

use std::ffi::c_void;

use crate::args::{Args, Entry, call};
use crate::sys;

macro_rules! exports {
    ($($name:ident $export:ident $args:ident;)*) => {
        $(
            // `load` reads the size first.
            const _: () = assert!(std::mem::offset_of!(sys::$args, struct_size) == 0);

            // SAFETY: bindgen made the struct repr(C), of numbers and pointers.
            unsafe impl Args for sys::$args {
                const NAME: &'static str = stringify!($name);
            }

            /// # Safety
            /// See the header.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $export(
                ctx: sys::gradus_context,
                stream: *mut c_void,
                args: *const sys::$args,
            ) -> sys::gradus_status {
                call(ctx, stream, args)
            }
        )*

        /// Every op by its name.
        pub(crate) static TABLE: &[Entry] = &[$(Entry::of::<sys::$args>()),*];

        // An export whose type is not the header's does not compile.
        const _: () = {
            $(
                #[allow(unused_assignments)]
                let mut export: unsafe extern "C" fn(_, _, _) -> _ = $export;
                export = sys::$export;
                let _ = export;
            )*
        };
    };
}
each_op!(exports);

macro_rules! sizes {
    ($($name:ident $kind:ident;)*) => {
        /// Sizes of the header's other structs, by name.
        pub(crate) static STRUCTS: &[(&str, usize)] =
            &[$((stringify!($name), size_of::<sys::$kind>())),*];
    };
}
each_struct!(sizes);
