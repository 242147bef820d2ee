"""Golden models beyond the plain ones, from transformers and PEFT.

    python golden_variants.py tests/golden/models [sharded | patterns | tied ...]

* llama3-sharded: Llama 3's rope scaling, tied head, bf16 in three shards, config.json as transformers 4
  spelled it.
* llama/adapter-patterns: a rank-stabilized adapter with rank and alpha patterns, targets by regular
  expression, and a whole copy of the head.
* llama3-sharded/adapter-{embed,head,both}: adapters of a model with a tied head that hold the embedding, the
  head, or each of them whole. PEFT keeps the head that the adapter does not hold, and unties it on merging.
"""

import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

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


for make in [sharded, patterns, tied]:
    if make.__name__ in sys.argv[2:] or not sys.argv[2:]:
        make()
