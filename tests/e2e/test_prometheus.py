"""Every panel and rule against a real Prometheus, which scrapes a real run as the deployment's configuration says."""

import asyncio
import json
import math
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypergpu.demo import demo_nodes
from hypergpu.local import LocalCluster

PROMETHEUS = shutil.which("prometheus")
DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason="NO PANEL IS TESTED: needs prometheus (apt-get install prometheus)"),
]
PATIENCE_SECONDS = 75.0


def configuration(directory: Path, coordinator: str, proxy: str) -> Path:
    """The deployment's own, with the addresses of this cluster, and scraping each second."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus/rules.yml")]
    targets = {"coordinator": coordinator, "netsim": proxy}
    for job in config["scrape_configs"]:
        if job["job_name"] in targets:
            job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        else:
            job["http_sd_configs"] = [{"url": f"http://{coordinator}/sd", "refresh_interval": "1s"}]
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def get(self, path: str, **parameters: str) -> Any:
        def ask() -> Any:
            url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            try:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                if error.code == 503:  # it is still starting
                    raise
                pytest.fail(f"{parameters or path}: {error.read().decode()}")

        return await asyncio.to_thread(ask)

    async def has_values(self, query: str) -> bool:
        """Whether the query gives a number now."""
        result = (await self.get("query", query=query))["result"]
        return any(math.isfinite(float(series["value"][1])) for series in result)


@asynccontextmanager
async def prometheus(directory: Path, config: Path) -> AsyncIterator[Prometheus]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(PROMETHEUS),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={address}",
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                await Prometheus(address).get("status/buildinfo")
                break
            except OSError:
                assert time.monotonic() < deadline, (directory / "prometheus.log").read_text()
                await asyncio.sleep(0.2)
        yield Prometheus(address)
    finally:
        process.terminate()
        await process.wait()


def panel_queries() -> Iterator[tuple[str, str]]:
    """What Grafana would ask for all nodes: the panel and its query."""
    for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "20s").replace("$node", ".*")
                yield f"{file.stem}: {panel['title']}", query


async def test_no_panel_is_empty_and_no_rule_fails_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    settings = {"training.rounds": 5000, "training.min_nodes": 5}
    async with LocalCluster(tmp_path / "run", demo_nodes(5), settings=settings) as cluster:
        addresses = [(await cluster.processes[name].addresses())["metrics"] for name in ("coordinator", "netsim_proxy")]
        async with prometheus(tmp_path, configuration(tmp_path, *addresses)) as server:
            empty = list(panel_queries())
            assert len(empty) > 50
            deadline = time.monotonic() + PATIENCE_SECONDS
            while empty and time.monotonic() < deadline:
                await asyncio.sleep(2)
                empty = [(panel, query) for panel, query in empty if not await server.has_values(query)]
            assert not empty

            targets = (await server.get("targets"))["activeTargets"]
            assert {(target["labels"]["job"], target["health"]) for target in targets} == {
                ("coordinator", "up"),
                ("netsim", "up"),
                ("node", "up"),
            }
            chosen = await server.get("label/node_id/values")
            assert chosen == [f"node_{number}" for number in range(5)]
            rules = [rule for group in (await server.get("rules"))["groups"] for rule in group["rules"]]
            assert len(rules) == 11
            assert {rule["health"] for rule in rules} == {"ok"}
