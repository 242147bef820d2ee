#!/usr/bin/env python3
"""A reward as a command: symbolic equality by the package math-verify, 1 or 0.

It reads what the built-in reward `numeric` refuses: expressions with variables, equations, functions,
choices by letter. `pip install math-verify` provides it. Reasoning is set apart as by the built-in
rewards: what precedes the last `</think>` is not the answer, and `<think>` that is never closed
has none.

The gold is the row's `answer`, or the field that the argument names; of a list any will do. A gold
from which math-verify reads nothing costs its sample alone, with the reason.

    reward = ["cmd:python3 examples/rewards/math_verify.py solution"]
"""

import json
import logging
import sys

# The folder of this script comes first there, and the script has the package's name.
sys.path.pop(0)
import math_verify

# The package logs what it cannot parse; that is no news here.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
FIELD = sys.argv[1] if len(sys.argv) > 1 else "answer"


def conclusion(completion):
    """What follows the last closing mark of reasoning, or None if it is still open."""
    answer = completion.rpartition("</think>")[2]
    return None if "<think>" in answer else answer


def expressions(gold):
    """What math-verify reads in a gold, which stands alone or in a worked solution."""
    text = str(gold)
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    marked = "$" in text or "\\boxed" in text
    found = math_verify.parse(text if marked else f"${text}$")
    if not found:
        raise ValueError(f"math-verify reads nothing in the gold {gold!r}")
    return found


def judge(sample):
    golds = sample["fields"][FIELD]
    golds = [expressions(gold) for gold in (golds if isinstance(golds, list) else [golds])]
    answer = conclusion(sample["completion"]) if sample["finished"] else None
    if answer is None:
        return 0.0
    said = math_verify.parse(answer)
    # The order of the two matters to math-verify: the gold goes first.
    return float(any(math_verify.verify(gold, said) for gold in golds))


def main():
    for line in sys.stdin:
        sample = json.loads(line)
        reply = {"id": sample["id"]}
        try:
            reply["score"] = judge(sample)
        except Exception as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
