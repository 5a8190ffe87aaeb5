"""The cluster as a user of Docker brings it up; needs an engine with Compose v2 (`.ci/run` starts one)."""

import json
import os
import shutil
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
PROJECT = "hypergpu-test"
SETTINGS = {
    # Ports of its own.
    "HYPERGPU_PORT": "0",
    "HYPERGPU_PROXY_PORT": "0",
    # The networks of Docker by default, and those of the stand-in that `.ci/run` starts.
    "HYPERGPU_SERVER__SCRAPE_HOSTS": "[10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15]",
}
"""For every call, as in a file .env: a container is made anew where they change."""
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def docker(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["docker", *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compose(*arguments: str, project: str = PROJECT, **environment: str) -> str:
    return docker("compose", "--project-name", project, *arguments, **SETTINGS, **environment)


def hypergpu(*arguments: str, project: str = PROJECT) -> Any:
    return json.loads(compose("exec", "-T", "coordinator", "hypergpu", *arguments, "--json", project=project))


def nodes() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = hypergpu("nodes")
    return listed


def contributed(project: str = PROJECT) -> dict[str, int]:
    """Rounds that each node contributed to."""
    return {node["node_id"]: node["rounds_contributed"] for node in hypergpu("nodes", project=project)}


def scale(number: int) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | SETTINGS | {"COMPOSE_PROJECT_NAME": PROJECT}
    command = ["make", "--silent", "scale", f"N={number}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def files_of_runs() -> set[str]:
    """Models in the volume of the runs; no service has to be up."""
    mount = f"{PROJECT}_runs:/runs:ro"
    find = ("--entrypoint", "find", "hypergpu-coordinator", "/runs", "-name", "model.safetensors")
    return set(docker("run", "--rm", "--volume", mount, *find).split())


def until(what: str, condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n" + compose("logs", "--tail", "20")
        time.sleep(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    try:
        compose("up", "--detach", "--build", "--scale", f"node={NODES}")
        yield
    finally:
        compose("down", "--volumes", "--timeout", "5")


def test_eight_nodes_contribute_through_the_proxy(cluster: None) -> None:
    def all_contributed() -> bool:
        return sum(int(node["rounds_contributed"] > 0) for node in nodes()) >= NODES

    until("eight nodes contribute", all_contributed, 180)
    assert sorted(contributed()) == [f"node-{number}" for number in range(1, NODES + 1)]
    assert hypergpu("status")["rounds"] == 0, "without an end unless one is set"
    links = hypergpu("links")
    assert {node["node_id"] for node in nodes()} <= {link["node_id"] for link in links}
    assert all(link["rpcs"] > 0 for link in links)


def test_prometheus_is_told_of_every_node_behind_the_proxy(cluster: None) -> None:
    def get(url: str) -> str:
        return compose("exec", "-T", "coordinator", "python", "-c", GET, url)

    groups = json.loads(get("http://localhost:9100/sd"))
    assert {group["labels"]["node_id"] for group in groups} == set(contributed())
    targets = [target for group in groups for target in group["targets"]]
    assert len(set(targets)) == NODES
    assert "hypergpu_node_" in get(f"http://{targets[0]}/metrics")


def test_the_cluster_follows_when_it_is_scaled_down(cluster: None) -> None:
    done = scale(3)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 nodes are connected" in done.stdout
    assert {node["node_id"] for node in nodes() if node["state"] not in ("left", "lost")} == {
        "node-1",
        "node-2",
        "node-3",
    }


def test_services_are_healthy_and_do_not_run_as_root(cluster: None) -> None:
    for line in compose("ps", "--format", "json").splitlines():
        container = json.loads(line)
        assert container["Health"] == "healthy", container["Name"]
        assert docker("exec", container["ID"], "id", "-u").strip() == "10001"
    for service in ("coordinator", "node"):
        write = ("exec", "-T", service, "touch", "/app/anything")
        assert subprocess.run(
            ["docker", "compose", "-p", PROJECT, *write], cwd=ROOT, env=os.environ | SETTINGS, check=False
        ).returncode


def test_the_images_are_small_and_share_their_layers(cluster: None) -> None:
    def size(image: str) -> int:
        return int(docker("image", "inspect", "--format", "{{.Size}}", image))

    def layers(image: str) -> list[str]:
        found: list[str] = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
        return found

    assert size("hypergpu-proxy") - size(BASE_IMAGE) <= 150 * MEGABYTE
    assert layers("hypergpu-coordinator") == layers("hypergpu-node")


def test_nodes_keep_their_names_and_history_when_the_cluster_is_brought_up_again(cluster: None) -> None:
    before, done = contributed(), hypergpu("status")["round"] - 1
    compose("down", "--timeout", "20")
    assert files_of_runs() == {"/runs/latest/model.safetensors"}
    compose("up", "--detach", "--scale", "node=3")

    def all_are_back() -> bool:
        now = contributed()
        return all(now[node] > before[node] for node in ("node-1", "node-2", "node-3"))

    until("three nodes contribute again", all_are_back, 60)
    now = contributed()
    assert now.keys() == before.keys(), "nobody is taken for another"
    assert all(now[node] >= before[node] for node in before)
    assert hypergpu("status")["round"] > done


def test_a_restart_begins_the_next_run_and_a_stop_soon_after_leaves_a_model_of_each(cluster: None) -> None:
    former = hypergpu("status")["run_id"]
    again = hypergpu("restart")
    assert again["run_id"] != former
    until("the new run trains", lambda: hypergpu("status")["round"] >= 2, 60)
    assert hypergpu("stop")["state"] == "stopped"
    told = scale(3)
    assert told.returncode == 0, told.stderr
    assert "the run is over (stopped, round" in told.stdout
    assert "`hypergpu restart` begins it" in told.stdout
    assert hypergpu("restart")["run_id"] != again["run_id"]
    compose("down", "--timeout", "20")
    assert files_of_runs() == {
        "/runs/latest/model.safetensors",
        "/runs/latest/earlier/1/model.safetensors",
        "/runs/latest/earlier/2/model.safetensors",
    }
    none = scale(3)
    assert none.returncode == 2
    assert "no cluster is running in containers here: start one with `make up N=3`" in none.stderr


@pytest.mark.parametrize("task", ["wine:wine", "mnist5k"])
def test_a_task_trains_in_containers(cluster: None, tmp_path: Path, task: str) -> None:
    """As my_tasks/README.md shows: a module of one's own, and a project for its runs."""
    own = tmp_path / "my_tasks"
    own.mkdir()
    shutil.copyfile(ROOT / "examples/own_task.py", own / "wine.py")
    own.chmod(0o755)  # for the user of the containers
    (own / "wine.py").chmod(0o644)
    settings = {"HYPERGPU_TRAINING__TASK": task, "HYPERGPU_TASKS": str(own)}
    project = f"{PROJECT}-{task.partition(':')[0]}"
    try:
        compose("up", "--detach", project=project, **settings)
        until("the node contributes", lambda: contributed(project).get("node-1", 0) >= 2, 60)
        assert hypergpu("status", project=project)["task"] == task
    finally:
        compose("down", "--volumes", "--timeout", "5", project=project, **settings)
