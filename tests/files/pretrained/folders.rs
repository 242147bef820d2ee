//! Folders in and out: what is written is what was read, byte for byte; what is broken is refused
//! and nothing is left behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::golden_folder;
use gradus::dtype::{DType, bf16, f16};
use gradus::error::Error;
use gradus::quant::{Nf4Options, QuantType};
use gradus::{Device, Result};
use gradus_rft::io::safetensors::{TensorData, Tensors, deserialize, write_pt};
use gradus_rft::model::{Decoder, LoraOptions, Packed};
use gradus_rft::pretrained::{Adapter, AdapterConfig, HfConfig, LoadOptions, Pretrained};

const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];

fn models() -> PathBuf {
    golden_folder().join("models")
}

fn open(path: &Path) -> Pretrained {
    Pretrained::open(path).unwrap()
}

fn load(path: &Path) -> Result<Decoder> {
    Pretrained::open(path)?.load(Device::Cpu, &LoadOptions::default())
}

/// A copy of a golden folder that a test may spoil.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(models().join(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn tensors(path: &Path) -> Tensors {
    deserialize(path, &fs::read(path).unwrap()).unwrap()
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids: Vec<i32> = (0..40).map(|i| i * 7 % 96).collect();
    let batch = Packed::of([&ids[..]]).place(&model.allocator).unwrap();
    let hidden = model.forward(&batch, true, None, None).unwrap();
    model.logits(&model.allocator, &hidden).unwrap().to_host().unwrap()
}

fn quiet(_: usize, _: usize) {}

#[test]
fn a_bitsandbytes_checkpoint_is_saved_with_the_bytes_it_had() {
    for name in FAMILIES.map(|name| models().join(format!("{name}-bnb-4bit"))) {
        let model = load(&name).unwrap();
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("saved");
        model.save_pretrained(&out, &name).unwrap();
        for file in ["model.safetensors", "config.json", "generation_config.json"] {
            let bytes = |folder: &Path| fs::read(folder.join(file)).unwrap();
            assert!(bytes(&out) == bytes(&name), "{}: {file}", name.display());
        }
    }
}

#[test]
fn quantizing_writes_what_bitsandbytes_writes() {
    for name in FAMILIES {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("nf4");
        let options = Nf4Options::default();
        let done = open(&models().join(name)).quantize_to(&out, &options, &mut quiet).unwrap();
        assert_eq!((done.changed, done.expanded, done.untied), (14, 0, false));
        assert_eq!(
            done.changed + done.kept,
            tensors(&models().join(name).join("model.safetensors")).len()
        );
        assert!(done.packed > 0 && done.packed < done.to);
        let theirs = models().join(format!("{name}-bnb-4bit/model.safetensors"));
        let (ours, theirs) = (tensors(&out.join("model.safetensors")), tensors(&theirs));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, data) in &ours {
            assert!(data == &theirs[key], "{name}: {key}");
        }
        let config = HfConfig::load(&models().join(format!("{name}-bnb-4bit"))).unwrap();
        assert_eq!(HfConfig::load(&out).unwrap().raw, config.raw, "{name}");
    }
}

/// A model of pictures keeps its tower, and its tensors keep the names that they have in the file.
#[test]
fn what_is_written_of_a_model_of_pictures_has_its_tower() {
    let ids = HfConfig::load(&models().join("qwen2_5_vl-flat")).unwrap().pictures;
    assert_eq!(ids, [250, 251]);
    for name in ["qwen2_5_vl", "qwen2_5_vl-flat"] {
        let (out, name) = (tempfile::tempdir().unwrap(), models().join(name));
        let at = |folder: &str| out.path().join(folder);
        let all = tensors(&name.join("model.safetensors"));
        let written = |folder: &Path| tensors(&folder.join("model.safetensors"));
        load(&name).unwrap().save_pretrained(&at("saved"), &name).unwrap();
        assert!(written(&at("saved")) == all, "{}", name.display());
        let adapter = Adapter::load(&models().join("qwen2_5_vl/adapter")).unwrap();
        let done = open(&name).merge_to(&adapter, &at("merged"), DType::F32, &mut quiet).unwrap();
        assert_eq!((done.changed, done.kept), (6, all.len() - 6));
        let merged = written(&at("merged"));
        assert!(merged.keys().eq(all.keys()));
        let tower = |name: &&String| name.contains("visual.");
        assert!(all.keys().filter(tower).count() > 5);
        assert!(all.keys().filter(tower).all(|name| merged[name] == all[name]));
        let nf4 = Nf4Options::default();
        let done = open(&name).quantize_to(&at("nf4"), &nf4, &mut quiet).unwrap();
        assert_eq!(done.changed, 14);
        let packed = written(&at("nf4"));
        assert!(all.keys().filter(tower).all(|name| packed[name] == all[name]));
        let options = LoadOptions { quantize: Some(nf4), ..LoadOptions::default() };
        let at_once = open(&name).load(Device::Cpu, &options).unwrap();
        assert_eq!(logits(&at_once), logits(&load(&at("nf4")).unwrap()));
        let merged = open(&at("merged")).merge_to(&adapter, &at("half"), DType::Bf16, &mut quiet);
        merged.unwrap();
        assert_eq!(HfConfig::load(&at("half")).unwrap().dtype, DType::Bf16);
    }
}

#[test]
fn quantizing_on_load_is_loading_what_was_quantized() {
    let small = Nf4Options { blocksize: 32, ..Nf4Options::default() };
    let fp4 = Nf4Options { quant_type: QuantType::Fp4, double_quant: false, blocksize: 64 };
    for (name, nf4) in [("qwen2", small), ("llama3-sharded", small), ("llama", fp4)] {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("nf4");
        open(&models().join(name)).quantize_to(&out, &nf4, &mut quiet).unwrap();
        let options = LoadOptions { quantize: Some(nf4), ..LoadOptions::default() };
        let at_once = open(&models().join(name)).load(Device::Cpu, &options).unwrap();
        assert_eq!(logits(&at_once), logits(&load(&out).unwrap()), "{name}");
        let again = out.with_file_name("again");
        load(&out).unwrap().save_pretrained(&again, &out).unwrap();
        let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert!(bytes(&again) == bytes(&out), "{name}: saved with the bytes it had");
    }
}

#[test]
fn a_bf16_decoder_reads_bf16_files_exactly() {
    let path = models().join("llama3-sharded");
    let model: Decoder<bf16> = open(&path).load(Device::Cpu, &LoadOptions::default()).unwrap();
    let f32: Decoder = load(&path).unwrap();
    for (a, b) in model.params.iter().zip(f32.params.iter()) {
        assert_eq!(a.values().unwrap(), b.values().unwrap(), "{}", a.name);
    }
    assert_eq!(open(&path).config.eos, [2, 5]);
    assert_eq!(open(&path).config.dtype, DType::Bf16);
}

/// f16 weights, as older folders have them: their values, in a decoder of f32.
#[test]
fn f16_files_are_read_exactly() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let mut all = tensors(&path);
    for data in all.values_mut() {
        let values = data.to_vec::<f32>().unwrap();
        let half: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        *data = TensorData::new(&data.shape.clone(), &half);
    }
    std::fs::remove_file(&path).unwrap();
    write_pt(&path, &all).unwrap();
    let model = load(folder.path()).unwrap();
    for p in model.params.iter() {
        let want: Vec<f32> =
            all[&p.name].to_vec::<f16>().unwrap().iter().map(|x| x.to_f32()).collect();
        assert_eq!(p.values().unwrap(), want, "{}", p.name);
    }
}

#[test]
fn merging_gives_the_adapted_model() {
    for (name, adapter) in [
        ("llama", "llama/adapter"),
        ("llama", "llama/adapter-patterns"),
        ("qwen2-bnb-4bit", "qwen2/adapter"),
        ("llama3-sharded", "llama3-sharded/adapter-embed"),
        ("llama3-sharded", "llama3-sharded/adapter-head"),
        ("llama3-sharded", "llama3-sharded/adapter-both"),
    ] {
        let adapter = Adapter::load(&models().join(adapter)).unwrap();
        let mut adapted = load(&models().join(name)).unwrap();
        adapter.attach(&mut adapted).unwrap();
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("merged");
        let done =
            open(&models().join(name)).merge_to(&adapter, &out, DType::F32, &mut quiet).unwrap();
        assert!(done.changed >= 3 && done.untied == name.starts_with("llama3"), "{done:?}");
        assert_eq!(done.expanded, if name.ends_with("4bit") { 14 } else { 0 });
        let (want, got) = (logits(&adapted), logits(&load(&out).unwrap()));
        let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let off = want.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-5 * scale, "{name}: {off} of {scale}");

        let narrow = out.with_file_name("bf16");
        open(&models().join(name)).merge_to(&adapter, &narrow, DType::Bf16, &mut quiet).unwrap();
        let (wide, narrow) =
            (tensors(&out.join("model.safetensors")), tensors(&narrow.join("model.safetensors")));
        for (key, data) in &wide {
            let rounded: Vec<bf16> =
                data.to_vec::<f32>().unwrap().into_iter().map(bf16::from_f32).collect();
            assert!(narrow[key].to_vec::<bf16>().unwrap() == rounded, "{key}: rounded once");
        }
    }
}

#[test]
fn an_adapter_of_ours_comes_back_and_carries_every_field_of_peft() {
    let options =
        LoraOptions { rank: 4, alpha: 8.0, targets: "q_proj, down_proj".into(), rslora: true };
    let mut model = load(&models().join("qwen3-bnb-4bit")).unwrap();
    model.attach_lora(&options, 5).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("adapter");
    let config = AdapterConfig::new(&options, &model.config, "some/base").unwrap();
    for _ in 0..2 {
        Adapter::of(&model, &config).unwrap().save(&at).unwrap();
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing beside the adapter");
    let mut again = load(&models().join("qwen3-bnb-4bit")).unwrap();
    let adapter = Adapter::load(&at).unwrap();
    adapter.attach(&mut again).unwrap();
    assert_eq!(logits(&again), logits(&model));
    assert_eq!(adapter.tensors().len(), 8);
    for key in [
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "target_modules",
        "base_model_name_or_path",
        "bias",
    ] {
        assert!(adapter.config.raw().contains_key(key), "{key}");
    }
}

/// A tied head is untied on merging, as PEFT does: each has the values that it had under the adapter.
#[test]
fn merging_unties_a_head_that_the_adapter_parts_from_its_embedding() {
    let folder = models().join("llama3-sharded");
    let key = |name: &str| format!("base_model.model.{name}");
    const NAMES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];
    let base = load(&folder).unwrap();
    let base = base.params.iter().find(|p| p.name == NAMES[0]).unwrap().values().unwrap();
    for (which, holds) in [("embed", [true, false]), ("head", [false, true]), ("both", [true; 2])] {
        let adapter = Adapter::load(&folder.join(format!("adapter-{which}"))).unwrap();
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("merged");
        let done = open(&folder).merge_to(&adapter, &out, DType::F32, &mut quiet).unwrap();
        let whole = holds.iter().filter(|&&held| held).count();
        let did = (done.changed, done.replaced, done.untied);
        assert_eq!(did, (2 + whole, whole, true), "{which}: two q_proj, and what is held whole");
        let merged = tensors(&out.join("model.safetensors"));
        for (name, held) in NAMES.into_iter().zip(holds) {
            let want = match held {
                true => adapter.tensors()[&key(name)].to_vec::<f32>().unwrap(),
                false => base.clone(),
            };
            assert!(merged[name].to_vec::<f32>().unwrap() == want, "{which}: {name}");
        }
        assert_eq!(HfConfig::load(&out).unwrap().raw["tie_word_embeddings"], false);
        // The decoder's base weights are those of the folder, whatever the adapter holds.
        let mut model = load(&folder).unwrap();
        adapter.attach(&mut model).unwrap();
        let again = out.with_file_name("again");
        model.save_pretrained(&again, &folder).unwrap();
        assert_eq!(logits(&load(&again).unwrap()), logits(&load(&folder).unwrap()), "{which}");
        assert_eq!(Adapter::of(&model, &adapter.config).unwrap().tensors(), adapter.tensors());
    }
}

fn refusal(folder: &Path) -> String {
    match load(folder) {
        Ok(_) => panic!("{} was loaded", folder.display()),
        Err(e @ (Error::Format { .. } | Error::NonFinite { .. } | Error::Io { .. })) => {
            e.to_string()
        }
        Err(other) => panic!("{other}"),
    }
}

/// What an edit of config.json makes of a folder.
fn edited(
    name: &str,
    edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> String {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    refusal(folder.path())
}

#[test]
fn configurations_that_compute_something_else_are_refused_by_name() {
    use serde_json::json;
    for (name, key, value, word) in [
        ("llama", "model_type", json!("gemma3"), "gemma3"),
        ("llama", "hidden_act", json!("gelu"), "hidden_act"),
        ("llama", "attention_bias", json!(true), "attention_bias"),
        ("llama", "mlp_bias", json!(true), "mlp_bias"),
        ("llama", "hidden_size", json!(null), "hidden_size"),
        ("llama", "hidden_size", json!(1u64 << 40), "hidden"),
        ("llama", "num_attention_heads", json!(0), "heads"),
        ("llama", "num_hidden_layers", json!(3), "layers.2"),
        ("llama", "num_hidden_layers", json!(1), "does not have"),
        ("llama", "vocab_size", json!(255), "embed_tokens"),
        ("llama", "rope_parameters", json!({"rope_type": "yarn", "factor": 2.0}), "yarn"),
        ("llama", "rope_parameters", json!({"rope_type": "llama3"}), "factor"),
        ("llama", "quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        ("llama", "dtype", json!("int8"), "int8"),
        ("llama", "tie_word_embeddings", json!(true), "lm_head.weight"),
        ("llama", "sliding_window", json!(64), "sliding_window"),
        ("qwen2", "use_sliding_window", json!(true), "sliding_window"),
        ("qwen2", "tie_word_embeddings", json!(false), "lm_head.weight"),
        ("qwen3", "layer_types", json!(["sliding_attention"]), "layer_types"),
        ("qwen3", "model_type", json!("llama"), "does not have"),
    ] {
        let error = edited(name, |config| drop(config.insert(key.into(), value)));
        assert!(error.contains(word), "{key}: {error}");
    }
}

#[test]
fn broken_folders_are_refused() {
    let folder = copy("llama3-sharded");
    let index = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    for (from, to, word) in [
        ("model-00001-of", "../model-00001-of", "not a .safetensors file of the folder"),
        ("model-00001-of-00003.safetensors", "weights.bin", "not a .safetensors file"),
        ("model-00003-of-00003", "model-00002-of-00003", "is in no file"),
        ("\"model.norm.weight\"", "\"model.other.weight\"", "model.norm.weight"),
    ] {
        fs::write(&index, text.replace(from, to)).unwrap();
        let error = refusal(folder.path());
        assert!(error.contains(word), "{from}: {error}");
    }
    fs::write(&index, &text).unwrap();
    fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("model-00002"));

    let folder = copy("llama");
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("pytorch_model.bin"))
        .unwrap();
    assert!(refusal(folder.path()).contains("pickle"));
}

/// One tensor of a 4-bit folder changed.
fn spoiled(key: &str, edit: impl FnOnce(&mut Tensors)) -> String {
    let folder = copy("llama-bnb-4bit");
    let path = folder.path().join("model.safetensors");
    let mut all = tensors(&path);
    assert!(all.contains_key(key), "{key}");
    edit(&mut all);
    fs::remove_file(&path).unwrap();
    write_pt(&path, &all).unwrap();
    refusal(folder.path())
}

#[test]
fn broken_quant_states_are_refused() {
    const W: &str = "model.layers.0.mlp.up_proj.weight";
    let state = format!("{W}.quant_state.bitsandbytes__nf4");
    let text = |from: &str, to: &str| {
        spoiled(&state, |all| {
            let old = String::from_utf8(all[&state].bytes.clone()).unwrap();
            assert!(old.contains(from), "{old}");
            let new = old.replace(from, to).into_bytes();
            all.insert(state.clone(), TensorData::new(&[new.len()], &new));
        })
    };
    for (from, to, word) in [
        ("\"nf4\"", "\"fp4\"", "quant_type"),
        ("\"blocksize\": 64", "\"blocksize\": 63", "blocksize"),
        ("\"blocksize\": 64", "\"blocksize\": 128", "absmax"),
        ("\"shape\": [320, 128]", "\"shape\": [128, 320]", "128x320"),
        ("\"shape\": [320, 128]", "\"shape\": [320, 129]", "320x129"),
        ("\"shape\": [320, 128]", "\"shape\": [40960]", "shape"),
        ("\"dtype\": \"float32\"", "\"dtype\": \"int8\"", "int8"),
        ("{", "{\"shape\": [1, 1], ", "appears twice"),
        ("}", "", "quant_state"),
    ] {
        let error = text(from, to);
        assert!(error.contains(word), "{to}: {error}");
    }
    for part in ["absmax", "quant_map", "nested_absmax", "nested_quant_map"] {
        let key = format!("{W}.{part}");
        let error = spoiled(&key, |all| drop(all.remove(&key)));
        assert!(error.contains(&key), "{error}");
    }
    let error = spoiled(W, |all| {
        let bytes = all[W].bytes[1..].to_vec();
        all.insert(W.into(), TensorData::new(&[bytes.len(), 1], &bytes));
    });
    assert!(error.contains("packed"), "{error}");
    let nested = format!("{W}.nested_absmax");
    let error = spoiled(&nested, |all| {
        let n = all[&nested].shape[0];
        all.insert(nested.clone(), TensorData::new(&[n], &vec![f32::NAN; n]));
    });
    assert!(error.contains(W), "{error}");
}

#[test]
fn broken_adapters_are_refused_and_change_nothing() {
    let folder = models().join("llama/adapter");
    let whole = tensors(&folder.join("adapter_model.safetensors"));
    let mut model = load(&models().join("llama")).unwrap();
    let before = logits(&model);
    let key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight";
    let attach = |edit: &dyn Fn(&mut Tensors), config: (&str, &str), model: &mut Decoder| {
        let out = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        fs::write(out.path().join("adapter_config.json"), text.replace(config.0, config.1))
            .unwrap();
        let mut all = whole.clone();
        edit(&mut all);
        write_pt(&out.path().join("adapter_model.safetensors"), &all).unwrap();
        let tried = Adapter::load(out.path()).and_then(|adapter| adapter.attach(model));
        tried.map_err(|e| e.to_string())
    };
    let nothing = |_: &mut Tensors| ();
    type Edit<'a> = &'a dyn Fn(&mut Tensors);
    let missing: Edit = &|all| drop(all.remove(key));
    let extra: Edit = &|all| {
        let data = all[key].clone();
        all.insert("base_model.model.model.layers.2.mlp.up_proj.lora_B.weight".into(), data);
    };
    let prefix: Edit = &|all| {
        *all = std::mem::take(all)
            .into_iter()
            .map(|(k, v)| (k.replace("base_model.", ""), v))
            .collect();
    };
    let swapped: Edit = &|all| all.get_mut(key).unwrap().shape.reverse();
    for (edit, config, word) in [
        (missing, ("", ""), key),
        (extra, ("", ""), "layers.2"),
        (prefix, ("", ""), "is missing"),
        (swapped, ("", ""), "[8, 320]"),
        (&nothing, ("\"r\": 8", "\"r\": 4"), "shape"),
        (&nothing, ("\"v_proj\",", ""), "v_proj"),
        (&nothing, ("\"v_proj\",", "\"v_proj\", \"lm_head\","), "lm_head"),
        (&nothing, ("\"use_dora\": false", "\"use_dora\": true"), "DoRA"),
    ] {
        let error = attach(edit, config, &mut model).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
        assert!(!model.has_adapters());
    }
    assert_eq!(logits(&model), before);
    attach(&nothing, ("", ""), &mut model).unwrap();
    assert!(attach(&nothing, ("", ""), &mut model).unwrap_err().contains("adapters"));
}

#[test]
fn an_interrupted_or_refused_conversion_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("nf4");
    let mut folder = open(&models().join("llama-bnb-4bit"));
    assert!(folder.quantize_to(&target, &Nf4Options::default(), &mut quiet).is_err());
    let options = Nf4Options { blocksize: 100, ..Nf4Options::default() };
    assert!(open(&models().join("llama")).quantize_to(&target, &options, &mut quiet).is_err());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "x").unwrap();
    let error =
        open(&models().join("llama")).quantize_to(&target, &Nf4Options::default(), &mut quiet);
    assert!(error.unwrap_err().to_string().contains("not an empty folder"));
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "x");
}

/// Every file of a folder cut at many lengths, and with single bits flipped in its headers: an error
/// or, where only values changed, a model; never a panic.
#[test]
fn truncated_and_flipped_files_never_panic() {
    for (name, file) in [
        ("llama3-sharded", "model-00002-of-00003.safetensors"),
        ("llama3-sharded", "model.safetensors.index.json"),
        ("llama3-sharded", "config.json"),
        ("llama-bnb-4bit", "model.safetensors"),
        ("llama3-sharded", "generation_config.json"),
    ] {
        let folder = copy(name);
        let path = folder.path().join(file);
        let whole = fs::read(&path).unwrap();
        for i in 0..24 {
            fs::write(&path, &whole[..whole.len() * i / 24]).unwrap();
            assert!(load(folder.path()).is_err(), "{file} cut at {i}/24");
        }
        for i in 0..160 {
            let mut bytes = whole.clone();
            // Most flips hit what comes first: lengths, names, offsets.
            let at = (i * i * 131) % whole.len().min(if i % 2 == 0 { 4_000 } else { usize::MAX });
            bytes[at] ^= 1 << (i % 8);
            fs::write(&path, &bytes).unwrap();
            let _ = load(folder.path());
        }
    }
}
