"""`hypergpu certs`: what it writes can be used, and a renewal replaces it."""

from pathlib import Path
from typing import Any

from hypergpu.common.tls import read_authority, read_pair


def test_certificates_for_a_server_and_its_nodes(cli: Any, tmp_path: Path) -> None:
    result = cli("certs", str(tmp_path), "--server", "train.example.org", "--server", "10.0.0.5", "--node", "node_1")
    assert result.code == 0, result.err
    read_authority(tmp_path / "ca.pem")
    for name in ("server", "node-node_1"):
        read_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem")
        assert (tmp_path / f"{name}-key.pem").stat().st_mode & 0o777 == 0o600
    authority, before = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    assert cli("certs", str(tmp_path), "--server", "train.example.org", "--days", "30").code == 0
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "server.pem").read_bytes() != before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_cannot_be_done_is_said(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, told in (
        ((str(tmp_path),), "name a certificate to make"),
        ((str(tmp_path), "--node", "a b"), "node id 'a b'"),
        ((str(tmp_path), "--server", "b\u00fccher.example"), "is no host name or address"),
        ((str(tmp_path / "file"), "--node", "a"), "cannot write"),
    ):
        result = cli("certs", *arguments)
        assert (result.code, told in result.err) == (2, True), result.err
