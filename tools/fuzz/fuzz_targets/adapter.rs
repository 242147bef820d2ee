//! PEFT adapters: two bytes of length, adapter_config.json, adapter_model.safetensors. Whatever is
//! attached can be written and attached again.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use gradus::Device;
use gradus_rft::model::Decoder;
use gradus_rft::pretrained::{Adapter, LoadOptions, Pretrained};
use libfuzzer_sys::{Corpus, fuzz_target};

mod tiny;

fuzz_target!(|data: &[u8]| -> Corpus {
    static FOLDERS: OnceLock<[std::path::PathBuf; 2]> = OnceLock::new();
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return Corpus::Reject };
    let length = usize::from(u16::from_le_bytes(*length));
    let Some((config, weights)) = rest.split_at_checked(length) else { return Corpus::Reject };
    let [plain, _] = FOLDERS.get_or_init(tiny::folders);
    let folder = plain.with_file_name("adapter");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("adapter_config.json"), config).expect("a file");
    fs::write(folder.join("adapter_model.safetensors"), weights).expect("a file");
    let Ok(adapter) = Adapter::load(&folder) else { return Corpus::Keep };
    let model = || -> Decoder {
        let mut model = Pretrained::open(plain).expect("the model");
        model.load(Device::Cpu, &LoadOptions::default()).expect("the model")
    };
    let mut adapted = model();
    if adapter.attach(&mut adapted).is_ok() {
        let again = Adapter::of(&adapted, &adapter.config).expect("an adapter");
        again.save(&folder).expect("what was attached can be written");
        let again = Adapter::load(&folder).expect("and read again");
        again.attach(&mut model()).expect("and attached again");
    }
    Corpus::Keep
});
