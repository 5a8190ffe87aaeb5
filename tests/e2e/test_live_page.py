"""The live page of a real coordinator: the run over HTTP, and steering it."""

import json
import re
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e


def ask(address: str, path: str, token: str, body: dict[str, str] | None = None) -> Request:
    data = None if body is None else json.dumps(body).encode()
    return Request(f"http://{address}{path}", data=data, headers={"Authorization": f"Bearer {token}"})


def status_of(request: Request) -> int:
    try:
        with urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except HTTPError as error:
        error.close()
        return error.code


def test_a_viewer_watches_and_an_operator_steers(cluster: Cluster) -> None:
    tokens = ("--token=join", "--viewer-token=viewer", "--operator-token=operator")
    coordinator = cluster.coordinator("--rounds=3", "--min-nodes=1", *tokens)
    coordinator.address()
    found = re.search(r"metrics on (\S+)", coordinator.text)
    assert found is not None
    page = found[1]
    assert status_of(ask(page, "/events", "join")) == 403
    assert status_of(ask(page, "/control/Pause", "viewer", {})) == 403
    assert status_of(ask(page, "/control/Pause", "guess", {})) == 401
    assert status_of(ask(page, "/control/Stop", "operator", {})) == 405
    assert status_of(ask(page, "/control/SetPolicy", "operator", {"policy": "fastest"})) == 400
    assert status_of(ask(page, "/control/SetNodeRule", "operator", {"nodeId": "x", "rule": "EXCLUDE"})) == 400
    assert status_of(ask(page, "/control/SetPolicy", "operator", {"policy": "none"})) == 200
    assert status_of(ask(page, "/control/WhatIf", "viewer", {"policy": "none"})) == 403
    assert status_of(ask(page, "/control/WhatIf", "operator", {"policy": "fastest"})) == 400
    assert status_of(ask(page, "/control/WhatIf", "operator", {"policy": "none"})) == 200
    assert status_of(ask(page, "/control/Pause", "operator", {})) == 200
    with urlopen(ask(page, "/events", "viewer"), timeout=20) as stream:
        seen: list[str] = []

        def read_to(what: str) -> str:
            while not seen or what not in seen[-1]:
                seen.append(stream.readline().decode())
            return seen[-1]

        assert read_to('"live": true').startswith("data: ")
        read_to('"kind":"paused"')
        read_to("event: caught_up")
        assert status_of(ask(page, "/control/Resume", "operator", {})) == 200
        read_to('"kind":"resumed"')
        # Another process has answered, and every viewer is told: there is no round to fork yet.
        if not any("event: what_if" in line for line in seen):
            read_to("event: what_if")
        seen.append(stream.readline().decode())
        assert any("no round was finished" in line for line in seen), seen[-1]
    with urlopen(f"http://{page}/metrics", timeout=10) as reply:
        refused = re.search(rb'hypergpu_calls_refused_total{error="PermissionDenied"} (\d)', reply.read())
    assert refused is not None and refused[1] == b"3"
    coordinator.kill()
    until(lambda: coordinator.returncode is not None, "its end")
