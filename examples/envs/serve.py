#!/usr/bin/env python3
"""Environments that were written for other trainers, for `env.kind = "cmd:..."` of gradus.

    gradus train --model DIR --data rows.jsonl --set 'env.kind=cmd:python3 serve.py KIND MODULE:NAME'

KIND says what MODULE:NAME is. NAME is a class, or a function that makes an environment. It is called with those of
the row's columns, `seed`, `prompt`, `extras` (all columns) and `env_config` (empty) that it has parameters for.

    trl        a class for TRL's environment_factory: reset(**columns), public methods as tools, get_reward()
    skyrl      a skyrl_gym BaseTextEnv: init(messages), step(text)
    tinker     a MessageEnv of tinker-cookbook: initial_observation(), step(message)
    verifiers  a MultiTurnEnv of verifiers 0.1: env_response(messages, state), is_completed(state), rubric
    gym        a gymnasium.Env: reset(seed=...), step(action)
    openenv    a client of OpenEnv, async or .sync(): reset(), step(action)

The first observation of an environment has to be in the row's prompt. This writes such rows, and the schemas of
tools for the chat template; with a number the rows are seeds, with a file its columns are kept:

    python3 serve.py gym cliff:make --rows 500 > rows.jsonl
    python3 serve.py trl wordle:WordleEnv --rows dataset.jsonl > rows.jsonl

Where all first observations are the same, no row can be held out by its prompt: set data.heldout_share=0.
Coroutines of all episodes wait together; what is no coroutine is called one after another, in each of the run's
`reward.workers` processes.

`--action MODULE:NAME` makes an action of an answer, `--show MODULE:NAME` a text of an observation. Without them
an action is the answer's last whole number where the environment says how many there are (action_space.n), else
its text, and an observation is printed. An episode that a limit of the run cuts off has what the scores of its
environment (get_reward, rubric) came to by then: they are asked after every answer, which is given the change.

Nothing but Python 3.10 is needed, beside what the environment itself imports.
"""

import argparse
import asyncio
import importlib
import inspect
import json
import os
import re
import sys
import time
import typing
from contextlib import nullcontext


def load(name):
    """The object MODULE:NAME; modules beside the working directory are found."""
    module, _, path = name.partition(":")
    if not path:
        raise SystemExit(f"serve.py: {name!r} is no MODULE:NAME")
    sys.path.insert(0, os.getcwd())
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def fitting(function, known):
    """Those of `known` that `function` has parameters for; all columns for one that takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(known["extras"])
    return {p.name: known[p.name] for p in parameters if p.name in known}


async def settled(value):
    """The value of a coroutine, or the value itself."""
    return await value if inspect.isawaitable(value) else value


def text_of(messages):
    """The words of messages, which are dicts or a text."""
    if messages is None or isinstance(messages, str):
        return messages or ""
    contents = [message["content"] for message in messages]
    parts = [[{"text": c}] if isinstance(c, str) else c for c in contents]
    return "\n".join("".join(part.get("text", "") for part in content or []) for content in parts)


class World:
    """One episode. `begin` gives the first observation, or nothing; `step` what is said, or None once the episode
    is over, and what the answer is worth."""

    def __init__(self, make, options):
        self.make, self.options, self.scored = make, options, 0.0

    async def begin(self, known):
        self.env = await settled(self.make(**fitting(self.make, known)))
        return await self.first(known)

    def change(self, score):
        """What a score has changed by since it was asked last."""
        before, self.scored = self.scored, float(score or 0.0)
        return self.scored - before

    def shown(self, observation):
        return str(self.options.show(observation)) if self.options.show else str(observation)

    def action(self, answer):
        """The action that an answer means; ValueError for one that means none."""
        if self.options.action:
            return self.options.action(answer)
        count = getattr(getattr(self.env, "action_space", None), "n", None)
        if count is None:
            return answer
        start = int(getattr(self.env.action_space, "start", 0))
        numbers = [int(number) for number in re.findall(r"-?\d+", answer)]
        if not numbers or not start <= numbers[-1] < start + count:
            raise ValueError(f"an action is a whole number from {start} to {start + int(count) - 1}")
        return numbers[-1]

    async def end(self):
        close = getattr(getattr(self, "env", None), "close", None)
        if close:
            await settled(close())


class Trl(World):
    def tools(self):
        members = inspect.getmembers(type(self.env), inspect.isfunction)
        hidden = ("reset", "get_reward", "close")
        return {n: getattr(self.env, n) for n, _ in members if n not in hidden and n[0] != "_"}

    async def first(self, known):
        return text_of(await settled(self.env.reset(**known["extras"])))

    async def step(self, answer, finished):
        calls = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", answer, re.DOTALL)
        said = [await self.call(call) for call in calls]
        score = getattr(self.env, "get_reward", None)
        reward = self.change(await settled(score()) if score else 0.0)
        return ("\n".join(said) if said else None), reward

    async def call(self, text):
        """What a tool says. Errors are said, as TRL does."""
        try:
            call = json.loads(text)
            tool = self.tools().get(call["name"])
            if tool is None:
                raise ValueError(f"Tool {call['name']} not found.")
            return str(await settled(tool(**call.get("arguments", {}))))
        except Exception as error:
            return str({"error": str(error)})

    def schemas(self):
        return [schema(name, tool) for name, tool in self.tools().items()]


class SkyRl(World):
    async def first(self, known):
        asked = known["prompt"]
        asked = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        messages, _ = await settled(self.env.init(asked))
        return text_of(messages[-1:])

    async def step(self, answer, finished):
        out = await settled(self.env.step(answer))
        said = None if out["done"] else text_of(out["observations"])
        return said, float(out["reward"])


class Tinker(World):
    async def first(self, known):
        self.history = list(await settled(self.env.initial_observation()))
        return text_of(self.history[-1:])

    async def step(self, answer, finished):
        message = {"role": "assistant", "content": answer}
        out = await settled(self.env.step(message))
        if out.episode_done:
            return None, float(out.reward)
        before = len(self.history)
        if list(out.next_messages[:before]) != self.history:
            raise ValueError("the environment rewrites its history, and what was read stays read")
        self.history = list(out.next_messages)
        return text_of(self.history[before + 1 :]), float(out.reward)


class Verifiers(World):
    shared = {}

    async def begin(self, known):
        # One environment has all episodes; what is an episode's own is in its state.
        if self.make not in self.shared:
            self.shared[self.make] = await settled(self.make())
        self.env = self.shared[self.make]
        if not hasattr(self.env, "env_response"):
            raise ValueError("no MultiTurnEnv of verifiers 0.1; version 1 asks an endpoint: gradus serve")
        row, asked = known["extras"], known["prompt"]
        asked = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        self.state = {
            "prompt": asked, "completion": [], "trajectory": [], "answer": row.get("answer", ""),
            "info": row.get("info") or {}, "task": row.get("task", "default"), "input": row,
            "timing": {"start_time": time.time(), "generation_ms": 0.0, "scoring_ms": 0.0, "total_ms": 0.0},
            "metrics": None, "reward": None, "error": None, "final_env_response": None, "is_completed": False,
            "example_id": row.get("example_id", 0), "stop_condition": None, "is_truncated": False,
        }
        self.state = await settled(self.env.setup_state(self.state)) or self.state
        self.messages = list(self.state["prompt"])
        return text_of(self.messages[-1:])

    async def step(self, answer, finished):
        state, said = self.state, [{"role": "assistant", "content": answer}]
        turn = {"prompt": list(self.messages), "completion": said, "response": None, "tokens": None}
        state["trajectory"].append({**turn, "reward": None, "advantage": None, "extras": {}})
        self.messages += said
        state["completion"] += said
        replies = []
        over = await settled(self.env.is_completed(state))
        if not over:
            replies = list(await settled(self.env.env_response(list(self.messages), state)))
            self.messages += replies
            state["completion"] += replies
            over = state.get("final_env_response") is not None
        score = self.env.rubric.score_rollout
        await settled(score(state, **fitting(score, {"score_sem": nullcontext(), "extras": {}})))
        return (None if over else text_of(replies)), self.change(state["reward"])

    async def end(self):
        pass


class Gym(World):
    async def first(self, known):
        observation, _ = self.env.reset(seed=known["seed"] % 2**31)
        return self.shown(observation)

    async def step(self, answer, finished):
        try:
            action = self.action(answer)
        except ValueError as error:
            return str(error), 0.0
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return (None if terminated or truncated else self.shown(observation)), float(reward)


class OpenEnv(World):
    async def first(self, known):
        reset = self.env.reset
        result = await settled(reset(**fitting(reset, {"seed": known["seed"] % 2**31, "extras": {}})))
        return self.shown(result.observation)

    async def step(self, answer, finished):
        try:
            action = self.action(answer)
        except ValueError as error:
            return str(error), 0.0
        result = await settled(self.env.step(action))
        return (None if result.done else self.shown(result.observation)), float(result.reward or 0.0)


KINDS = {"trl": Trl, "skyrl": SkyRl, "tinker": Tinker, "verifiers": Verifiers, "gym": Gym, "openenv": OpenEnv}

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def schema(name, tool):
    """The schema of a method, from its annotations and its docstring in Google's style."""
    about, _, arguments = (inspect.getdoc(tool) or "").partition("Args:")
    told = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?:\s*(.+)$", arguments.split("Returns:")[0], re.MULTILINE))
    properties, required = {}, []
    for parameter in inspect.signature(tool).parameters.values():
        kind = typing.get_origin(parameter.annotation) or parameter.annotation
        properties[parameter.name] = {"type": TYPES.get(kind, "string"), "description": told.get(parameter.name, "")}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": about.strip(), "parameters": parameters}}


def known_of(seed, prompt, row):
    """What an environment can be made with. A row that has a seed has it for every episode."""
    seed = row.get("seed", seed)
    prompt = row.get("prompt", prompt)
    extras = {**row, "prompt": prompt}
    return {**row, "seed": seed, "prompt": prompt, "extras": extras, "env_config": {}}


async def rows(make, options):
    """Rows whose prompts have the first observations in them."""
    if options.rows.isdecimal():
        given = [{"seed": seed} for seed in range(int(options.rows))]
    else:
        with open(options.rows, encoding="utf-8") as lines:
            given = [json.loads(line) for line in lines if line.strip()]
    for seed, row in enumerate(given):
        world = KINDS[options.kind](make, options)
        seen = await world.begin(known_of(seed, row.get("prompt", ""), row))
        prompt = row.get("prompt", "")
        if isinstance(prompt, str) and seen and seen not in prompt:
            prompt = f"{prompt}\n\n{seen}" if prompt else seen
        elif isinstance(prompt, list) and seen and seen not in text_of(prompt):
            last = {**prompt[-1], "content": f"{text_of(prompt[-1:])}\n\n{seen}"}
            prompt = [*prompt[:-1], last]
        if not prompt:
            raise SystemExit("serve.py: this environment says nothing at first: give --rows a file with prompts")
        tools = world.schemas() if isinstance(world, Trl) else None
        yield {**row, "prompt": prompt, **({"tools": tools} if tools else {})}
        await world.end()


class Server:
    """The worlds of a worker, and its two pipes."""

    def __init__(self, make, options, out):
        self.make, self.options, self.out, self.worlds = make, options, out, {}

    async def reply(self, request):
        op, episode = request["op"], request["episode"]
        if op == "end":
            world = self.worlds.pop(episode, None)
            return await world.end() if world else None
        if op == "begin":
            world = self.worlds[episode] = KINDS[self.options.kind](self.make, self.options)
            prompt = request["prompt"]
            seen = await world.begin(known_of(request["seed"], prompt, request["fields"]))
            if seen and seen not in prompt:
                raise ValueError(f"the first observation {seen[:80]!r} is not in the row's prompt: see --rows")
            return {}
        if op != "step":
            raise ValueError(f"there is no request {op!r}")
        said, reward = await self.worlds[episode].step(request["answer"], request["finished"])
        return {"reward": reward, **({} if said is None else {"says": said})}

    async def answer(self, line):
        request = json.loads(line)
        try:
            reply = await self.reply(request)
        except Exception as error:
            print(f"serve.py: {type(error).__name__}: {error}", file=sys.stderr)
            reply = {"error": f"{type(error).__name__}: {error}"}
        if "id" in request:
            self.out.write(json.dumps({"id": request["id"], **reply}) + "\n")
            self.out.flush()

    async def run(self):
        """Answers each line on a task of its own: worlds that wait do so together."""
        loop, tasks = asyncio.get_running_loop(), set()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            task = loop.create_task(self.answer(line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)


async def main():
    usage = "serve.py KIND MODULE:NAME [--rows N|FILE] [--action MODULE:NAME] [--show MODULE:NAME]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("name", metavar="MODULE:NAME")
    parser.add_argument("--rows", metavar="N|FILE", help="write rows instead")
    parser.add_argument("--action", metavar="MODULE:NAME", help="answer to action")
    parser.add_argument("--show", metavar="MODULE:NAME", help="observation to text")
    options = parser.parse_args()
    # What an environment prints goes to standard error: standard output has lines of the protocol alone.
    out, sys.stdout = sys.stdout, sys.stderr
    make = load(options.name)
    options.action = load(options.action) if options.action else None
    options.show = load(options.show) if options.show else None
    if options.rows is None:
        return await Server(make, options, out).run()
    async for row in rows(make, options):
        out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
