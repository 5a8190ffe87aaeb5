"""Somebody who sees the ledger of a run now and then, and what its files have to hold in the end."""

import json
from pathlib import Path

from hypergpu.common.errors import CorruptData
from hypergpu.common.merkle import require_consistency
from hypergpu.common.signed_note import Checkpoint
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.ledger.verifying import verify


class Witness:
    """Witness of the published checkpoints: each has to go on from the one before."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._seen: Checkpoint | None = None
        self._note = ""

    def see(self, ledger: Ledger) -> None:
        """See the ledger as a node does in its heartbeats."""
        seen, note = self._seen, ledger.published.note
        if note and note == self._note:
            return
        self._note = note
        if not note:
            if seen is not None:
                self.faults.append(f"a ledger of {seen.size} leaves is gone")
            return
        self._seen = now = ledger.verifier.open(note)
        if seen is None:
            return
        try:
            if seen.origin != now.origin:
                raise CorruptData("it is another ledger")
            proof = ledger.consistency(seen.size)
            require_consistency(seen.size, seen.root, now.size, now.root, proof)
        except CorruptData as error:
            self.faults.append(f"the ledger was forked after {seen.size} leaves: {error}")


def ledger_faults(out: Path, rounds: int) -> list[str]:
    """Return where the ledger is not valid, or not that of a run of this many rounds."""
    leaves = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    numbers = [leaf["round"] for leaf in leaves if leaf["kind"] == "round"]
    ends = [leaf["reason"] for leaf in leaves if leaf["kind"] == "end"]
    faults = [] if numbers == list(range(1, rounds + 1)) else [f"the ledger has the rounds {numbers}"]
    faults += [f"the ledger: {each}" for each in verify(out).faults]
    return faults + ([] if ends == ["rounds_done"] else [f"the ledger has the ends {ends}"])
