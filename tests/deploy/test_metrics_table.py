import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROW = re.compile(r"^\| (\w+) \| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \| (.+?) \|$")
UNITS = {"_bytes_per_second": "bytes per second", "_seconds": "seconds", "_bytes": "bytes", "_ratio": "ratio"}


@pytest.fixture
def table(root: Path) -> dict[str, dict[str, tuple[str, tuple[str, ...], str, str]]]:
    """docs/metrics.md: by service and name, the type, the labels, the unit and the meaning."""
    found: dict[str, dict[str, tuple[str, tuple[str, ...], str, str]]] = {}
    for line in (root / "docs" / "metrics.md").read_text().splitlines():
        if row := ROW.match(line):
            service, name, kind, labels, unit, meaning = row.groups()
            found.setdefault(service, {})[name] = (kind, tuple(re.findall(r"`(\w+)`", labels)), unit, meaning)
    return found


def test_the_table_is_what_the_services_export(exported: Any, table: Any) -> None:
    real = {s: {m.name: (m.kind, m.labels) for m in metrics.values()} for s, metrics in exported.items()}
    assert {s: {name: row[:2] for name, row in metrics.items()} for s, metrics in table.items()} == real


def test_the_table_has_the_texts_of_the_services(exported: Any, table: Any) -> None:
    real = {s: {m.name: m.text.removesuffix(".") for m in metrics.values()} for s, metrics in exported.items()}
    assert {s: {name: row[3] for name, row in metrics.items()} for s, metrics in table.items()} == real


def test_units_are_in_the_names(table: Any) -> None:
    for name, (kind, _, unit, _) in ((n, row) for metrics in table.values() for n, row in metrics.items()):
        suffix = next((s for s in UNITS if name.removesuffix("_total").endswith(s)), None)
        assert unit == (UNITS[suffix] if suffix else "–"), name
        assert (kind == "counter") == name.endswith("_total"), name


def test_no_name_means_two_things(exported: Any) -> None:
    names = [name for metrics in exported.values() for name in metrics]
    assert len(names) == len(set(names))


def test_every_metric_says_what_it_tells(exported: Any) -> None:
    for metrics in exported.values():
        assert all(len(metric.text) > 8 for metric in metrics.values())


def test_every_alert_has_a_severity_a_summary_and_a_runbook_that_exists(root: Path) -> None:
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    text = (root / "docs" / "runbooks.md").read_text()
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", text, re.MULTILINE)}
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 8
    for rule in alerts:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/runbooks.md"
        assert anchor in anchors
        assert f"`{rule['alert']}`" in text


def test_recording_rules_are_in_the_table(root: Path) -> None:
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    assert set(re.findall(r"^\| `([\w:]+:[\w:]+)`", (root / "docs/metrics.md").read_text(), re.MULTILINE)) == recorded
