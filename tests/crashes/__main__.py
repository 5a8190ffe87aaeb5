"""Run seeds: `python -m tests.crashes 17`, or `python -m tests.crashes 0 1000`."""

import sys

from tests.crashes.world import run


def main() -> int:
    first, last = (int(sys.argv[1]), int(sys.argv[-1]) + (len(sys.argv) == 2))
    failed = 0
    for seed in range(first, last):
        outcome = run(seed)
        if outcome.faults or last == first + 1:
            print(outcome, flush=True)
        failed += bool(outcome.faults)
    print(f"{last - first} runs, {failed} not as the model says")
    return int(failed > 0)


sys.exit(main())
