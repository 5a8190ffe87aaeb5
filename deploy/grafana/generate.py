"""Writes the dashboards: `python deploy/grafana/generate.py`. A test holds the files to what this writes.

Panels are described here in a line or two each; what Grafana wants besides is the same for all of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
States = Mapping[int, tuple[str, str]]

HERE = Path(__file__).parent
FOLDER = HERE / "dashboards"
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
DECISIONS = (
    'sum by (kind, reason) (changes(hypergpu_decisions_total{kind=~"rollback|quarantine|phase|policy"}'
    "[$__rate_interval])) > 0"
)


@dataclass(frozen=True)
class Panel:
    """One panel, as panels.yaml has it."""

    title: str
    description: str
    queries: Mapping[str, str]
    """Legend to query."""
    unit: str = "none"
    kind: str = "timeseries"
    size: tuple[int, int] = (12, 8)
    """Columns of 24, and rows."""
    stacked: bool = False
    states: str = ""
    """Names what values mean, and their colours."""
    most: float | None = None


def dashboard(name: str, title: str, panels: Sequence[Panel], states: Mapping[str, States]) -> Json:
    """Return a whole dashboard in the format of Grafana."""
    variables: list[Json] = [{"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"}]
    if any("$node" in query for panel in panels for query in panel.queries.values()):
        query = "label_values(hypergpu_member_connected, node_id)"
        choice: Json = {"refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "sort": 7}
        now: Json = {"current": {"text": "All", "value": "$__all"}}
        node = {"name": "node", "label": "Node", "type": "query", "datasource": SOURCE, "query": query}
        variables.append({**node, **choice, **now})
    decisions = {
        "name": "Decisions",
        "enable": True,
        "iconColor": "#7b4fa6",
        "datasource": SOURCE,
        "expr": DECISIONS,
        "titleFormat": "{{kind}}",
        "textFormat": "{{reason}}",
    }
    links = [
        {"title": other, "type": "link", "url": f"/d/hypergpu-{other.lower()}", "keepTime": True, "includeVars": True}
        for other in ("Cluster", "Links", "Nodes")
    ]
    return {
        "uid": f"hypergpu-{name}",
        "title": f"HyperGPU {title}",
        "tags": ["hypergpu"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": [decisions]},
        "links": links,
        "panels": list(_placed(panels, states)),
    }


def _placed(panels: Sequence[Panel], states: Mapping[str, States]) -> Iterator[Json]:
    """Panels from left to right, row after row."""
    x = y = tallest = 0
    for number, panel in enumerate(panels, start=1):
        width, height = panel.size
        if x + width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        place = {"x": x, "y": y, "w": width, "h": height}
        yield {"id": number, "gridPos": place, **_panel(panel, states.get(panel.states, {}))}
        x, tallest = x + width, max(tallest, height)


def _panel(panel: Panel, states: States) -> Json:
    defaults: Json = {"unit": panel.unit, "custom": {}}
    options: Json = {}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        custom = {"lineWidth": 1 if panel.stacked else 2, "fillOpacity": 40 if panel.stacked else 0}
        defaults["custom"] = {**custom, "stacking": stacking, "showPoints": "never"}
        options = {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list", "placement": "bottom"},
        }
    elif panel.kind == "state-timeline":
        meanings = {str(value): {"text": text, "color": color} for value, (text, color) in states.items()}
        defaults |= {
            "mappings": [{"type": "value", "options": meanings}],
            "custom": {"fillOpacity": 85, "lineWidth": 0},
        }
        options = {"mergeValues": True, "showValue": "auto", "rowHeight": 0.85, "legend": {"showLegend": True}}
    else:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "colorMode": "none"}
    targets = [
        {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": name}
        for number, (name, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def dashboards() -> dict[str, str]:
    """File names and contents."""
    described = yaml.safe_load((HERE / "panels.yaml").read_text(encoding="utf-8"))
    states = described.pop("states")
    made = {}
    for name, rows in described.items():
        content = dashboard(name, name.capitalize(), [Panel(**row) for row in rows], states)
        made[f"{name}.json"] = json.dumps(content, indent=1) + "\n"
    return made


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
