#!/usr/bin/env python3
"""A reward as a command: short completions score more, unfinished ones have no score.

One JSON object per line comes in, one goes out. Standard output belongs to the protocol, so
messages for people go to standard error. The loop ends when standard input does.

    reward = ["cmd:python3 examples/rewards/length.py 80"]
"""

import json
import sys

scale = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0

for line in sys.stdin:
    sample = json.loads(line)
    score = None  # no opinion
    if sample["finished"]:
        score = 1.0 / (1.0 + len(sample["completion"]) / scale)
    print(json.dumps({"id": sample["id"], "score": score}), flush=True)
