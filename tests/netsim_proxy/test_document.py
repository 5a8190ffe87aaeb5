"""What docs/netsim.md says is what the code has."""

import math
import re
from pathlib import Path

import typer
from typer.main import get_command

from hypergpu.netsim_proxy.config.link_map_file import parse_link_map
from hypergpu.netsim_proxy.config.profile_file import parse_profiles
from hypergpu.netsim_proxy.config.proxy_file import parse_config
from hypergpu.netsim_proxy.config.scenario_file import parse_scenario
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.events import EventType
from hypergpu.netsim_proxy.link.profiles import LAST_MILES, PROFILES
from hypergpu.netsim_proxy.options import ProxyOptions

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "netsim.md"


def test_every_profile_is_documented_as_it_is() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Profiles")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", section, re.MULTILINE))
    profiles = {**PROFILES, **LAST_MILES}
    assert rows.keys() == profiles.keys()
    for name, profile in profiles.items():
        rtt, loss, down, up = rows[name].split(" | ")
        told = [float(number) for number in re.findall(r"[\d.]+", rtt)]
        quantiles = (0.0, 1.0) if name in PROFILES else (1e-40, 0.5)
        low, high = (1000 * (profile.up.latency.at(u) + profile.down.latency.at(u)) for u in quantiles)
        assert [round(low), round(high)] == (told or [0, 0]), name
        assert float(loss.rstrip(" %")) == 100 * profile.loss, name
        rates = [math.inf if text == "no limit" else float(text) for text in (down, up)]
        assert rates == [profile.down.bandwidth_mbit, profile.up.bandwidth_mbit], name


def test_its_examples_are_files_that_load() -> None:
    link_map, config, profiles, bandwidth, senders, scenario = re.findall(
        r"```yaml\n(.+?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL
    )
    assert set(parse_profiles(profiles, "netsim.md")) == {"office", "phone"}
    wan = parse_profiles(senders, "netsim.md")["wan"]
    assert (wan.up.congestion_control, wan.down.congestion_control) == (CongestionControl.BBR, None)
    whole = parse_scenario(profiles + bandwidth + scenario, "netsim.md")
    assert len(whole.events) == 7 and whole.upstream_bandwidth == UpstreamBandwidth(500, 100)
    found = parse_link_map(link_map, "netsim.md", {}, {})
    assert (found.of_address("10.1.7.3"), found.of_server_name("x.example.com")) == ("node_7", "others")
    assert parse_config(config, "netsim.md").links.map == Path("links.yaml")


def test_its_commands_have_the_options_that_there_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^hypergpu proxy (--.+)$", text, re.MULTILINE)
    assert len(commands) == 5
    app = typer.Typer()
    app.command()(ProxyOptions)
    parser = get_command(app)
    for command in commands:
        assert parser.make_context("proxy", command.split()).args == []


def test_every_event_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [kind.value for kind in EventType if kind.value not in text] == []
