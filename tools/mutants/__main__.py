"""Mutation testing: change one thing in the code, and see whether a test fails.

Line coverage tells what tests run; this tells what they check. A mutant that survives is a change of behaviour which no
test notices. The measure is taken on a random sample, as all mutants would take a day.

    make mutants                                              # 200 mutants, drawn by seed
    make mutants ARGS="--sample 40 coordinator/run_dir.py"    # of one file
    make mutants ARGS="--only coordinator/run_dir.py:147:8:4" # one of them again

How: the tests run once under coverage, which learns what tests reach each line and how long each takes. Then each
mutant runs in a forked process that loads the changed module in place of the file (no file is touched), with the tests
that reach the changed line, the quickest first, until one fails. A line that no test reaches survives.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.mutants.changes import Mutant, mutants_of
from tools.mutants.reach import TARGETS, files_of, learn, tests_for
from tools.mutants.trial import Outcome, preload, try_mutant


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where less than `--at-least` of the sample was noticed."""
    options = _parser().parse_args(arguments)
    files = files_of(options.paths or list(TARGETS))
    unknown = [str(file) for file in files if not file.is_file() or not tests_for(file.as_posix())]
    if unknown:
        sys.exit(f"no tests are known for {', '.join(unknown)}; see TARGETS in tools/mutants/reach.py")
    every = [mutant for file in files for mutant in mutants_of(file)]
    if options.only:
        sample = [mutant for mutant in every if mutant.name in options.only]
    else:
        sample = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    reach = learn(files, Path(".mutants.json"))
    preload()
    outcomes = []
    for number, mutant in enumerate(sample, 1):
        outcome = try_mutant(mutant, reach[mutant.file].get(str(mutant.line), []), options.timeout)
        outcomes.append(outcome)
        if not outcome.noticed or options.verbose:
            mark = "noticed " if outcome.noticed else "SURVIVED"
            print(f"{mark} {mutant.name}  {mutant.what}  ({outcome.how})", flush=True)
            print(f"         {_line(mutant)}", flush=True)
        elif number % 20 == 0:
            print(f"         {number} of {len(sample)}", flush=True)
    return _summarise(outcomes, len(every), options)


def _line(mutant: Mutant) -> str:
    return Path(mutant.file).read_text().splitlines()[mutant.line - 1].strip()


def _summarise(outcomes: Sequence[Outcome], every: int, options: argparse.Namespace) -> int:
    by_file: dict[str, Counter[bool]] = {}
    for outcome in outcomes:
        by_file.setdefault(outcome.mutant.file, Counter())[outcome.noticed] += 1
    for file, counts in sorted(by_file.items()):
        print(f"{counts[True]:4} of {counts.total():4}  {file}")
    noticed = sum(outcome.noticed for outcome in outcomes)
    share = noticed / max(1, len(outcomes))
    print(f"{noticed} of {len(outcomes)} mutants noticed ({share:.1%}), drawn from {every} by seed {options.seed}")
    if options.json:
        rows = [{"mutant": o.mutant.name, "what": o.mutant.what, "noticed": o.noticed, "how": o.how} for o in outcomes]
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return 0 if share >= options.at_least else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=f"Mutated by default: {', '.join(TARGETS)}."
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders to mutate (default: all below)")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="mutants to try (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="MUTANT", help="try these, named as in the output")
    parser.add_argument("--at-least", type=float, default=0.9, metavar="SHARE", help="exit 1 below (default: 0.9)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for one mutant (default: 60)")
    parser.add_argument("--json", metavar="FILE", help="write every outcome to a file")
    parser.add_argument("--verbose", action="store_true", help="show noticed mutants too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
