"""Scenarios from YAML files, with the line of whatever does not hold."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from common.config.loading import explain, read_yaml
from common.errors import ConfigError, InvalidInput, suggest
from hypergpu.simulation.scenario import Misplaced, Nodes, Scenario
from node.core.gpu import specs_from

SHIPPED = Path(__file__).resolve().parents[2] / "scenarios"
"""The scenarios of the repository."""

KeyPath = tuple[int | str, ...]


def load_scenario(source: str | Path) -> Scenario:
    """A scenario from a file, or a shipped one by its name.

    Raises:
        ConfigError: it cannot be read, or does not hold; file, line and key are named.
    """
    file = _find(source)
    tree = read_yaml(file)
    try:
        scenario = Scenario.model_validate(tree)
        _check(scenario)
    except ValidationError as error:
        faults = [
            (fault["loc"], explain(Scenario, fault["loc"], fault["type"], fault["msg"])) for fault in error.errors()
        ]
        raise ConfigError("; ".join(f"{_place(file, path)}: {text}" for path, text in faults)) from error
    except Misplaced as error:
        raise ConfigError(f"{_place(file, error.path)}: {error}") from error
    return scenario if scenario.name else scenario.changed(name=file.stem)


def shipped_names() -> list[str]:
    """The scenarios that can be given by name."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def _find(source: str | Path) -> Path:
    file = Path(source)
    if file.exists() or file.suffix or len(file.parts) > 1:
        return file
    shipped = SHIPPED / f"{file.name}.yaml"
    if shipped.exists():
        return shipped
    raise ConfigError(
        f"there is no scenario file {str(source)!r}, nor a shipped one{suggest(file.name, shipped_names())}"
    )


def _check(scenario: Scenario) -> None:
    """What needs more than types: names of nodes, cards, profiles, regions, events.

    Raises:
        Misplaced: names the place.
    """
    scenario.names()
    for index, group in enumerate(scenario.nodes):
        _check_names(scenario, index, group)
    scenario.network_events()


def _check_names(scenario: Scenario, index: int, group: Nodes) -> None:
    for key, names, check in (
        ("gpu", group.gpu, specs_from),
        ("profile", group.profile, scenario.find_profile),
    ):
        for name in [names] if isinstance(names, str) else names:
            try:
                check(name)
            except InvalidInput as error:
                raise Misplaced(("nodes", index, key), str(error)) from error


def _place(file: Path, path: KeyPath) -> str:
    """FILE:LINE of the key at `path`, or of the nearest around it."""
    node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = node.start_mark.line if node is not None else 0
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return f"{file}:{line + 1}"
