#!/usr/bin/env python3
"""The adapters of examples/envs/serve.py on environments of the real packages.

    python3 tools/peers/env_adapters.py target/release/gradus

Needs, from PyPI, gymnasium, skyrl-gym, tinker-cookbook, openenv-core, trl, and verifiers before version 0.2. What does not import is
named and left out; `--all` makes that an error.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

ENVS = pathlib.Path(__file__).resolve().parents[2] / "examples/envs"

WORLDS = '''
import sys
sys.path.insert(0, {envs!r})
import worlds
from worlds import guess_in, number_of, open_action, told

def gym():
    import gymnasium
    return gymnasium.make("CliffWalking-v1" if "CliffWalking-v1" in gymnasium.registry else "CliffWalking-v0")

def skyrl(extras):
    from skyrl_gym.envs.gsm8k.env import GSM8kEnv
    return GSM8kEnv(extras=extras)

def tinker(seed):
    from tinker_cookbook.rl.message_env import MessageEnv, MessageStepResult

    class World(worlds.TinkerWorld, MessageEnv):
        async def step(self, message):
            out = await super().step(message)
            return MessageStepResult(out.reward, out.episode_done, out.next_messages)

    return World(seed)

def verifiers():
    import verifiers as vf
    from datasets import Dataset

    def score(state):
        return float(guess_in(state["trajectory"][-1]["completion"][-1]["content"]) == state["hidden"])

    class World(vf.MultiTurnEnv):
        async def setup_state(self, state):
            state["hidden"] = number_of(state["input"]["seed"])
            return state

        @vf.stop
        async def solved(self, state):
            return bool(state["trajectory"]) and score(state) == 1.0

        async def env_response(self, messages, state, **kwargs):
            return [{{"role": "user", "content": told(guess_in(messages[-1]["content"]), state["hidden"])}}]

    rows = Dataset.from_list([{{"question": "?", "answer": ""}}])
    return World(dataset=rows, rubric=vf.Rubric(funcs=[score]))

def openenv():
    from openenv.core.client_types import StepResult

    class World(worlds.OpenWorld):
        async def reset(self, seed=None):
            return StepResult(**vars(await super().reset(seed)))

        async def step(self, action):
            return StepResult(**vars(await super().step(action)))

    return World()
'''

QUESTION = "Guess my number from 0 to 9."
GUESS = [{"seed": seed, "prompt": QUESTION} for seed in range(3)]
SUMS = [{"prompt": f"{n}+1?", "reward_spec": {"ground_truth": str(n + 1)}} for n in range(3)]

# Kind, what has to import, further arguments, rows (none: the environment's own).
CASES = [
    ("gym", "gymnasium", [], None),
    ("skyrl", "skyrl_gym", [], SUMS),
    ("tinker", "tinker_cookbook.rl.message_env", [], GUESS),
    ("verifiers", "verifiers", [], GUESS),
    ("openenv", "openenv.core.client_types", ["--action", "real:open_action", "--show", "worlds:open_show"], GUESS),
]


def check(gradus, place, kind, more, rows):
    """Plays the environment as `gradus env check` does."""
    serve = ["python3", str(ENVS / "serve.py"), kind, f"real:{kind}", *more]
    serve[0] = sys.executable
    if rows is None:
        text = subprocess.check_output([*serve, "--rows", "3"], cwd=place, text=True)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "rows.jsonl").write_text(text)
    command = [gradus, "env", "check", "cmd:" + " ".join(serve), "--data", "rows.jsonl", "--set", "reward.startup=120"]
    done = subprocess.run(command, cwd=place, text=True, capture_output=True)
    assert done.returncode == 0, f"{kind}:\n{done.stdout}{done.stderr}"
    print(f"{kind}: {done.stdout.count('  says  ')} answers, {done.stdout.count('(over)')} episodes over")


def trl_schemas():
    """Schemas of tools beside those that TRL's own templates get."""
    from transformers.utils import get_json_schema

    sys.path.insert(0, str(ENVS))
    import serve
    import worlds

    ours, theirs = serve.schema("guess", worlds.TrlWorld().guess), get_json_schema(worlds.TrlWorld().guess)
    assert ours["function"]["parameters"]["properties"] == theirs["function"]["parameters"]["properties"], (ours, theirs)
    assert ours["function"]["description"] == theirs["function"]["description"]
    print("trl: the schema of a tool is the one of transformers")


def main():
    gradus, *options = sys.argv[1:]
    gradus, left_out = str(pathlib.Path(gradus).resolve()), []
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        (place / "real.py").write_text(WORLDS.format(envs=str(ENVS)))
        for kind, module, more, rows in CASES:
            try:
                importlib.import_module(module)
            except Exception as error:
                left_out.append(f"{kind}: {type(error).__name__}: {error}")
                continue
            check(gradus, place, kind, more, rows)
    try:
        trl_schemas()
    except ImportError as error:
        left_out.append(f"trl: {error}")
    for line in left_out:
        print("left out,", line)
    if left_out and "--all" in options:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
