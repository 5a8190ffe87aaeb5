"""The seam between the rounds and whatever adapts them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Adaptation(Protocol):
    """Chooses who trains on how much before each round, and learns from it after, as `AdaptiveOrchestrator` does."""

    def pre_round_adaptation(self, available_nodes: Sequence[str], round_num: int) -> Mapping[str, Any]:
        """Decide a round: `selected_nodes` (ids, of the available ones), `batch_sizes` (by id).

        Optional: `local_steps` and `learning_rate` (of all), `decisions` (what is to be recorded), and `policy`: where
        that is `none`, the round has no measured deadline and everybody is waited for.

        The machine bounds what comes back: an unknown node is dropped, a missing batch size is the configured one.
        """
        ...

    def post_round_evaluation(self, round_num: int, metrics: Mapping[str, Any]) -> object:
        """Learn from a round: `loss`, `accuracy`, `round_time` (seconds), `samples`, `contributions`, `update_norms`.

        `contributions` is a sequence of `core.rounds.events.Contribution`, one for each selected node;
        `update_norms` is None or (mean of |update|² over the nodes, |mean update|²). `ended` is (processes of nodes
        that ended since the last round, the seconds since, summed over the nodes).
        """
        ...


class FixedAdaptation:
    """No adaptation: every node that is there, the same batch for all. What the adaptive policies are compared with."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def pre_round_adaptation(self, available_nodes: Sequence[str], round_num: int) -> Mapping[str, Any]:
        """Everyone, on the configured batch."""
        del round_num
        return {
            "selected_nodes": list(available_nodes),
            "batch_sizes": dict.fromkeys(available_nodes, self._batch_size),
        }

    def post_round_evaluation(self, round_num: int, metrics: Mapping[str, Any]) -> object:
        """Learn nothing."""
        del round_num, metrics
        return None
