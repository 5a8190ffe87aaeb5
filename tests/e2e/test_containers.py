"""The cluster as a user of Docker brings it up; needs an engine with Compose v2 (`.ci/run` starts one)."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.e2e]
ROOT = Path(__file__).parents[2]
NODES = 8
BASE_IMAGE = "python:3.11-slim"
MEGABYTE = 1_000_000


def docker(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compose(*arguments: str, **environment: str) -> str:
    return docker("compose", "--project-name", "hypergpu-test", *arguments, **environment)


def nodes() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(compose("exec", "-T", "coordinator", "hypergpu", "nodes", "--json"))
    return listed


def until(what: str, condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n" + compose("logs", "--tail", "20")
        time.sleep(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # Ports of its own and rounds without end: the test decides when it has seen enough.
    settings = {"HYPERGPU_PORT": "0", "HYPERGPU_PROXY_PORT": "0", "HYPERGPU_TRAINING__ROUNDS": "100000"}
    try:
        compose("up", "--detach", "--build", "--scale", f"node={NODES}", **settings)
        yield
    finally:
        compose("down", "--volumes", "--timeout", "5")


def test_eight_nodes_contribute_through_the_proxy(cluster: None) -> None:
    def all_contributed() -> bool:
        return sum(int(node["rounds_contributed"] > 0) for node in nodes()) >= NODES

    until("eight nodes contribute", all_contributed, 180)
    links = json.loads(compose("exec", "-T", "coordinator", "hypergpu", "links", "--json"))
    assert {node["node_id"] for node in nodes()} <= {link["node_id"] for link in links}
    assert all(link["rpcs"] > 0 for link in links)


def test_the_cluster_follows_when_it_is_scaled_down(cluster: None) -> None:
    compose("up", "--detach", "--no-recreate", "--scale", "node=3")

    def three_left() -> bool:
        return len([node for node in nodes() if node["state"] not in ("left", "lost")]) == 3

    until("five nodes leave", three_left, 60)


def test_services_are_healthy_and_do_not_run_as_root(cluster: None) -> None:
    for line in compose("ps", "--format", "json").splitlines():
        container = json.loads(line)
        assert container["Health"] == "healthy", container["Name"]
        assert docker("exec", container["ID"], "id", "-u").strip() == "10001"
    for service in ("coordinator", "node"):
        write = ("exec", "-T", service, "touch", "/app/anything")
        assert subprocess.run(["docker", "compose", "-p", "hypergpu-test", *write], cwd=ROOT, check=False).returncode


def test_the_images_are_small_and_share_their_layers(cluster: None) -> None:
    def size(image: str) -> int:
        return int(docker("image", "inspect", "--format", "{{.Size}}", image))

    def layers(image: str) -> list[str]:
        found: list[str] = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
        return found

    assert size("hypergpu-proxy") - size(BASE_IMAGE) <= 150 * MEGABYTE
    assert layers("hypergpu-coordinator") == layers("hypergpu-node")
