"""Congestion control of the links of a scenario."""

import pytest
from pydantic import ValidationError

from hypergpu.netsim_proxy.config.scenario_file import parse_scenario
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.simulation.network import make_connections
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.virtual_time import VirtualTime

NODES = {"nodes": [{"id": "a", "profile": "average"}]}


@pytest.mark.parametrize("control", [None, *CongestionControl])
def test_a_scenario_names_the_congestion_control_of_its_links(control: CongestionControl | None) -> None:
    tree = NODES if control is None else {**NODES, "congestion_control": control.value}
    (connection,) = make_connections(Scenario.model_validate(tree), VirtualTime()).values()
    assert connection.link.congestion_control is (control or CongestionControl.CUBIC)


def test_the_proxy_reads_it_too_and_an_unknown_name_is_refused_with_the_known_ones() -> None:
    text = "congestion_control: bbr\nlinks: {'*': average}\n"
    assert parse_scenario(text, "s").congestion_control is CongestionControl.BBR
    with pytest.raises(ValidationError, match="'cubic', 'reno' or 'bbr'"):
        Scenario.model_validate({**NODES, "congestion_control": "vegas"})
