"""Tiny environments in the shapes that serve.py adapts, without the packages: guess a number from 0 to 9.

The number is the row's `hidden`, or follows from its `seed`. Every shape says the same and gives the same rewards.
"""

import asyncio
import re
from types import SimpleNamespace

QUESTION = "Guess my number from 0 to 9."


def number_of(seed):
    return (seed * 7 + 3) % 10


def told(guess, hidden):
    return "higher" if guess < hidden else "lower"


def guess_in(text):
    found = re.findall(r"\d", text)
    return int(found[-1]) if found else 0


class TrlWorld:
    """TRL: environment_factory=TrlWorld."""

    def reset(self, seed=0, **columns):
        self.hidden, self.solved = columns.get("hidden", number_of(seed)), False
        return QUESTION

    def guess(self, number: int):
        """Guesses the number.

        Args:
            number: The guess, from 0 to 9.
        """
        self.solved = self.solved or number == self.hidden
        return "right" if number == self.hidden else told(number, self.hidden)

    async def pause(self, seconds: float = 0.0) -> str:
        """Waits."""
        await asyncio.sleep(seconds)
        return "waited"

    def get_reward(self) -> float:
        return float(self.solved)


class SkyWorld:
    """SkyRL: a BaseTextEnv."""

    def __init__(self, env_config=None, extras=None):
        self.hidden = extras.get("hidden", number_of(extras.get("seed", 0)))

    def init(self, prompt):
        return prompt, {}

    def step(self, action):
        guess = guess_in(action)
        right = guess == self.hidden
        said = [] if right else [{"role": "user", "content": told(guess, self.hidden)}]
        return {"observations": said, "reward": float(right), "done": right, "metadata": {}}

    def close(self):
        pass


class TinkerWorld:
    """Tinker cookbook: a MessageEnv."""

    def __init__(self, seed=0, hidden=None):
        self.hidden = number_of(seed) if hidden is None else hidden

    async def initial_observation(self):
        self.messages = [{"role": "user", "content": QUESTION}]
        return list(self.messages)

    async def step(self, message):
        guess = guess_in(message["content"])
        right = guess == self.hidden
        said = [] if right else [{"role": "user", "content": told(guess, self.hidden)}]
        self.messages += [message, *said]
        return SimpleNamespace(reward=float(right), episode_done=right, next_messages=list(self.messages))


class VerifiersWorld:
    """verifiers 0.1: a MultiTurnEnv."""

    def __init__(self):
        self.rubric = self

    async def setup_state(self, state):
        row = state["input"]
        state["hidden"] = row.get("hidden", number_of(row.get("seed", 0)))
        return state

    async def is_completed(self, state):
        return guess_in(state["trajectory"][-1]["completion"][-1]["content"]) == state["hidden"]

    async def env_response(self, messages, state):
        return [{"role": "user", "content": told(guess_in(messages[-1]["content"]), state["hidden"])}]

    async def score_rollout(self, state, score_sem):
        async with score_sem:
            state["reward"] = float(await self.is_completed(state))


class GymWorld:
    """gymnasium: an Env with ten actions."""

    action_space = SimpleNamespace(n=10, start=0)

    def reset(self, seed=None):
        self.hidden = number_of(seed)
        return QUESTION, {}

    def step(self, action):
        right = action == self.hidden
        return told(action, self.hidden), float(right), right, False, {}


class OpenWorld:
    """OpenEnv: a client, which is asynchronous."""

    async def reset(self, seed=None):
        self.hidden = number_of(seed)
        return SimpleNamespace(observation={"says": QUESTION}, reward=None, done=False)

    async def step(self, action):
        right = action["guess"] == self.hidden
        said = {"says": told(action["guess"], self.hidden)}
        return SimpleNamespace(observation=said, reward=float(right), done=right)

    async def close(self):
        self.hidden = None


def open_action(answer):
    return {"guess": guess_in(answer)}


def open_show(observation):
    return observation["says"]
