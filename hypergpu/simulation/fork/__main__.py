"""Process of a what-if beside a real run: `python -m hypergpu.simulation.fork RUN_DIR POLICY ROUND` prints JSON."""

import sys
from pathlib import Path

from hypergpu.common import strict_json
from hypergpu.common.errors import HyperGPUError
from hypergpu.simulation.beside_run import given, run_and_leave
from hypergpu.simulation.fork.course import course_of


def main() -> int:
    """Print the course of a run with another policy, or why there is none."""
    given()
    run_dir, policy, after_round = sys.argv[1:]
    try:
        found = course_of(Path(run_dir), policy, int(after_round))
    except HyperGPUError as error:
        found = {"policy": policy, "fault": str(error)}
    sys.stdout.write(strict_json.dumps(found))
    return 0


if __name__ == "__main__":
    run_and_leave(main)
