import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

NAMES = ("cluster", "links", "nodes")
UNITS = {"none", "percentunit", "s", "bytes", "Bps", "bps", "cps"}
METRIC = re.compile(r"\b((?:hypergpu|netsim)_\w+)")


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest, root: Path) -> Any:
    return json.loads((root / "deploy/grafana/dashboards" / f"{request.param}.json").read_text())


def test_the_files_are_what_the_generator_writes(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", root / "deploy/grafana/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = generate  # dataclasses look their module up
    spec.loader.exec_module(generate)
    written = generate.dashboards()
    folder = root / "deploy/grafana/dashboards"
    assert {file.name: file.read_text() for file in folder.glob("*.json")} == written, "run deploy/grafana/generate.py"


def test_every_panel_has_what_a_reader_needs(dashboard: Any) -> None:
    assert dashboard["uid"].startswith("hypergpu-")
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(titles) == len(set(titles))
    for panel in dashboard["panels"]:
        assert len(panel["description"]) > 12, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["legendFormat"]


def test_panels_do_not_overlap_and_stay_on_the_grid(dashboard: Any) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_queries_ask_for_known_metrics_and_labels_over_grafanas_interval(dashboard: Any, exported: Any) -> None:
    known = {metric.name: metric for metrics in exported.values() for metric in metrics.values()}
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    for query in queries:
        for name in METRIC.findall(query):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in known or (base in known and known[base].kind == "histogram"), f"{name} in {query}"
        assert not re.search(r"\[\d", query), f"a fixed range does not follow the zoom: {query}"
        counters = [name for name in METRIC.findall(query) if name.endswith("_total")]
        plain = ("hypergpu_rounds_total", "hypergpu_rollbacks_total", "hypergpu_member_")  # shown as they stand
        if counters and not counters[0].startswith(plain):
            assert "$__rate_interval" in query, query


def test_the_variables_are_used_and_everything_that_is_used_is_a_variable(dashboard: Any) -> None:
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps(dashboard["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__interval"}
    assert used == variables


def test_decisions_are_annotations(dashboard: Any) -> None:
    assert [each["name"] for each in dashboard["annotations"]["list"]] == ["Decisions"]


def test_classes_of_links_are_a_state_timeline_in_words(root: Path) -> None:
    links = json.loads((root / "deploy/grafana/dashboards/links.json").read_text())
    quality = next(panel for panel in links["panels"] if panel["title"] == "Quality")
    assert quality["type"] == "state-timeline"
    words = {int(k): v["text"] for k, v in quality["fieldConfig"]["defaults"]["mappings"][0]["options"].items()}
    assert words == {0: "offline", 1: "critical", 2: "poor", 3: "fair", 4: "good", 5: "excellent"}


def test_grafana_is_told_where_all_of_it_is(root: Path) -> None:
    provisioning = root / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards/hypergpu.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
