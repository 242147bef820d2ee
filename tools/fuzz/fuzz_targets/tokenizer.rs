//! tokenizer.json: whatever is accepted gives ids in range, whose text can be streamed.
#![no_main]

use std::path::Path;

use gradus_rft::text::{Codec, Tokenizer};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    // A panic inside the library is an error to the caller, and none here.
    std::panic::set_hook(Box::new(|_| ()));
    let Ok(tokenizer) = Tokenizer::from_bytes(Path::new("fuzz"), data) else {
        return Corpus::Keep;
    };
    for text in ["", "the fox  12\n", "Zürich 😀 <s> x", "\u{0}\u{fffd}"] {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        if ids.iter().any(|&id| id < 0 || id as usize >= tokenizer.len()) {
            std::process::abort();
        }
        let _ = tokenizer.decode(&ids);
        let mut stream = tokenizer.stream();
        ids.iter().for_each(|&id| drop(stream.push(id)));
        let _ = stream.finish();
    }
    Corpus::Keep
});
