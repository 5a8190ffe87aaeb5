"""Which node trains which part of the data, and how far it has come."""

from collections.abc import Iterable, Mapping
from itertools import chain, cycle
from typing import Any

from hypergpu.coordinator.core.rounds.events import Shard


class ShardTable:
    """Deals shards 0 … n-1 to n nodes, moving as few as it can, and keeps the cursor of each.

    Cursors are kept here, not on the nodes, so that a unit of work is the same wherever it runs. When the number of
    shards changes the data is cut anew; the new shards then share evenly what the old ones had
    used, so that the run goes on through its sequence of samples instead of beginning again.

    Args:
        most: shards that the data can be cut into: its number of samples. With more nodes than that, nodes share.
    """

    def __init__(self, most: int = 1 << 62) -> None:
        self._most = most
        self._owners: dict[str, int] = {}
        self._cursors: list[int] = []

    @property
    def count(self) -> int:
        """Shards that there are now."""
        return len(self._cursors)

    def deal(self, nodes: Iterable[str]) -> bool:
        """Give each of these nodes one shard, and nobody else; True if any changed."""
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

    def assign(self, nodes: Iterable[str]) -> dict[str, Shard]:
        """The shards of one round: each node's own, so that it need not load another.

        Except where a shard has fallen a whole pass behind, because its node is left out or given small batches: then
        the nodes that are furthest ahead train those that are furthest behind. No sample is forgotten with a link.

        Raises:
            KeyError: a node has none.
        """
        shards = {node: self.shard_of(node) for node in nodes}
        owners = {shard.index: node for node, shard in shards.items()}
        if len(owners) < len(shards):
            return shards  # more nodes than samples
        a_pass = self._most // max(1, len(self._cursors))
        behind = sorted(range(len(self._cursors)), key=self._cursors.__getitem__)
        ahead = sorted(owners, key=self._cursors.__getitem__, reverse=True)
        for front, back in zip(ahead, behind, strict=False):
            if self._cursors[front] - self._cursors[back] < a_pass:
                break
            shards[owners[front]] = self._shard(back)
            if back in owners:
                shards[owners[back]] = self._shard(front)
        return shards

    def shard_of(self, node: str) -> Shard:
        """The node's own shard and cursor.

        Raises:
            KeyError: it has none.
        """
        return self._shard(self._owners[node])

    def advance(self, shard: Shard, samples: int) -> None:
        """`samples` of this shard were used; ignored where the data has been cut anew since."""
        if shard.count == len(self._cursors):
            self._cursors[shard.index] = max(self._cursors[shard.index], shard.cursor + samples)

    def _shard(self, index: int) -> Shard:
        return Shard(index, len(self._cursors), self._cursors[index])

    def snapshot(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        return {"owners": dict(self._owners), "cursors": list(self._cursors)}

    @classmethod
    def restored(cls, snapshot: Mapping[str, Any], most: int = 1 << 62) -> "ShardTable":
        """What `snapshot` returned."""
        table = cls(most)
        table._owners = {str(node): int(index) for node, index in snapshot["owners"].items()}
        table._cursors = [int(cursor) for cursor in snapshot["cursors"]]
        return table
