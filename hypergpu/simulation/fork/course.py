"""Course of a what-if: the rounds that are predicted, on the clock of the run, for a chart beside its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.metric import LOSS
from hypergpu.simulation.fork.fork import fork
from hypergpu.simulation.fork.state import Row, read_state
from hypergpu.simulation.fork.whatif import WhatIf, what_if

_ROUNDS: Final = 20
_SEEDS: Final = 2
_WINDOW: Final = 20


def course_of(run_dir: Path, policy: str, after_round: int) -> dict[str, Any]:
    """Return what another policy would change in a run from a round on; 0 = from its last one.

    Raises:
        HyperGPUError: there is nothing to fork, or the fork cannot be simulated.
    """
    state = read_state(run_dir, _WINDOW, after_round)
    options = {"orchestrator.policy": policy}
    config = load_config(SystemConfig, run_dir / "config.yaml", {}, [], options)
    answer = what_if(fork(state), config, rounds=_ROUNDS, seeds=_SEEDS)
    return {
        "policy": policy,
        "round": state.round,
        "seconds": state.rows[-1]["ended_seconds"],
        "ratio": answer.ratio.to_dict(),
        "error_of_fork": answer.error,
        "unknown": answer.unknown,
        "now": _rounds(answer, answer.courses[0]),
        "then": _rounds(answer, answer.courses[1]),
    }


def _rounds(answer: WhatIf, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rounds of one way to go on as rounds.jsonl would have them; without progress that is not known."""
    state = answer.fork.state
    began = rows[0]["ended_seconds"] - rows[0]["seconds"]
    known = (LOSS.name, answer.fork.metric.name) if answer.fork.learns else ()
    return [
        {
            "round": state.round + number,
            "ended_seconds": state.rows[-1]["ended_seconds"] + answer.correction * (row["ended_seconds"] - began),
            "seconds": answer.correction * row["seconds"],
            "bytes_down": {"all": sum(row["bytes_down"].values())},
            "bytes_up": {"all": sum(row["bytes_up"].values())},
            **{name: row[name] for name in known if row.get(name) is not None},
        }
        for number, row in enumerate(rows, 1)
    ]
