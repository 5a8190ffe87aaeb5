"""Every panel and rule against a real Prometheus, which scrapes a real run as the deployment's configuration says."""

import asyncio
import json
import math
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypergpu.demo import demo_nodes
from hypergpu.local_cluster import LocalCluster
from tests.patience import Wait, until_async

PROMETHEUS = shutil.which("prometheus")
NODES = 3
DEPLOY = Path(__file__).parents[2] / "deploy"
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason="NO PANEL IS TESTED: needs prometheus (apt-get install prometheus)"),
]


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

    async def targets(self) -> dict[tuple[str, str], int]:
        """Return how many targets each job has in each state of health."""
        active = (await self.get("targets"))["activeTargets"]
        return dict(Counter((target["labels"]["job"], target["health"]) for target in active))

    async def rules(self) -> dict[str, str]:
        """Return the health of each rule."""
        groups = (await self.get("rules"))["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

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
        wait = Wait("an answer of Prometheus")
        while True:
            try:
                await Prometheus(address).get("status/buildinfo")
                break
            except OSError:
                wait.check((directory / "prometheus.log").read_text)
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


def rules_written() -> list[str]:
    """Return the names of all rules of the deployment."""
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule.get("alert") or rule["record"] for group in groups for rule in group["rules"]]


async def until_equal(ask: Callable[[], Awaitable[Any]], expected: object, what: str) -> None:
    """Ask until the answer is as expected, and show the last one where it never is."""
    answers: list[Any] = []

    async def as_expected() -> bool:
        answers[:] = [await ask()]
        return bool(answers[0] == expected)

    await until_async(as_expected, what, every=0.5, more=lambda: f"expected {expected}, not {answers[0]}")


async def test_no_panel_is_empty_and_no_rule_fails_during_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    settings = {"training.rounds": 5000, "training.min_nodes": NODES}
    async with LocalCluster(tmp_path / "run", demo_nodes(NODES), settings=settings) as cluster:
        addresses = [(await cluster.processes[name].addresses())["metrics"] for name in ("coordinator", "netsim_proxy")]
        async with prometheus(tmp_path, configuration(tmp_path, *addresses)) as server:
            empty = list(panel_queries())
            assert len(empty) > 50

            async def no_panel_is_empty() -> bool:
                empty[:] = [(panel, query) for panel, query in empty if not await server.has_values(query)]
                return not empty

            # Each has its own time: a node that was found a moment ago is not scraped yet, and a rule not evaluated.
            await until_async(no_panel_is_empty, "a value in each panel", every=2, more=lambda: f"without one: {empty}")
            up = {("coordinator", "up"): 1, ("netsim", "up"): 1, ("node", "up"): NODES}
            await until_equal(server.targets, up, "an answer of each target")
            names = [f"node_{number}" for number in range(NODES)]
            await until_equal(partial(server.get, "label/node_id/values"), names, "figures of each node")
            await until_equal(server.rules, dict.fromkeys(rules_written(), "ok"), "an evaluation of each rule")
