//! Parquet files: rows or an error, whatever the bytes are.
#![no_main]

use std::path::Path;

use gradus_rft::data::parquet::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // A panic inside the library is an error to the caller, and none here.
    std::panic::set_hook(Box::new(|_| ()));
    let _ = parse(data.to_vec(), Path::new("fuzz"));
});
