//! The C ABI of gradus. The document of record is `include/gradus.h`; [`sys`] is what bindgen makes of
//! it, and everything here is typed by it: a signature that drifts from the header does not compile.
//!
//! ```text
//! export ──▶ guard (a status and a text; no panic leaves) ──▶ handle (a context by number)
//!        ──▶ args (a struct of any known size, with defaults) ──▶ ops (tensors to views) ──▶ gradus::ops
//! ```
#![allow(clippy::missing_safety_doc)]

mod args;
mod context;
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

// An export whose type is not the header's does not compile. The ops' are compared in `ops`.
macro_rules! as_in_the_header {
    ($($path:path => $name:ident($($any:tt),*);)*) => {
        const _: () = {
            $(
                #[allow(unused_assignments)]
                let mut export: unsafe extern "C" fn($($any),*) -> _ = $path;
                export = sys::$name;
                let _ = export;
            )*
        };
    };
}

as_in_the_header! {
    gradus_version => gradus_version();
    gradus_build_info => gradus_build_info();
    args::gradus_sizeof => gradus_sizeof(_);
    args::gradus_init => gradus_init(_, _, _);
    args::gradus_workspace_size => gradus_workspace_size(_, _, _, _);
    status::gradus_status_string => gradus_status_string(_);
    status::gradus_last_error => gradus_last_error();
    context::gradus_create => gradus_create(_, _);
    context::gradus_destroy => gradus_destroy(_);
    context::gradus_device_name => gradus_device_name(_, _, _);
    context::gradus_alloc => gradus_alloc(_, _, _);
    context::gradus_free => gradus_free(_, _);
    context::gradus_upload => gradus_upload(_, _, _, _, _);
    context::gradus_download => gradus_download(_, _, _, _, _);
    context::gradus_synchronize => gradus_synchronize(_, _);
    context::gradus_set_team => gradus_set_team(_);
    context::gradus_reserve => gradus_reserve(_, _, _);
    quant::gradus_nf4_parse => gradus_nf4_parse(_, _, _);
    quant::gradus_nf4_code => gradus_nf4_code(_, _);
    quant::gradus_dynamic_map => gradus_dynamic_map(_, _);
    ops::gradus_policy_preset => gradus_policy_preset(_, _, _, _, _, _);
    ops::gradus_seq_weights => gradus_seq_weights(_, _, _, _, _, _);
}
