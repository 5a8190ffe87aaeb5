"""The health check of containers."""

import socket
import subprocess
import sys
from functools import partial

import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.common.http import Answer, HttpServer
from hypergpu.common.probe import is_healthy


def test_only_an_answer_of_200_is_healthy() -> None:
    for status, healthy in ((200, True), (503, False), (404, False)):
        server = HttpServer("127.0.0.1:0", {"/healthz": partial(Answer, b"so it is", status=status)})
        assert is_healthy(server.address) is healthy
        server.close()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        assert not is_healthy(f"127.0.0.1:{holder.getsockname()[1]}")
    with pytest.raises(ConfigError):
        is_healthy("nowhere")


def test_a_proxy_of_the_environment_is_not_asked() -> None:
    server = HttpServer("127.0.0.1:0", {"/healthz": lambda: Answer(b"fine")})
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "hypergpu.common.probe"]
    assert subprocess.run([*command, server.address], env=proxies, check=False).returncode == 0
    server.close()
    assert subprocess.run([*command, server.address], env=proxies, check=False).returncode == 1
    assert subprocess.run(command, env=proxies, check=False, capture_output=True).returncode == 2
