"""Logits of the 4-bit golden models computed in f32, by transformers over the weights that
bitsandbytes dequantizes.

    python golden_dense_logits.py tests/golden/models

A 4-bit forward pass of bitsandbytes on the CPU multiplies in bf16 whatever the compute dtype, which puts
its own logits 1e-2 off; these are the ones a 4-bit product in f32 has to give.
"""

import pathlib
import sys

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


def dense(folder: pathlib.Path) -> torch.nn.Module:
    """The model of a 4-bit folder with dense weights."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    state = {}
    for name, value in stored.items():
        if f"{name}.quant_map" in stored:
            parts = {k.removeprefix(f"{name}."): v for k, v in stored.items() if k.startswith(f"{name}.")}
            quant = bnb.QuantState.from_dict(parts, device=torch.device("cpu"))
            value = bnb.dequantize_4bit(value, quant)
        elif ".weight." in name:
            continue
        state[name] = value
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    for folder in sorted(root.glob("*-bnb-4bit")):
        plain = load_file(root / folder.name.removesuffix("-bnb-4bit") / "golden_logits.safetensors")
        ids = plain["input_ids"]
        with torch.no_grad():
            logits = dense(folder)(ids).logits
        path = folder / "golden_logits_f32.safetensors"
        save_file({"input_ids": ids, "logits": logits}, path, {"peer": "transformers, bitsandbytes' dequantize_4bit"})
        print(path, f"{logits.abs().max():.3f}")


main()
