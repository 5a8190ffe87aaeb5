"""Scenarios of the proxy, from YAML: links as in `scenario.py`. Keys of the simulator are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import model_validator

from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.config.bounds import MAX_EVENTS, MAX_LINKS, MAX_TARGETS
from hypergpu.netsim_proxy.config.profile_file import build_profiles
from hypergpu.netsim_proxy.config.scenario import Network, NodeLink, ScenarioError, as_list
from hypergpu.netsim_proxy.config.yaml_text import fault, parse_yaml
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.events import ALL, NetworkEvent
from hypergpu.netsim_proxy.link.outcomes import LossModel
from hypergpu.netsim_proxy.link.profiles import Profile

OF_TRAINING: Final = frozenset(
    {
        "task",
        "rounds",
        "target_accuracy",
        "time_limit_seconds",
        "metric",
        "policy",
        "seed",
        "learning",
        "convergence",
        "compute",
        "evaluation_seconds",
        "handling_seconds",
        "config",
    }
)
"""Keys of a scenario that are not about links."""
OF_MACHINES: Final = frozenset(
    {"gpu", "speed", "churn", "join_delay_seconds", "setup_seconds", "price_per_hour", "priority", "byzantine"}
)
"""Keys of a node that are not about its link."""


class ScenarioFile(Network):
    """Content of a scenario file; every part is optional."""

    @model_validator(mode="before")
    @classmethod
    def _links_only(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        links = _without(tree, OF_TRAINING)
        if isinstance(tree.get("nodes"), list | dict):
            nodes = as_list(tree["nodes"])
            links["nodes"] = [_without(node, OF_MACHINES) if isinstance(node, dict) else node for node in nodes]
        return links


@dataclass(frozen=True, slots=True)
class Scenario:
    """Checked content of a scenario."""

    name: str
    profiles: Mapping[str, Profile]
    """Custom profiles by name."""
    links: Mapping[str, NodeLink]
    """Links by node id; "*" is the default."""
    loss_model: LossModel | None
    """Loss model of all links; None leaves it unchanged."""
    congestion_control: CongestionControl | None
    """Congestion control of links whose profile names none; None leaves it unchanged."""
    upstream_bandwidth: UpstreamBandwidth | None
    """Bandwidth of the upstream's access link; None leaves it unchanged."""
    events: tuple[NetworkEvent, ...]
    """Events; their times count from the loading of the scenario."""


def parse_scenario(
    text: str, name: str, known: Mapping[str, Profile] | None = None, upstream_region: str = "us-east"
) -> Scenario:
    """Return the scenario in a YAML text; `known` are custom profiles that exist already.

    Raises:
        ConfigError: it does not hold; NAME:LINE, key and what was expected are named.
    """
    file = parse_yaml(ScenarioFile, text, name)
    _require_bounded(file, name)
    try:
        short = {node_id: NodeLink(profile, "") for node_id, profile in file.short_links(known).items()}
        links = {**short, **file.node_links(upstream_region, known)}
        events = file.network_events(known)
    except ScenarioError as error:
        raise fault(text, name, error.path, error.message) from error
    ordered = {node_id: links[node_id] for node_id in sorted(links, key=lambda node_id: node_id != ALL)}
    loss_model = LossModel(file.loss_model) if file.loss_model else None
    section = file.upstream_bandwidth
    bandwidth = section.bandwidth() if section is not None else None
    return Scenario(
        file.name or name,
        build_profiles(file.profiles),
        ordered,
        loss_model,
        file.congestion_control,
        bandwidth,
        tuple(events),
    )


def _without(tree: Mapping[Any, Any], keys: frozenset[str]) -> dict[Any, Any]:
    return {key: value for key, value in tree.items() if key not in keys}


def _require_bounded(file: ScenarioFile, name: str) -> None:
    """Check the size of the scenario before its groups are expanded."""
    links = sum(group.count or 1 for group in file.nodes) + len(file.links)
    if links > MAX_LINKS:
        raise ConfigError(f"{name}: {links} links are too many for one proxy: {MAX_LINKS} are allowed")
    sizes = {group.id: group.count or 1 for group in file.nodes}
    targets = sum(
        sizes.get(target, 1)
        for event in file.events
        for target in (*event.nodes, *event.group_b, *((event.node,) if event.node is not None else ()))
    )
    if len(file.events) > MAX_EVENTS or targets > MAX_TARGETS:
        raise ConfigError(
            f"{name}: events: {len(file.events)} events with {targets} targets are too many: "
            f"{MAX_EVENTS} events and {MAX_TARGETS} targets are allowed"
        )
