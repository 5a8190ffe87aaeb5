"""What docs/netsim.md says is what the code has."""

import math
import re
from pathlib import Path

from netsim_proxy.link.profiles import LAST_MILES, PROFILES
from netsim_proxy.profile_file import parse_profiles
from netsim_proxy.scenario_file import parse_scenario

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "netsim.md"


def test_every_profile_is_documented_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
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
    profiles, scenario = re.findall(r"```yaml\n(.+?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert set(parse_profiles(profiles, "netsim.md")) == {"office", "phone"}
    assert len(parse_scenario(profiles + scenario, "netsim.md").events) == 5
