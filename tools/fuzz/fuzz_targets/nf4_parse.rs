//! The quantization state of a bitsandbytes checkpoint.
#![no_main]

use gradus_c::sys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // SAFETY: zeros are valid, and the bytes are there.
    unsafe {
        let mut w: sys::gradus_nf4 = std::mem::zeroed();
        let status = sys::gradus_nf4_parse(data.as_ptr(), data.len(), &mut w);
        assert!(status == 0 || w.n == 0, "a refused state was written");
        assert!(status != sys::GRADUS_PANIC as i32);
    }
});
