"""A secured run of real processes: TLS from node to proxy and from proxy to coordinator, and the join token."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import patience, until

pytestmark = pytest.mark.e2e
TOKEN = "a-join-token"


class Secured:
    """Starts processes that share one certificate, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self.key, self.token = (folder / name for name in ("cert.pem", "key.pem", "token"))
        self.token.write_text(TOKEN + "\n")
        subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -days 2"
        curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        files = ["-keyout", str(self.key), "-out", str(self.certificate)]
        command = ["openssl", "req", "-x509", *curve.split(), *subject.split(), *files]
        subprocess.run(command, check=True, capture_output=True)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, service: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "hypergpu", service, *arguments], stdout=log, stderr=log, env=environment
            )
        self.running.append(process)
        return process

    def says(self, name: str, pattern: str) -> str:
        """The first group of `pattern`, once the log of `name` has it."""
        text = (self.folder / f"{name}.log").read_text
        found = until(lambda: re.search(pattern, text()), f"{pattern!r} of {name}", more=lambda: text()[-2000:])
        assert found is not None
        return found[1]


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    secured = Secured(tmp_path)
    yield secured
    for process in secured.running:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_run_over_tls_with_a_join_token(secured: Secured) -> None:
    out = secured.folder / "run"
    server = (f"--tls-cert={secured.certificate}", f"--tls-key={secured.key}")
    local = "127.0.0.1:0"
    coordinator = secured.start(
        "coordinator", "coordinator", f"--listen={local}", f"--http-listen={local}", f"--out={out}", "--rounds=2",
        f"--token-file={secured.token}", *server,
    )  # fmt: skip
    upstream = secured.says("coordinator", r"listening on (\S+)")
    secured.start(
        "proxy", "proxy", f"--listen={local}", f"--upstream={upstream}", "--profile=perfect", *server,
        "--upstream-tls", f"--upstream-ca={secured.certificate}",
    )  # fmt: skip
    through = secured.says("proxy", r"\blistening on (\S+)")
    trusting = (f"--coordinator={through}", f"--tls-ca={secured.certificate}")
    secured.start("stranger", "node", *trusting, "--token=wrong", "--node-id=stranger")
    assert secured.says("stranger", r"(join token is missing or wrong)")
    plain = secured.start("plain", "node", f"--coordinator={through}", "--insecure", "--node-id=plain")
    node = secured.start("node", "node", *trusting, f"--token-file={secured.token}", "--node-id=node_1")
    assert coordinator.wait(patience()) == 0
    assert node.wait(patience()) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["state"] == "completed"
    assert list(summary["nodes"]) == ["node_1"], "neither a stranger nor plaintext gets in"
    assert plain.wait(patience()) == 2, "no try can help"
    assert f"{through} speaks TLS: give --tls-ca FILE" in (secured.folder / "plain.log").read_text()
    assert TOKEN not in (out / "config.yaml").read_text()
