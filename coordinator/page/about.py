"""Facts about a run that the page shows before its records: name, task, policy and the like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hypergpu.common.config import SystemConfig
from hypergpu.common.config.document import load_yaml
from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_text
from hypergpu.common.version import package_version
from hypergpu.coordinator.run_lock import is_written

_SHOWN = (("training", "task"), ("training", "rounds"), ("training", "seed"), ("orchestrator", "policy"))
"""Settings that the page shows."""


def about_settings(config: SystemConfig) -> dict[str, Any]:
    """Return the settings of a run that the page shows."""
    return _shown(config.model_dump(mode="json", include={section for section, _ in _SHOWN}))


def about_directory(directory: Path) -> dict[str, Any]:
    """Return what the files of a run tell of it; what of them is unusable is named in `faults`."""
    found: dict[str, Any] = {"name": directory.resolve().name, "live": is_written(directory)}
    try:
        config = load_yaml(read_text(directory / "config.yaml"))
    except (ConfigError, yaml.YAMLError, RecursionError) as error:
        reason = str(error) if isinstance(error, ConfigError) else "it is not valid YAML"
        return {**found, "version": package_version(), "faults": [f"config.yaml cannot be used: {reason}."]}
    return {**_shown(config), **found}


def _shown(config: object) -> dict[str, Any]:
    sections: Mapping[str, Any] = config if isinstance(config, dict) else {}
    found: dict[str, Any] = {"version": package_version()}
    for section, name in _SHOWN:
        values = sections.get(section)
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(value, str | int):
            found[name] = value
    return found
