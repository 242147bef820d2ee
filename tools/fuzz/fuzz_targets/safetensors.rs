//! Tensor files: whatever is accepted is written back as a file that says the same.
#![no_main]

use std::path::Path;

use gradus_rft::io::safetensors::{deserialize, serialize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzz");
    if let Ok(tensors) = deserialize(path, data) {
        let bytes = serialize(&tensors).expect("what was read can be written");
        assert_eq!(deserialize(path, &bytes).expect("and read again"), tensors);
    }
});
