//! The C ABI of gradus. The document of record is `include/gradus.h`. [`sys`] and `registry` are generated from
//! it: declarations, and lists of ops, structs, functions and enums. Everything here is typed by them, so that
//! what differs from the header does not compile.
//!
//! ```text
//! export ──▶ guard (a status and a text; no panic leaves) ──▶ handle (a context by number)
//!        ──▶ args (a struct of any known size, with defaults) ──▶ field (tensors to views) ──▶ gradus::ops
//! ```
#![allow(clippy::missing_safety_doc)]

/// The header's lists. First, so that all can use its macros.
#[macro_use]
#[rustfmt::skip]
mod registry;

mod args;
mod context;
mod field;
mod handle;
mod memory;
mod names;
mod ops;
mod quant;
mod status;
mod tensor;

/// The header, as bindgen reads it.
#[allow(missing_docs, non_camel_case_types, non_snake_case, dead_code)]
#[rustfmt::skip]
pub mod sys;

use std::ffi::c_char;

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gradus_version() -> i32 {
    sys::GRADUS_VERSION_NUMBER as i32
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn gradus_build_info() -> *const c_char {
    concat!(
        "gradus ",
        env!("CARGO_PKG_VERSION"),
        "; kernels for compute capability 8.0 and newer (PTX 8.4) and for 9.0 (sm_90a); driver 12.4 or newer; ",
        env!("GRADUS_BUILD"),
        "\0"
    )
    .as_ptr() as *const c_char
}

// An export whose type is not the header's does not compile, nor a function of the header without an export. The
// ops' are compared in `ops`.
macro_rules! as_in_the_header {
    ($($name:ident($($any:tt),*);)*) => {
        const _: () = {
            use crate::{args::*, context::*, ops::*, quant::*, status::*};
            $(
                #[allow(unused_assignments)]
                let mut export: unsafe extern "C" fn($($any),*) -> _ = $name;
                export = sys::$name;
                let _ = export;
            )*
        };
    };
}
each_function!(as_in_the_header);
