#!/usr/bin/env python3
"""`gradus serve` asked by the `openai` package and by curl.

    python3 tools/peers/openai_client.py target/release/gradus [MODEL_FOLDER]

Without a folder it serves the golden Qwen3 model with a chat template of its own. Needs `openai` from PyPI, and curl.
"""

import concurrent.futures
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import openai

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/models/qwen3"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def golden(place):
    """The golden model with a chat template."""
    folder = pathlib.Path(place) / "tiny"
    folder.mkdir()
    for name in ["config.json", "model.safetensors"]:
        shutil.copy(GOLDEN / name, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def curl(address, path, body=None):
    """Status and text of an answer."""
    command = ["curl", "-s", "-N", "-w", "\n%{http_code}", address + path]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    text, _, status = subprocess.check_output(command, text=True).rpartition("\n")
    return int(status), text


def refused(kind, param, call, **arguments):
    """The client has to read a refusal as `kind`, about `param`."""
    try:
        call(**arguments)
    except kind as error:
        assert error.param == param and f"`{param}`" in error.message, error
        return
    raise AssertionError(f"{arguments} is not refused")


def chats(client, model):
    messages = [{"role": "user", "content": "Say something about ships."}]
    asked = dict(model=model, messages=messages, seed=5, max_tokens=24, temperature=0.8)
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    choice = whole.choices[0]
    assert whole.usage.completion_tokens == len(choice.logprobs.content) <= 24
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
    parts = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    parts = list(parts)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert parts[-1].usage == whole.usage
    # The same request among others, with other settings, has the same answer.
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        same = [pool.submit(client.chat.completions.create, **asked) for _ in range(4)]
        others = [
            pool.submit(client.chat.completions.create, **{**asked, "seed": seed, "temperature": seed / 4})
            for seed in range(8)
        ]
        assert all(one.result().choices[0].message.content == text for one in same)
        assert len({one.result().choices[0].message.content for one in others}) > 4
    for param, value in [("n", 0), ("top_p", 2.0), ("response_format", {"type": "json_object"}), ("logit_bias", {"1": 5})]:
        refused(openai.BadRequestError, param, client.chat.completions.create, **{**asked, param: value})
    refused(openai.NotFoundError, "model", client.chat.completions.create, **{**asked, "model": "gpt-4o"})


def episodes(client, model):
    """A loop that owns its episode: ids go in and come out, and only grow."""
    extra = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    prompt, drawn = [65, 66, 67], []
    for turn in range(3):
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=6, seed=turn, temperature=1, logprobs=0, extra_body=extra
        )
        choice = answer.choices[0]
        assert choice.prompt_token_ids == prompt, choice
        assert choice.logprobs.tokens == [f"token_id:{id}" for id in choice.token_ids]
        assert len(choice.logprobs.token_logprobs) == len(choice.token_ids)
        drawn.append(choice.token_ids)
        prompt = [*prompt, *choice.token_ids, 10]
    assert len(prompt) == 3 + sum(map(len, drawn)) + 3
    many = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]


def adapters(address, client, model):
    load = {"lora_name": "tuned", "lora_path": str(GOLDEN / "adapter")}
    assert curl(address, "/v1/load_lora_adapter", load)[0] == 200
    assert {one.id for one in client.models.list()} == {model, "tuned"}
    texts = {
        name: client.completions.create(model=name, prompt="abc", max_tokens=24, seed=1).choices[0].text
        for name in [model, "tuned"]
    }
    assert texts[model] != texts["tuned"]
    assert curl(address, "/v1/load_lora_adapter", load)[0] == 400
    assert curl(address, "/v1/unload_lora_adapter", {"lora_name": "tuned"})[0] == 200
    refused(openai.NotFoundError, "model", client.completions.create, model="tuned", prompt="a")


def main():
    gradus, *folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        model = pathlib.Path(folder[0]) if folder else golden(place)
        server = subprocess.Popen([gradus, "serve", "--model", model, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            line = server.stdout.readline()
            print(line, end="")
            address = line.split(" at ")[1].split("/v1")[0]
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            name = model.name
            assert [one.id for one in client.models.list()] == [name]
            assert curl(address, "/health") == (200, "")
            chats(client, name)
            episodes(client, name)
            if not folder:
                adapters(address, client, name)
            status, text = curl(
                address, "/v1/chat/completions",
                {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True},
            )
            assert status == 200 and text.rstrip().endswith("data: [DONE]"), text
            assert curl(address, "/v1/chat/completions", {"model": name})[0] == 400
            assert "gradus_generated_tokens_total" in curl(address, "/metrics")[1]
        finally:
            server.send_signal(signal.SIGINT)
            code = server.wait(timeout=30)
    assert code == 130, code
    print(f"openai {openai.__version__} and curl: chats, streams, ids in and out, refusals, a signal")


if __name__ == "__main__":
    main()
