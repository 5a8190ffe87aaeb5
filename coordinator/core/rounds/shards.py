"""Shards of the data: which node owns which, and how far it has been used."""

from collections.abc import Collection, Iterable, Mapping
from itertools import chain, cycle
from typing import Any

from hypergpu.coordinator.core.rounds.events import Shard


class ShardTable:
    """Deals shards 0 … n-1 to n nodes, moving as few as possible, and keeps the cursor of each.

    Cursors are kept here, not on the nodes, so that a work unit is the same wherever it runs. When the number of
    shards changes, the data is split anew; the cursors of the new shards start at the mean of the old ones, so that
    the run continues through its sequence of samples instead of starting again.

    Args:
        most: largest number of shards: the number of samples. More nodes than that share shards.
    """

    def __init__(self, most: int = 1 << 62) -> None:
        self._most = most
        self._owners: dict[str, int] = {}
        self._cursors: list[int] = []

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self._cursors)

    def deal(self, nodes: Iterable[str]) -> bool:
        """Give each of these nodes one shard, and no other node; return whether anything changed."""
        wanted = list(dict.fromkeys(nodes))
        if len(wanted) == len(self._owners) and all(node in self._owners for node in wanted):
            return False
        count = min(len(wanted), self._most)
        kept: dict[str, int] = {}
        taken: set[int] = set()
        for node in wanted:
            index = self._owners.get(node, count)
            if index < count and index not in taken:
                kept[node] = index
                taken.add(index)
        free = chain((index for index in range(count) if index not in taken), cycle(range(count)))
        self._owners = {node: kept[node] if node in kept else next(free) for node in wanted}
        if count != len(self._cursors):
            start = sum(self._cursors) // count if count else 0
            self._cursors = [start] * count
        return True

    def assign(self, nodes: Iterable[str], busy: Iterable[Shard] = ()) -> dict[str, Shard]:
        """Return the shards of one round by node: its own, so that it need not load another.

        A shard that is `busy`, since late work of an earlier round uses it, goes to no node while others are free.

        If a shard has fallen a whole pass behind, because its node is not selected or gets small batches, the nodes
        furthest ahead train the shards furthest behind. A bad link thus never excludes samples from the training.

        Raises:
            KeyError: a node has no shard.
        """
        shards = {node: self.shard_of(node) for node in nodes}
        taken = {shard.index for shard in busy if shard.count == len(self._cursors)}
        self._replace_busy(shards, taken)
        owners = {shard.index: node for node, shard in shards.items()}
        if len(owners) < len(shards):
            return shards  # more nodes than samples
        a_pass = self._most // max(1, len(self._cursors))
        free = (index for index in range(len(self._cursors)) if index not in taken)
        behind = sorted(free, key=self._cursors.__getitem__)
        ahead = sorted(owners, key=self._cursors.__getitem__, reverse=True)
        for front, back in zip(ahead, behind, strict=False):
            if self._cursors[front] - self._cursors[back] < a_pass:
                break
            shards[owners[front]] = self._shard(back)
            if back in owners:
                shards[owners[back]] = self._shard(front)
        return shards

    def _replace_busy(self, shards: dict[str, Shard], busy: Collection[int]) -> None:
        """Give each node whose shard is busy the free one that is furthest behind."""
        waiting = [node for node, shard in shards.items() if shard.index in busy]
        if waiting:
            used = {shard.index for shard in shards.values()} | set(busy)
            free = sorted((i for i in range(len(self._cursors)) if i not in used), key=self._cursors.__getitem__)
            shards |= {node: self._shard(index) for node, index in zip(waiting, free, strict=False)}

    def shard_of(self, node: str) -> Shard:
        """Return the shard of a node, with its cursor.

        Raises:
            KeyError: the node has no shard.
        """
        return self._shard(self._owners[node])

    def advance(self, shard: Shard, samples: int) -> None:
        """Move the cursor past `samples` used samples; ignored if the data has been split anew since."""
        cursors, cursor = self._cursors, shard.cursor + samples
        if shard.count == len(cursors) and cursor > cursors[shard.index]:
            cursors[shard.index] = cursor

    def _shard(self, index: int) -> Shard:
        return Shard(index, len(self._cursors), self._cursors[index])

    def samples_used(self, node: str) -> int | None:
        """Return the number of samples of a node in accepted updates; None if it shares them with others."""
        return None

    @property
    def summary(self) -> str:
        """Distribution of the data in words."""
        return f"data split into {self.count} shard{'s' * (self.count > 1)}"

    def snapshot(self) -> dict[str, Any]:
        """Return owners and cursors as JSON, for a checkpoint."""
        return {"owners": dict(self._owners), "cursors": list(self._cursors)}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over the owners and cursors of a table of the same kind."""
        self._owners = {str(node): int(index) for node, index in snapshot["owners"].items()}
        self._cursors = [int(cursor) for cursor in snapshot["cursors"]]
