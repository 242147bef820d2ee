"""Tasks that a model of 135 million parameters half knows. Each is a list of rows for gradus, a reward by
name, and the tokens that an answer may take."""

import dataclasses
import json
import random

NUMBER_ONLY = "Reply with the number only."


@dataclasses.dataclass
class Task:
    """Rows with `prompt`, `completion` (a right answer or episode, for supervised warm-up) and what the reward reads."""

    rows: list
    reward: str
    new_tokens: int


def sums() -> Task:
    """Sums of two digits from 1 to 9: 81 pairs in 4 wordings."""
    wordings = ["What is {a}+{b}?", "Add {a} and {b}.", "{a} plus {b} equals what?", "Calculate {a} + {b}."]
    rows = [
        row(f"{wording.format(a=a, b=b)} {NUMBER_ONLY}", str(a + b), answer=str(a + b))
        for a in range(1, 10)
        for b in range(1, 10)
        for wording in wordings
    ]
    return Task(rows, "numeric", 16)


def larger() -> Task:
    """Which of two numbers below 1,000 is larger: 400 pairs in 2 wordings."""
    draw = random.Random(1)
    rows = []
    for _ in range(400):
        a, b = draw.sample(range(10, 1000), 2)
        for wording in [f"Which number is larger, {a} or {b}?", f"Give the maximum of {a} and {b}."]:
            rows.append(row(f"{wording} {NUMBER_ONLY}", str(max(a, b)), answer=str(max(a, b))))
    return Task(rows, "numeric", 16)


def extract() -> Task:
    """A sentence about a person as one JSON object: 400 people."""
    names = ["Ana", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam"]
    cities = ["Oslo", "Rome", "Lima", "Cairo", "Paris", "Quito", "Delhi", "Seoul", "Bern", "Dakar"]
    draw = random.Random(3)
    rows = []
    for _ in range(400):
        right = {"name": draw.choice(names), "age": draw.randrange(18, 90), "city": draw.choice(cities)}
        prompt = (
            f"{right['name']} is {right['age']} years old and lives in {right['city']}. "
            "Write this as one JSON object with the keys name, age and city. Reply with the JSON only."
        )
        rows.append(row(prompt, json.dumps(right), schema=constant(right)))
    return Task(rows, "json:name,age,city", 48)


def dates() -> Task:
    """A date in words as one JSON object of three numbers: 400 dates."""
    months = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October"]
    months += ["November", "December"]
    draw = random.Random(2)
    rows = []
    for _ in range(400):
        day, month, year = draw.randrange(1, 29), draw.randrange(12), draw.randrange(1900, 2100)
        right = {"day": day, "month": month + 1, "year": year}
        prompt = (
            f"The date is {day} {months[month]} {year}. Write it as one JSON object with the keys day, month and year. "
            "All values are numbers. Reply with the JSON only."
        )
        rows.append(row(prompt, json.dumps(right), schema=constant(right)))
    return Task(rows, "json:day,month,year", 40)


def constant(right: dict) -> dict:
    """The JSON schema that only `right` satisfies, other keys aside."""
    return {"properties": {key: {"const": value} for key, value in right.items()}, "required": list(right)}


def products() -> Task:
    """Products of two numbers of two digits, with a calculator: an episode of two answers. 400 pairs in 4 wordings."""
    wordings = ["What is {a} * {b}?", "Multiply {a} by {b}.", "{a} times {b} equals what?", "Calculate {a} * {b}."]
    tool = (
        "You have a calculator: write the product between << and >>, as in <<7*8>>, and you are told its value. "
        "Then reply with the number only."
    )
    draw = random.Random(4)
    rows = []
    for i in range(400):
        a, b = draw.randrange(12, 100), draw.randrange(12, 100)
        said = [("assistant", f"<<{a}*{b}>>"), ("user", str(a * b)), ("assistant", str(a * b))]
        episode = [{"role": role, "content": text} for role, text in said]
        rows.append(row(f"{wordings[i % 4].format(a=a, b=b)} {tool}", episode, answer=str(a * b)))
    return Task(rows, "numeric", 24)


TASKS = {"sums": sums, "larger": larger, "extract": extract, "dates": dates, "products": products}


def row(prompt: str, completion: str | list, **fields) -> dict:
    return {"prompt": prompt, "completion": completion, **fields}
