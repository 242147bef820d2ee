//! Folders that are not as usual: modules that a 4-bit folder left dense or a head that it has in 4
//! bits, tensors at any byte, values that are not finite, files that are no files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::golden_folder;
use gradus::Device;
use gradus::dtype::{DType, bf16};
use gradus::quant::{Nf4Options, Nf4Tensor};
use gradus::view::View;
use gradus_rft::io::safetensors::{TensorData, Tensors, deserialize, write_pt};
use gradus_rft::model::{Decoder, Packed, Weight};
use gradus_rft::pretrained::{Adapter, FolderWriter, HfConfig, LoadOptions, Pretrained};

const WEIGHTS: &str = "model.safetensors";

fn models() -> PathBuf {
    golden_folder().join("models")
}

/// A copy of a golden folder whose weights `edit` changes.
fn changed(name: &str, edit: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models().join(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.path().join(WEIGHTS);
    if path.exists() {
        let mut all = tensors(&path);
        edit(&mut all);
        fs::remove_file(&path).unwrap();
        write_pt(&path, &all).unwrap();
    }
    folder
}

fn tensors(path: &Path) -> Tensors {
    deserialize(path, &fs::read(path).unwrap()).unwrap()
}

fn load(path: &Path, options: &LoadOptions) -> gradus::Result<Decoder> {
    Pretrained::open(path)?.load(Device::Cpu, options)
}

fn nf4() -> LoadOptions {
    LoadOptions { quantize: Some(Nf4Options::default()), ..LoadOptions::default() }
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids: Vec<i32> = (0..40).map(|i| i * 7 % 96).collect();
    let batch = Packed::of([&ids[..]]).place(&model.allocator).unwrap();
    let hidden = model.forward(&batch, true, None, None).unwrap();
    model.logits(&model.allocator, &hidden).unwrap().to_host().unwrap()
}

fn quiet(_: usize, _: usize) {}

/// What bitsandbytes was told to skip is dense in the folder and stays dense, with the values it has.
#[test]
fn modules_that_a_4_bit_folder_skips_stay_dense() {
    const SKIPPED: &str = "model.layers.1.mlp.down_proj";
    let key = format!("{SKIPPED}.weight");
    let dense = tensors(&models().join("qwen2/model.safetensors"))[&key].clone();
    let folder = changed("qwen2-bnb-4bit", |all| {
        all.retain(|name, _| !name.starts_with(&key));
        all.insert(key.clone(), dense.clone());
    });
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"]["llm_int8_skip_modules"] = serde_json::json!([SKIPPED]);
    fs::write(&path, config.to_string()).unwrap();

    let as_stored = load(folder.path(), &LoadOptions::default()).unwrap();
    let mut model = load(folder.path(), &nf4()).unwrap();
    assert_eq!(model.quantize(&Nf4Options::default()).unwrap(), 0);
    for linear in model.linears() {
        let is_dense = matches!(linear.weight, Weight::Dense(_));
        assert_eq!(is_dense, linear.name == SKIPPED, "{}", linear.name);
    }
    let kept = model.params.iter().find(|p| p.name == key).unwrap();
    assert_eq!(kept.values().unwrap(), dense.to_vec::<f32>().unwrap());
    assert_eq!(logits(&model), logits(&as_stored));
    let again = folder.path().join("again");
    model.save_pretrained(&again, folder.path()).unwrap();
    assert_eq!(tensors(&again.join(WEIGHTS)), tensors(&folder.path().join(WEIGHTS)));
}

/// With a skip list of one's own bitsandbytes quantizes the head too: the same bits as a dense head
/// of the values that its codes stand for.
#[test]
fn a_4_bit_head_computes_what_its_values_compute() {
    let from = models().join("llama-bnb-4bit");
    let all = tensors(&from.join(WEIGHTS));
    let head = all["lm_head.weight"].to_vec::<f32>().unwrap();
    let config = HfConfig::load(&from).unwrap();
    let view = View::rows_of(&head, config.model.hidden).unwrap();
    let packed = Nf4Tensor::quantize(&Device::Cpu, view, &Nf4Options::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let write = |name: &str, dense: Option<Vec<f32>>| {
        let path = out.path().join(name);
        let mut writer = FolderWriter::create(&path, 1 << 30).unwrap();
        for (key, data) in all.iter().filter(|(key, _)| *key != "lm_head.weight") {
            writer.put(key, data.clone()).unwrap();
        }
        match dense {
            Some(values) => {
                let shape = &all["lm_head.weight"].shape;
                writer.put("lm_head.weight", TensorData::new(shape, &values)).unwrap();
            }
            None => writer.put_quantized("lm_head.weight", packed.parts()).unwrap(),
        }
        writer.finish(Some(&config.raw), Some(&from)).unwrap();
        path
    };
    let (four, dense) = (write("four", None), packed.dequantize(&Device::Cpu).unwrap());
    let dense = write("dense", Some(dense));
    let model = load(&four, &LoadOptions::default()).unwrap();
    assert_eq!(logits(&model), logits(&load(&dense, &nf4()).unwrap()));
    let again = out.path().join("again");
    model.save_pretrained(&again, &four).unwrap();
    assert_eq!(tensors(&again.join(WEIGHTS)), tensors(&four.join(WEIGHTS)));
    let parts = model.weight_parts();
    assert_eq!(parts.total(), model.weight_bytes());
    assert!(parts.packed > packed.bytes() as u64 && parts.trained == 0);
    let adapter = Adapter::load(&models().join("llama/adapter-patterns")).unwrap();
    let mut model = model;
    let error = adapter.attach(&mut model).unwrap_err().to_string();
    assert!(error.contains("`lm_head` is 4-bit") && !model.has_adapters(), "{error}");
}

/// The format aligns no tensor: f32 values may follow 3 bytes.
#[test]
fn tensors_at_odd_bytes_are_read() {
    let want = load(&models().join("llama"), &LoadOptions::default()).unwrap();
    let folder = changed("llama", |_| ());
    let path = folder.path().join(WEIGHTS);
    let mut all = tensors(&path);
    // Older folders carry such a table; nothing reads it.
    let odd = TensorData::new(&[3], &[1u8, 2, 3]);
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), odd);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut order: Vec<_> = all.iter().collect();
    order.sort_by_key(|(_, t)| t.bytes.len());
    for (name, t) in order {
        let offsets = [data.len(), data.len() + t.bytes.len()];
        let dtype = t.dtype.name().to_uppercase();
        let entry = serde_json::json!({"dtype": dtype, "shape": t.shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
        data.extend(&t.bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    fs::write(&path, bytes).unwrap();
    assert_eq!(tensors(&path), all);
    let model = load(folder.path(), &LoadOptions::default()).unwrap();
    assert_eq!(logits(&model), logits(&want));
    let quantized = |path: &Path| logits(&load(path, &nf4()).unwrap());
    assert_eq!(quantized(folder.path()), quantized(&models().join("llama")));
}

/// Lists of a folder may be as long as a file may be.
#[test]
fn a_long_list_of_ends_is_read_in_linear_time() {
    let folder = changed("llama", |_| ());
    let ids: Vec<i32> = (0..400_000).map(|i| i * 7 % 300_000).collect();
    let text = serde_json::json!({"eos_token_id": ids}).to_string();
    fs::write(folder.path().join("generation_config.json"), text).unwrap();
    let begun = std::time::Instant::now();
    let eos = HfConfig::load(folder.path()).unwrap().eos;
    assert_eq!((eos.len(), eos[..3].to_vec()), (300_000, vec![2, 0, 7]));
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
}

/// `data` with element `index` replaced.
fn spoil(all: &mut Tensors, name: &str, index: usize, value: f32) {
    let data = all.get_mut(name).unwrap();
    let shape = data.shape.clone();
    match data.dtype {
        DType::Bf16 => {
            let mut values = data.to_vec::<bf16>().unwrap();
            values[index] = bf16::from_f32(value);
            *data = TensorData::new(&shape, &values);
        }
        _ => {
            let mut values = data.to_vec::<f32>().unwrap();
            values[index] = value;
            *data = TensorData::new(&shape, &values);
        }
    }
}

#[test]
fn values_that_are_not_finite_are_named_with_their_place_at_load() {
    const Q: &str = "model.layers.1.self_attn.q_proj.weight";
    let (none, four) = (LoadOptions::default(), nf4());
    for (name, index, value) in [
        ("model.norm.weight", 127, f32::NAN),
        ("model.embed_tokens.weight", 30_001, f32::INFINITY),
        ("lm_head.weight", 5, f32::NEG_INFINITY),
        (Q, 0, f32::NAN),
        (Q, 16_383, f32::INFINITY),
    ] {
        let folder = changed("llama", |all| spoil(all, name, index, value));
        let adapter = Adapter::load(&models().join("llama/adapter")).unwrap();
        let out = folder.path().join("out");
        let open = || Pretrained::open(folder.path()).unwrap();
        for error in [
            load(folder.path(), &none).map(drop),
            load(folder.path(), &four).map(drop),
            open().load::<bf16>(Device::Cpu, &none).map(drop),
            open().quantize_to(&out, &Nf4Options::default(), &mut quiet).map(drop),
            open().merge_to(&adapter, &out, DType::F32, &mut quiet).map(drop),
        ] {
            let error = error.expect_err(name).to_string();
            let place = format!("`{name}` holds NaN or infinity at element {index} of");
            assert!(error.contains(&place), "{error}");
            assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
            assert!(!out.exists());
        }
    }
    let folder = changed("llama", |all| spoil(all, "model.norm.weight", 3, 1e38));
    let adapter = Adapter::load(&models().join("llama/adapter")).unwrap();
    let mut open = Pretrained::open(folder.path()).unwrap();
    let out = folder.path().join("out");
    let error = open.merge_to(&adapter, &out, DType::F16, &mut quiet).unwrap_err().to_string();
    assert!(error.contains("in f16") && error.contains("element 3"), "{error}");
}

#[test]
fn adapters_with_values_that_are_not_finite_are_refused_by_key_and_place() {
    let from = models().join("llama/adapter-patterns");
    for key in [
        "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.lm_head.weight",
    ] {
        let out = tempfile::tempdir().unwrap();
        fs::copy(from.join("adapter_config.json"), out.path().join("adapter_config.json")).unwrap();
        let mut all = tensors(&from.join("adapter_model.safetensors"));
        spoil(&mut all, key, 11, f32::NAN);
        write_pt(&out.path().join("adapter_model.safetensors"), &all).unwrap();
        let mut model = load(&models().join("llama"), &LoadOptions::default()).unwrap();
        let before = logits(&model);
        let error = Adapter::load(out.path()).unwrap().attach(&mut model).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` holds NaN")), "{error}");
        assert!(error.contains("element 11"), "{error}");
        assert!(!model.has_adapters() && logits(&model) == before);
    }
}

/// Nothing waits for a pipe and nothing reads a device without end, whichever file it stands for.
#[cfg(unix)]
#[test]
fn pipes_and_devices_in_the_place_of_any_file_are_refused_by_name() {
    use gradus_rft::train::{RunConfig, checkpoint};
    let folder = changed("llama3-sharded", |_| ());
    let adapter = folder.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let from = models().join("llama3-sharded/adapter-embed").join(file);
        fs::copy(from, adapter.join(file)).unwrap();
    }
    let saved = checkpoint::Checkpoint {
        step: 7,
        fingerprint: "f".into(),
        meta: serde_json::json!({}),
        tensors: Tensors::new(),
    };
    checkpoint::save(&folder.path().join("checkpoints"), &saved, 1).unwrap();
    fs::write(folder.path().join("run.toml"), "seed = 1\n").unwrap();
    let read_all = || {
        Pretrained::open(folder.path())?.load::<f32>(Device::Cpu, &LoadOptions::default())?;
        Adapter::load(&adapter)?;
        checkpoint::load(&folder.path().join("checkpoints/00000007"))?;
        RunConfig::load(&folder.path().join("run.toml"))
    };
    read_all().unwrap();
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00002-of-00003.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "checkpoints/00000007/manifest.json",
        "checkpoints/00000007/state.safetensors",
        "checkpoints/00000007/meta.json",
        "run.toml",
    ] {
        let (path, aside) = (folder.path().join(file), folder.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let pipe = read_all().unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let device = read_all().unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let inside = read_all().unwrap_err().to_string();
        fs::remove_dir(&path).unwrap();
        for (error, what) in [(pipe, "a pipe"), (device, "a device"), (inside, "a folder")] {
            assert!(error.contains(file) && error.contains(what), "{file}: {error}");
        }
        fs::rename(&aside, &path).unwrap();
    }
    read_all().unwrap();
}
