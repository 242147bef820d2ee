//! Settings as the command line takes them: what is accepted can be printed and has a fingerprint.
#![no_main]

use gradus_rft::train::config::RunConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut config = RunConfig::default();
    let taken = text.lines().take(8).all(|line| config.apply_set(line).is_ok());
    if taken && config.validate().is_ok() {
        assert!(!config.to_toml().is_empty() && !config.fingerprint().is_empty());
    }
});
