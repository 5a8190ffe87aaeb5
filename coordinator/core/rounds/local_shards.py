"""Shards that stay with their nodes, because each node holds its own samples: `training.partition: local`."""

from collections.abc import Iterable, Mapping

from hypergpu.common.config import TrainingConfig
from hypergpu.coordinator.core.rounds.events import Shard
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.shards import ShardTable


class LocalShards(ShardTable):
    """Shards of which each belongs to one node for the whole run, with the cursor of each.

    A node that comes back continues in its samples where it stopped. No other node ever gets its shard.

    Args:
        most: largest number of nodes whose cursor is kept; beyond it, a new node replaces the one among those that are
            gone that was known first.
    """

    def deal(self, nodes: Iterable[str]) -> bool:
        """Give each new node a shard of its own; return whether there was one."""
        wanted = dict.fromkeys(nodes)
        new = [node for node in wanted if node not in self._owners]
        for node in new:
            self._owners[node] = self._free(wanted)
        return bool(new)

    def _free(self, wanted: Iterable[str]) -> int:
        """Return a shard that no node has."""
        if len(self._cursors) >= self._most:
            kept = frozenset(wanted)
            former = next((node for node in self._owners if node not in kept), None)
            if former is not None:
                index = self._owners.pop(former)
                self._cursors[index] = 0
                return index
        self._cursors.append(0)
        return len(self._cursors) - 1

    def assign(self, nodes: Iterable[str], busy: Iterable[Shard] = ()) -> dict[str, Shard]:
        """Return the shards of one round by node: always its own.

        Raises:
            KeyError: a node has no shard.
        """
        return {node: self.shard_of(node) for node in nodes}

    def shard_of(self, node: str) -> Shard:
        """Return the shard of a node, with its cursor.

        Raises:
            KeyError: the node has no shard.
        """
        index = self._owners[node]
        return Shard(index, len(self._cursors), self._cursors[index], owner=node)

    def advance(self, shard: Shard, samples: int) -> None:
        """Move the cursor past `samples` used samples."""
        if self._owners.get(shard.owner) == shard.index:
            self._cursors[shard.index] = max(self._cursors[shard.index], shard.cursor + samples)

    def samples_used(self, node: str) -> int | None:
        """Return the number of samples of a node in accepted updates."""
        index = self._owners.get(node)
        return 0 if index is None else self._cursors[index]

    @property
    def summary(self) -> str:
        """Distribution of the data in words."""
        return f"{self.count} node{'s' * (self.count > 1)} with data of their own"


def data_weights(members: Mapping[str, Member], nodes: Iterable[str]) -> dict[str, int]:
    """Return the weight of each node's update in the mean: the samples that it holds, not those that it trained on.

    Weighted by those, a node with a fast card and large batches would drown what only a slow one knows, and the model
    would minimize another function than the mean loss over all data (Wang et al., "Tackling the objective inconsistency
    problem in heterogeneous federated optimization", NeurIPS 2020). A node that does not report how many samples it
    holds counts as holding the mean of the others; where none reports it, all count alike.
    """
    held = {node: data.samples for node in nodes if (data := members[node].data) is not None}
    usual = max(1, round(sum(held.values()) / len(held))) if held else 1
    return {node: held.get(node, usual) for node in nodes}


def make_shards(config: TrainingConfig, samples: int, max_nodes: int) -> ShardTable:
    """Return the shards of a new run.

    Args:
        config: with the partition.
        samples: number of training samples that all nodes share.
        max_nodes: maximum number of connected nodes.
    """
    return LocalShards(2 * max_nodes) if config.data_is_local else ShardTable(samples)
