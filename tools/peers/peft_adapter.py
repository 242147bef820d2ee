"""An adapter that gradus wrote, in PEFT: no key missing, none left over, the same logits.

    python peft_adapter.py MODEL ADAPTER [LOGITS] [--built target/release]

LOGITS is what `cargo run --example adapter_logits -- MODEL ADAPTER LOGITS` wrote. Exit status 1 on any
difference over 1e-5 of the largest logit.
"""

import sys
import warnings

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main() -> int:
    model, adapter, *rest = sys.argv[1:]
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base, adapter).eval()
    keys = [str(w.message) for w in said if "key" in str(w.message)]
    stored = load_file(f"{adapter}/adapter_model.safetensors")
    loaded = get_peft_model_state_dict(adapted)
    missing, left = sorted(set(loaded) - set(stored)), sorted(set(stored) - set(loaded))
    wrong = [k for k in stored if k in loaded and not torch.equal(stored[k], loaded[k].cpu().float())]
    print(f"{len(stored)} keys, {len(missing)} missing, {len(left)} left over, {len(wrong)} of other values, {len(keys)} warnings")
    bad = bool(missing or left or wrong or keys)
    for path in rest:
        ours = load_file(path)
        with torch.no_grad():
            theirs = adapted(ours["input_ids"]).logits
        off = ((theirs - ours["logits"]).abs().max() / theirs.abs().max()).item()
        moved = (theirs - base_logits(adapted, ours["input_ids"])).abs().max().item()
        print(f"logits: {off:.1e} of the largest apart; the adapter moves them by {moved:.1e}")
        bad |= off > 1e-5
    return int(bad)


def base_logits(adapted, ids):
    with torch.no_grad(), adapted.disable_adapter():
        return adapted(ids).logits


sys.exit(main())
