"""Golden models beyond the plain ones, from transformers and PEFT.

    python golden_variants.py tests/golden/models [sharded | patterns | tied | pictures ...]

* llama3-sharded: Llama 3's rope scaling, tied head, bf16 in three shards, config.json as transformers 4
  spelled it.
* llama/adapter-patterns: a rank-stabilized adapter with rank and alpha patterns, targets by regular
  expression, and a whole copy of the head.
* llama3-sharded/adapter-{embed,head,both}: adapters of a model with a tied head that hold the embedding, the
  head, or each of them whole. PEFT keeps the head that the adapter does not hold, and unties it on merging.
* qwen2_5_vl: Qwen2.5-VL with a small tower, logits of text alone, and an adapter of its language part.
* qwen2_5_vl-flat: the same model as transformers 4 spelled it: settings of the language part in the file
  itself, `visual.` and `model.layers.` for names.
"""

import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

root = pathlib.Path(sys.argv[1])


def logits(model, ids, path, what):
    with torch.no_grad():
        out = model.eval()(ids).logits.float()
    save_file({"input_ids": ids, "logits": out.contiguous()}, path, {"peer": what})
    print(path, f"{out.abs().max():.3f}")


def sharded():
    folder = root / "llama3-sharded"
    shutil.rmtree(folder, ignore_errors=True)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rope_parameters={"rope_theta": 5000.0, **rope},
        tie_word_embeddings=True, initializer_range=0.2, eos_token_id=[2, 5], rms_norm_eps=1e-5,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="50KB")
    ids = torch.randint(96, (1, 160), generator=torch.Generator().manual_seed(2))
    # Loaded again: `to(bfloat16)` rounded the rotary frequencies, too.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits(model, ids, folder / "golden_logits.safetensors", "transformers, float32 over the bf16 weights")
    stored = json.loads((folder / "config.json").read_text())
    rope = stored.pop("rope_parameters")
    stored["rope_theta"] = rope.pop("rope_theta")
    stored["rope_scaling"] = rope
    stored["torch_dtype"] = stored.pop("dtype")
    del stored["head_dim"]
    (folder / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def patterns():
    folder = root / "llama" / "adapter-patterns"
    shutil.rmtree(folder, ignore_errors=True)
    base = AutoModelForCausalLM.from_pretrained(root / "llama", dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=r".*layers\.\d+\.(self_attn\.q_proj|mlp\.(up|down)_proj)",
        rank_pattern={"layers.0.self_attn.q_proj": 8}, alpha_pattern={"mlp.down_proj": 3},
        modules_to_save=["lm_head"], task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
            elif "modules_to_save" in name:
                p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    stored = json.loads((folder / "adapter_config.json").read_text())
    stored["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    ids = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(4))
    fresh = AutoModelForCausalLM.from_pretrained(root / "llama", dtype=torch.float32)
    logits(PeftModel.from_pretrained(fresh, folder), ids, folder / "golden_logits.safetensors", "peft")


def tied():
    base = root / "llama3-sharded"
    ids = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(5))
    for name, whole in [("embed", ["embed_tokens"]), ("head", ["lm_head"]), ("both", ["embed_tokens", "lm_head"])]:
        folder = base / f"adapter-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        load = lambda: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=whole, task_type="CAUSAL_LM")
        torch.manual_seed(6)
        model = get_peft_model(load(), config)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.normal_(0, 0.1)
                elif "modules_to_save" in key:
                    p.add_(torch.randn_like(p) * 0.1)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        stored = json.loads((folder / "adapter_config.json").read_text())
        stored["base_model_name_or_path"] = None
        (folder / "adapter_config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
        model = PeftModel.from_pretrained(load(), folder)
        logits(model, ids, folder / "golden_logits.safetensors", "peft")
        merged = model.merge_and_unload()
        assert not merged.config.tie_word_embeddings
        with torch.no_grad():
            off = (merged(ids).logits - load_file(folder / "golden_logits.safetensors")["logits"]).abs().max()
        print(f"merged {off:.1e} apart, the head is the base's: {merged.lm_head.weight.equal(load().lm_head.weight)}")


def pictures():
    folder, flat = root / "qwen2_5_vl", root / "qwen2_5_vl-flat"
    for path in (folder, flat):
        shutil.rmtree(path, ignore_errors=True)
    rope = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 3, 3]}
    text = dict(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6, initializer_range=0.2,
        rope_parameters=rope, bos_token_id=1, eos_token_id=2,
    )
    tower = dict(
        depth=1, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=64, window_size=16,
        fullatt_block_indexes=[0],
    )
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=tower, image_token_id=250, video_token_id=251, vision_start_token_id=252,
        vision_end_token_id=253, tie_word_embeddings=False,
    )
    torch.manual_seed(7)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("_proj.bias"):
                p.normal_(0, 0.2)
    model.save_pretrained(folder)
    ids = torch.randint(250, (2, 24), generator=torch.Generator().manual_seed(8))
    logits(model, ids, folder / "golden_logits.safetensors", "transformers, text alone")
    spelled_flat(folder, flat)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(flat, dtype=torch.float32)
    with torch.no_grad():
        assert again.eval()(ids).logits.equal(model(ids).logits), "transformers reads both alike"
    adapter = folder / "adapter"
    targets = r"model\.language_model\..*\.(q_proj|v_proj|down_proj)"
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
    peft.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    stored = json.loads((adapter / "adapter_config.json").read_text())
    stored["base_model_name_or_path"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    logits(peft, ids, adapter / "golden_logits.safetensors", "peft")


def spelled_flat(folder, flat):
    """The folder as it would be on the hub."""
    flat.mkdir()
    stored = json.loads((folder / "config.json").read_text())
    text = stored.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "use_sliding_window": False}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    for key in ("layer_types", "model_type", "dtype"):
        text.pop(key, None)
    stored["vision_config"].pop("rope_parameters", None)
    stored["torch_dtype"] = stored.pop("dtype")
    (flat / "config.json").write_text(json.dumps(text | stored, indent=2, sort_keys=True) + "\n")
    old = lambda name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
    weights = load_file(folder / "model.safetensors")
    save_file({old(name): w for name, w in weights.items()}, flat / "model.safetensors", {"format": "pt"})
    shutil.copy(folder / "generation_config.json", flat)


for make in [sharded, patterns, tied, pictures]:
    if make.__name__ in sys.argv[2:] or not sys.argv[2:]:
        make()
