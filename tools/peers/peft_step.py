#!/usr/bin/env python3
"""A training step of a PEFT model on the CPU: its layers on gradus' 4-bit products, and dequantized in torch.

    python3 tools/peers/peft_step.py [--rounds 7] [--layers 30] [--tokens 68] [--rows 4] [--rank 16]

SmolLM2-135M's shape with random weights, f32, adapters on all seven projections. Both sides share every parameter:
the steps alternate, in one process and on the same threads (torch's). Printed are each side's median, the median of
the ratios of neighbors, and how far gradients are apart. `--threads own` takes the library's threads instead.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import gradus
from gradus import torch as gt

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model_of(layers: int, rank: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), lora)


class Layers:
    """The adapted layers of a model, on either side."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.found = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
        self.weights = []
        for layer in self.found:
            weight = layer.base_layer.weight
            quantized = gradus.quantize_4bit(weight.detach(), double_quant=True)
            weight.data.copy_(quantized.dequantize())
            self.weights.append(quantized)

    def take(self, ours: bool) -> None:
        for layer, w in zip(self.found, self.weights):
            layer.__dict__.pop("forward", None)
            if ours:
                layer.forward = forward_of(layer, w)


def forward_of(layer, w):
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    return lambda x: gt.nf4_matmul(x, w, a=a, b=b, scale=scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rounds", 7), ("layers", 30), ("tokens", 68), ("rows", 4), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", choices=["torch", "own"], default="torch")
    options = parser.parse_args()
    gradus.set_threads(options.threads)
    model = model_of(options.layers, options.rank)
    layers = Layers(model)
    ids = torch.randint(49152, (options.rows, options.tokens), generator=torch.Generator().manual_seed(1))
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(ours: bool) -> tuple[float, float, list[torch.Tensor]]:
        layers.take(ours)
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        forward = time.perf_counter() - start
        grads = torch.autograd.grad(loss, trained)
        return time.perf_counter() - start, forward, list(grads)

    step(True), step(False)
    pairs = []
    for i in range(options.rounds):
        found = {ours: step(ours) for ours in ((True, False) if i % 2 else (False, True))}
        pairs.append((found[True], found[False]))
    apart = max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in zip(pairs[-1][0][2], pairs[-1][1][2])
    )
    for at, name in ((0, "step"), (1, "forward")):
        ours, dense = (statistics.median(pair[side][at] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(a[at] / b[at] for a, b in pairs)
        print(f"{name:8} gradus {ours:.2f} s   torch, dequantized {dense:.2f} s   ratio {ratio:.2f}")
    print(f"threads {options.threads} ({torch.get_num_threads()})   gradients {apart:.1e} of their scale apart")


if __name__ == "__main__":
    main()
