"""A reward without a bound: one for each word of a completion."""

import json
import sys

for line in sys.stdin:
    sample = json.loads(line)
    print(json.dumps({"id": sample["id"], "score": float(len(sample["completion"].split()))}), flush=True)
