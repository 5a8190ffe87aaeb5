"""A secured run of real processes: TLS from node to proxy and from proxy to coordinator, and the join token."""

import subprocess
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
