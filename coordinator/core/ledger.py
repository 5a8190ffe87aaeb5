"""Ledger of a run: decisions, receipts and rounds as leaves of a Merkle log, with a signed checkpoint for each round.

    ledger.append("score", 7, {"node": "node_3", "share": 0.21})   # waits for the end of the round
    lines = ledger.seal()                                          # the leaves enter the log, and its root is signed
    ledger.publish(ledger.size)                                    # they are on the disk: nodes may see the checkpoint

What is published can never be taken back, since nodes refuse a log that does not begin with what they have seen. So a
checkpoint is published only when a state of the run that has it is on the disk, see `coordinator/durability.py`.
"""

from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypergpu.common import strict_json
from hypergpu.common.merkle import MerkleTree, leaf_hash
from hypergpu.common.signed_note import Signer, VerifierKey
from hypergpu.coordinator.core.rounds import events as ev

ORIGIN: Final = "hypergpu/"
"""Beginning of the origins of all ledgers."""
_MOST_PROOFS: Final = 1024
"""Proofs that are kept: nodes have seen few sizes of one log."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Signed checkpoint."""

    size: int
    note: str


class Ledger:
    """Log of a run, and what of it is signed and published.

    Args:
        signer: Key of the log, under its origin.
        tree: Leaves of an earlier process.
        note: Checkpoint of these leaves, which was published; empty if there are none.
        unsaved: Last of these leaves, which may not be in the file of leaves yet.
    """

    def __init__(
        self, signer: Signer, tree: MerkleTree | None = None, note: str = "", unsaved: Iterable[str] = ()
    ) -> None:
        self._signer, self._tree = signer, tree or MerkleTree()
        self._waiting: list[str] = []
        self._keys: dict[str, str] = {}
        """Keys of the nodes' receipts, as they are on record since this process began."""
        self._proofs: dict[int, list[bytes]] = {}
        """Proofs that the published log goes on from earlier sizes."""
        self._unsaved = deque(unsaved)
        self._seals = deque([Seal(self._tree.size, note)])
        """The published checkpoint, and those that are signed but not published."""

    @property
    def verifier(self) -> VerifierKey:
        """Public key of the log; its name is the log's origin."""
        return self._signer.verifier

    @property
    def size(self) -> int:
        """Number of sealed leaves."""
        return self._tree.size

    @property
    def waiting(self) -> int:
        """Number of leaves that wait for the next `seal`."""
        return len(self._waiting)

    @property
    def published(self) -> Seal:
        """Checkpoint that everybody may see; its note is empty before the first."""
        return self._seals[0]

    def append(self, kind: str, round_number: int, body: Mapping[str, Any]) -> None:
        """Add a leaf: the next `seal` has it.

        Args:
            kind: What it records: start, node, decision, receipt, round, end, …
            round_number: Round that it belongs to.
            body: Its other fields, as JSON.
        """
        self._waiting.append(strict_json.canonical({**body, "kind": kind, "round": round_number}))

    def note(self, effects: Iterable[ev.Effect], round_number: int) -> None:
        """Add a leaf for each decision among the effects, and for the end of the run."""
        for effect in effects:
            if isinstance(effect, ev.RunEvent) and effect.decision is not None:
                decision = effect.decision.to_dict()
                self.append("decision", decision.pop("round"), {"about": decision.pop("kind"), **decision})
            elif isinstance(effect, ev.Finish):
                self.append("end", round_number, {"reason": str(effect.reason), "detail": effect.detail})

    def receipt(self, update: ev.UpdateArrived, reply: ev.UpdateReply) -> None:
        """Add a leaf for an update with a receipt and its outcome; a duplicate has one already."""
        if update.receipt is not None and reply.status is not ev.UpdateStatus.DUPLICATE:
            if self._keys.get(update.node) != update.receipt["key"]:  # with its first receipt: a flood leaves nothing
                self._keys[update.node] = update.receipt["key"]
                self.append("node", update.round, {"node": update.node, "key": update.receipt["key"]})
            outcome = {"outcome": str(reply.status), "weight": reply.weight, "staleness": reply.staleness}
            self.append("receipt", update.round, {**update.receipt, **outcome})

    def seal(self) -> list[str]:
        """Let the leaves that wait enter the log, sign its root, and return them as lines of the file of leaves."""
        lines, self._waiting = self._waiting, []
        for line in lines:
            self._tree.append(leaf_hash(line.encode()))
        if lines:
            self._unsaved += lines
            self._seals.append(Seal(self._tree.size, self._signer.sign(self._tree.size, self._tree.root())))
        return lines

    def saved(self, size: int) -> None:
        """Note that the file of leaves has the first `size` leaves on the disk."""
        while self._unsaved and self._tree.size - len(self._unsaved) < size:
            self._unsaved.popleft()

    def state(self) -> dict[str, Any]:
        """Return what a later process needs beside the file of leaves, to go on after the last seal."""
        return {
            "origin": self.verifier.name,
            "note": self._seals[-1].note,
            "size": self.size,
            "leaves": list(self._unsaved),
        }

    def publish(self, size: int) -> dict[str, Any] | None:
        """Let everybody see the checkpoint of the first `size` leaves; return its line, or None if it is not newer.

        The line has the hash of each leaf since the line before, so that a changed leaf can be found.
        """
        before = self.published.size
        while len(self._seals) > 1 and self._seals[1].size <= size:
            self._seals.popleft()
        now = self.published
        if now.size > before:
            self._proofs.clear()
        return checkpoint_row(self._tree, before, now.size, now.note) if now.size > before else None

    def consistency(self, seen: int) -> list[bytes]:
        """Return the proof that the published log begins with the leaves that a node has seen; none if it does not."""
        size = self.published.size
        if not 0 < seen < size:
            return []
        if seen not in self._proofs:
            if len(self._proofs) >= _MOST_PROOFS:
                self._proofs.clear()
            self._proofs[seen] = self._tree.consistency(seen, size)
        return self._proofs[seen]


def checkpoint_row(tree: MerkleTree, before: int, size: int, note: str) -> dict[str, Any]:
    """Return a line of ledger.checkpoints."""
    hashes = b"".join(tree.leaf(index) for index in range(before, size))
    return {"size": size, "hashes": b64encode(hashes).decode(), "note": note}
