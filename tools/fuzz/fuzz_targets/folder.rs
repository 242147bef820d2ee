//! Model folders: one file of a small model replaced. The first byte says which; whatever is accepted
//! can be written and read again.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use gradus::Device;
use gradus_rft::pretrained::{LoadOptions, Pretrained};
use libfuzzer_sys::{Corpus, fuzz_target};

mod tiny;

const FILES: [&str; 3] = ["config.json", "model.safetensors", "generation_config.json"];

fuzz_target!(|data: &[u8]| -> Corpus {
    static FOLDERS: OnceLock<[std::path::PathBuf; 2]> = OnceLock::new();
    let Some((&first, rest)) = data.split_first() else { return Corpus::Reject };
    let folders = FOLDERS.get_or_init(tiny::folders);
    let (folder, name) = (&folders[first as usize % 2], FILES[first as usize / 2 % 3]);
    let path = folder.join(name);
    let whole = fs::read(&path).ok();
    fs::write(&path, rest).expect("a file");
    let loaded = Pretrained::open(folder)
        .and_then(|mut model| model.load::<f32>(Device::Cpu, &LoadOptions::default()));
    if let Ok(decoder) = loaded {
        let out = folder.with_file_name("written");
        let _ = fs::remove_dir_all(&out);
        decoder.save_pretrained(&out, folder).expect("what was read can be written");
        let again = Pretrained::open(&out)
            .and_then(|mut model| model.load::<f32>(Device::Cpu, &LoadOptions::default()));
        assert!(again.is_ok(), "and read again");
    }
    match whole {
        Some(whole) => fs::write(&path, whole).expect("a file"),
        None => fs::remove_file(&path).expect("a file"),
    }
    Corpus::Keep
});
