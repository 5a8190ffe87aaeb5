"""A secured run of real processes: TLS from node to proxy and from proxy to coordinator, tokens, and names of nodes."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e
TOKEN = "a-join-token"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that all services share, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -days 2"
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", *curve.split(), *subject.split(), *files], check=True, capture_output=True
    )
    return certificate, key


def test_a_run_over_tls_with_a_join_token(cluster: Cluster, certificate: tuple[Path, Path]) -> None:
    shared, key = certificate
    server = (f"--tls-cert={shared}", f"--tls-key={key}")
    local = "127.0.0.1:0"
    (token := cluster.path / "token").write_text(TOKEN + "\n")
    coordinator = cluster.start(
        "coordinator", "coordinator", f"--listen={local}", f"--http-listen={local}", f"--out={cluster.out}",
        "--rounds=2", f"--token-file={token}", *server,
    )  # fmt: skip
    through = cluster.start(
        "proxy", "proxy", f"--listen={local}", f"--upstream={coordinator.address()}", "--profile=perfect", *server,
        "--upstream-tls", f"--upstream-ca={shared}",
    ).address()  # fmt: skip
    trusting = (f"--coordinator={through}", f"--tls-ca={shared}")
    stranger = cluster.start("stranger", "node", *trusting, "--token=wrong", "--node-id=stranger")
    until(lambda: "join token is missing or wrong" in stranger.text, "the refusal", more=lambda: stranger.text)
    plain = cluster.start("plain", "node", f"--coordinator={through}", "--insecure", "--node-id=plain")
    node = cluster.start("node", "node", *trusting, f"--token-file={token}", "--node-id=node_1")
    assert coordinator.wait() == 0, coordinator.text
    assert node.wait() == 0, node.text
    summary = cluster.summary()
    assert summary["state"] == "completed"
    assert list(summary["nodes"]) == ["node_1"], "neither a stranger nor plaintext gets in"
    assert plain.wait() == 2, "no try can help"
    assert f"{through} speaks TLS: give --tls-ca FILE" in plain.text
    assert TOKEN not in (cluster.out / "config.yaml").read_text()


def test_a_name_belongs_to_one_process_and_comes_back_at_once_when_it_is_killed(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=0", "--set=server.heartbeat_misses=60")  # a lease of two minutes
    address = coordinator.address()
    first = cluster.node("node_1", address)
    until(lambda: "joined" in first.text, "the first process", more=lambda: first.text)
    plain = ("node", f"--coordinator={address}", "--node-id=node_1", "--insecure")
    here, elsewhere = (f"--set=node.state_dir={cluster.path / name}" for name in ("leases", "another machine"))
    copies = [cluster.start("copy", *plain, elsewhere), cluster.start("copy here", *plain, here)]
    refused = "another process is registered as 'node_1'"
    until(lambda: all(refused in copy.text for copy in copies), "both refusals", more=lambda: copies[1].text)
    until(lambda: "another process wanted to register under this node's name" in first.text, "a word to the first")
    cluster.reach(1)
    for copy in copies:
        assert "joined" not in copy.text
        copy.kill()
    first.kill()
    killed_at = time.monotonic()
    again = cluster.start("again", *plain, here)
    until(lambda: "joined" in again.text, "the next process", more=lambda: again.text)
    assert time.monotonic() - killed_at < 60.0, "half of the lease"
    kinds = [json.loads(line)["kind"] for line in (cluster.out / "events.jsonl").read_text().splitlines()]
    assert kinds.count("name_contested") == 1
