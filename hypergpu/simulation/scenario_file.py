"""Scenarios from YAML files; errors name the line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypergpu.common.config.loading import parse
from hypergpu.common.errors import ConfigError, suggest
from hypergpu.common.files import read_text
from hypergpu.netsim_proxy.config.scenario import ScenarioError
from hypergpu.netsim_proxy.config.yaml_text import fault, parse_yaml
from hypergpu.simulation.scenario import Scenario

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "scenarios"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "scenarios"
"""Folder of the shipped scenarios: inside an installed package, or at the top of a checkout."""


def load_scenario(source: str | Path) -> Scenario:
    """Return a scenario from a file, or a shipped one by its name.

    Raises:
        ConfigError: it cannot be read, or does not hold; file, line and key are named.
    """
    file = find_scenario(source)
    text = read_text(file)
    return parse_scenario(text, str(file), default_name=file.stem)


def parse_scenario(text: str, name: str, default_name: str = "") -> Scenario:
    """Return the scenario that a YAML text holds; `name` is what to call the text in errors.

    Raises:
        ConfigError: as `load_scenario`.
    """
    scenario = parse_yaml(Scenario, text, name)
    try:
        _check(scenario)
    except ScenarioError as error:
        raise fault(text, name, error.path, error.message) from error
    return scenario if scenario.name else scenario.changed(name=default_name or name)


def scenario_from(tree: Mapping[str, Any]) -> Scenario:
    """Return the scenario that a mapping describes, with the keys of a scenario file.

    Raises:
        ConfigError: it does not hold; the key is named.
    """
    scenario = parse(Scenario, {"name": "scenario", **tree}, where="scenario")
    try:
        _check(scenario)
    except ScenarioError as error:
        raise ConfigError(f"scenario: {'.'.join(map(str, error.path))}: {error.message}") from error
    return scenario


def _check(scenario: Scenario) -> None:
    """Check what the type of no single value tells.

    Raises:
        ScenarioError: a name, profile, card or event that there is not, or a first round that would wait for ever.
    """
    scenario.names()
    scenario.profiles_of_links()
    _check_enough(scenario, len(scenario.cards()))
    scenario.network_events()
    if scenario.learning == "model" or scenario.convergence:
        scenario.learning_curve()


def _check_enough(scenario: Scenario, nodes: int) -> None:
    """Raise ScenarioError if the first round would wait for more nodes than there are."""
    needed = scenario.config.training.min_nodes
    if needed > nodes:
        path = "config", "training", "min_nodes"
        raise ScenarioError(path, f"the first round would wait for {needed} nodes for ever: there are {nodes}")


def shipped_names() -> list[str]:
    """Return the scenarios that can be given by name."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def shipped() -> dict[str, str]:
    """Return the description of each named scenario."""
    return {name: load_scenario(name).description for name in shipped_names()}


def find_scenario(source: str | Path) -> Path:
    """Return the file itself, or that of the shipped scenario of this name.

    Raises:
        ConfigError: neither; those that are shipped are listed.
    """
    file = Path(source)
    if file.is_file() or file.suffix or len(file.parts) > 1:
        return file
    shipped = SHIPPED / f"{file.name}.yaml"
    if shipped.exists():
        return shipped
    hint = suggest(file.name, shipped_names())
    raise ConfigError(
        f"there is no scenario file {str(source)!r}, nor a shipped one of that name{hint}; "
        "`hypergpu simulate --list` lists them with what each shows"
    )
