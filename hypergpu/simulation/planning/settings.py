"""Settings that a plan tries: codec, connections, local steps, fragments, and the nodes to use."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.transfer import transfer_times
from hypergpu.simulation.planning.links_file import PlannedNode
from hypergpu.simulation.planning.request import Request
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, FRAGMENTS, Static, Variant, with_fragments

LOCAL_STEPS: Final = (10, 40, 100, 200)
"""Local steps that are tried with a learning curve."""
CODECS: Final = ("topk", "int4", "int8", "none")
CONNECTIONS: Final = (8, 1)
_SUBSETS: Final = (1.0, 0.75, 0.5, 0.25)
"""Shares of the nodes to plan with; those that take longest, or cost most, are left out."""
_RANKING_SAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """Way to run the plan: nodes that take part, and how."""

    nodes: Sequence[str]
    variant: Variant
    is_all: bool = False
    """True if no node is left out."""

    @property
    def label(self) -> str:
        """Name in tables."""
        return self.variant.label if self.is_all else f"{self.variant.label} on {len(self.nodes)}"

    def of(self, scenario: Scenario, seed: int) -> Scenario:
        """Return the scenario with these nodes, run this way."""
        kept = [group for group in scenario.nodes if group.id in self.nodes]
        training = scenario.config.training.model_copy(update={"min_nodes": len(kept)})
        config = scenario.config.model_copy(update={"training": training})
        return self.variant.of(scenario.changed(nodes=kept, config=config), seed)

    @property
    def static(self) -> Static | None:
        """Fixed setting; None if a policy decides."""
        return self.variant.static


def settings(request: Request, scenario: Scenario) -> list[Setting]:
    """Return the fixed settings that are tried: codec, connections, local steps, fragments and nodes."""
    order = _best_first(request, scenario)
    sizes = sorted({max(1, math.ceil(share * len(order))) for share in _SUBSETS}, reverse=True)
    steps = sorted({request.local_steps, *LOCAL_STEPS}) if request.curve else [request.local_steps]
    return [
        Setting(
            order[:size],
            _fixed(with_fragments(Static(local_steps=local_steps, codec=codec, connections=connections), parts)),
            is_all=size == len(order),
        )
        for size, codec, connections, local_steps, parts in product(sizes, CODECS, CONNECTIONS, steps, FRAGMENTS)
        if local_steps > 1 or parts is None
    ]


def _best_first(request: Request, scenario: Scenario) -> list[str]:
    """Return the nodes by the time, or the price, of a round of one alone: parameters, local steps, update."""
    profiles = scenario.profiles_of_links()

    def cost(node: PlannedNode) -> float:
        ways = [
            transfer_times(profiles[node.name], request.model_bytes, samples=_RANKING_SAMPLES, direction=direction)
            for direction in (Direction.DOWN, Direction.UP)
        ]
        seconds = request.local_steps * node.step_seconds + sum(times["warm"].mean_seconds for times in ways)
        return seconds * (node.price_per_hour if request.by_money else 1.0)

    return [node.name for node in sorted(request.nodes, key=cost)]


def references(request: Request) -> Iterator[Setting]:
    """Yield what the plan is compared with: the default policy first, if there is a curve for it to climb."""
    if request.curve:
        yield Setting(request.names, Variant("reactive"), is_all=True)
    yield Setting(request.names, Variant(BASELINE, static=Static(), name="as given"), is_all=True)


def _fixed(static: Static) -> Variant:
    return Variant(BASELINE, static=static, name=str(static))


def spread(tried: Sequence[Setting], count: int) -> list[Setting]:
    """Return so many of the settings, evenly spread over the grid; 0 = all."""
    if not 0 < count < len(tried):
        return list(tried)
    return [tried[number * len(tried) // count] for number in range(count)]
