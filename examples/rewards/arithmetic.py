#!/usr/bin/env python3
"""A reward as a command: 1 if the completion's last number is the row's `answer`.

What goes wrong with one sample is said in `error` and costs that sample alone. The next sample is
served as if nothing had been.

    reward = ["cmd:python3 examples/rewards/arithmetic.py"]
"""

import json
import re
import sys
from fractions import Fraction

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/[1-9]\d*)?")


def number(text):
    """The last number in a text, or None. A decimal over an integer is written nowhere."""
    found = NUMBER.findall(text.replace(",", ""))
    return Fraction(found[-1]) if found and not ("." in found[-1] and "/" in found[-1]) else None


def judge(sample):
    gold = number(str(sample["fields"]["answer"]))
    if gold is None:
        raise ValueError("the row's answer holds no number")
    return float(number(sample["completion"]) == gold)


for line in sys.stdin:
    sample = json.loads(line)
    reply = {"id": sample["id"]}
    try:
        reply["score"] = judge(sample)
    except Exception as error:
        reply["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(reply), flush=True)
