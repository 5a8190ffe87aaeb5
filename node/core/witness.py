"""Witness of a run's ledger: each checkpoint that a node is shown has to go on from the one before."""

from collections.abc import Sequence
from typing import Final

from hypergpu.common.errors import CorruptData, ForkedLedger
from hypergpu.common.merkle import HASH_BYTES, require_consistency
from hypergpu.common.signed_note import Checkpoint, VerifierKey, unverified, verifier_key

MOST_MISSED: Final = 2
"""Replies without a checkpoint, after one was seen, until the ledger counts as taken back."""


class Witness:
    """View that a node has of the ledger of its run.

    Args:
        note: Checkpoint that an earlier process of the node has seen; empty if there is none.
    """

    def __init__(self, note: str = "") -> None:
        self.note = note
        """Last checkpoint that was seen."""
        self._key: VerifierKey | None = None
        self._seen: Checkpoint | None = None
        self._missed = 0

    @property
    def size(self) -> int:
        """Leaves of the last checkpoint; 0 before the first."""
        return self._seen.size if self._seen is not None else 0

    @property
    def root(self) -> bytes:
        """Root of the last checkpoint; empty before the first."""
        return self._seen.root if self._seen is not None else b""

    def begin(self, key: str) -> None:
        """Watch the ledger with this public key, which the coordinator gives with each registration.

        Raises:
            CorruptData: It is no key.
            ForkedLedger: The same ledger had another key.
        """
        now, before = verifier_key(key), self._key
        if before is not None and before.name == now.name and before != now:
            raise ForkedLedger(f"the ledger {now.name} had the key {before}, and has the key {now}")
        if before is None or before.name != now.name:
            self._missed, self._seen = 0, self._kept(now)
        self._key = now

    def _kept(self, key: VerifierKey) -> Checkpoint | None:
        """Return what an earlier process has seen of a ledger; None if it has seen another ledger, or nothing."""
        try:
            if unverified(self.note).origin != key.name:
                return None
        except CorruptData:  # nothing was kept, or it is damaged
            return None
        try:
            return key.open(self.note)
        except CorruptData as error:
            raise ForkedLedger(f"the ledger {key.name} had another key when this node saw it last: {error}") from error
        return None

    def see(self, note: str, proof: Sequence[bytes]) -> bool:
        """See the checkpoint in the reply to a heartbeat; return whether it is a new one.

        Raises:
            ForkedLedger: It does not go on from the one before, or there is none any more.
        """
        if self._key is None:
            return False
        if not note:
            self._miss()
            return False
        if note == self.note and self._seen is not None:
            return False
        try:
            now = self._key.open(note)
            if any(len(each) != HASH_BYTES for each in proof):
                raise CorruptData("the proof has hashes of another length")
            if self._seen is not None:
                require_consistency(self._seen.size, self._seen.root, now.size, now.root, proof)
        except CorruptData as error:
            raise self._forked(str(error), note) from error
        self.note, self._seen, self._missed = note, now, 0
        return True

    def _miss(self) -> None:
        self._missed += self._seen is not None
        if self._missed >= MOST_MISSED:
            raise self._forked("no checkpoint is shown any more", "")

    def _forked(self, reason: str, note: str) -> ForkedLedger:
        assert self._key is not None
        seen = (
            f"after {self.size} leaves that this node has seen" if self._seen is not None else "in its first checkpoint"
        )
        text = f"the ledger {self._key.name} was forked or taken back {seen}: {reason}"
        return ForkedLedger(text, self.note if self._seen is not None else "", note)
