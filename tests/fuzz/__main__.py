"""python -m tests.fuzz [--seconds S] [--seed N] [TARGET ...]: S seconds in all; a line of JSON for each target."""

from __future__ import annotations

import argparse
import json

from tests.fuzz.campaign import run, targets

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--seconds", type=float, default=600.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("target", nargs="*", help="Part of a target's name; by default all.")
given = parser.parse_args()
chosen = [t for t in targets() if not given.target or any(part in t.name for part in given.target)]
total = 0
for target in chosen:
    report = run(target, seed=given.seed, seconds=given.seconds / len(chosen))
    total += report.inputs
    print(json.dumps(report.to_dict()), flush=True)
print(json.dumps({"inputs": total}))
