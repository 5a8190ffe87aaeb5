import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
LINE = ("--rtt-ms", "40", "--bandwidth-mbit", "20", "--loss", "0.01", "--bytes", "200000", "--samples", "50", "--json")


def test_a_transfer_as_json(cli: Cli) -> None:
    result = cli("transfer", *LINE, "--loss-model", "transport", "--seed", "5")
    assert result.code == 0
    times = json.loads(result.out)
    for kind in ("cold", "warm"):
        assert 0.1 < times[kind]["p50_seconds"] <= times[kind]["p90_seconds"] < 2
        assert times[kind]["mean_seconds"] > 0.1
    assert json.loads(cli("transfer", *LINE, "--seed", "5").out) == times
    assert json.loads(cli("transfer", *LINE, "--seed", "6").out) != times


def test_a_transfer_over_a_profile(cli: Cli, tmp_path: Path) -> None:
    result = cli("transfer", "--profile", "good", "--samples", "5")
    assert result.code == 0
    assert "warm" in result.out
    (tmp_path / "p.yaml").write_text("profiles:\n  mine: {rtt_ms: 80}\n")
    own = cli("transfer", "--profile", "mine", "--profiles", str(tmp_path / "p.yaml"), "--bytes", "100", "--json")
    assert json.loads(own.out)["warm"]["mean_seconds"] == pytest.approx(0.04, abs=0.001)


@pytest.mark.parametrize(("codec", "nbytes"), [("none", "16384"), ("int8", "4100"), ("topk", "120")])
def test_a_codec_makes_a_message_shorter(cli: Cli, codec: str, nbytes: str) -> None:
    line = ("--rtt-ms", "40", "--bandwidth-mbit", "0.1", "--samples", "3", "--json")
    encoded = cli("transfer", *line, "--bytes", "16384", "--codec", codec)
    assert encoded.code == 0
    assert json.loads(encoded.out) == json.loads(cli("transfer", *line, "--bytes", nbytes).out)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--profile", "good", "--codec", "int9"), "unknown codec 'int9'; did you mean 'int8'"),
        ((), "give --profile, or --rtt-ms"),
        (("--profile", "gud"), "did you mean 'good'"),
        (("--profile", "good", "--rtt-ms", "3"), "give either --profile or the figures"),
        (("--rtt-ms", "3", "--bandwidth-mbit", "0"), "bandwidth must be above 0"),
        (("--rtt-ms", "3", "--bandwidth-mbit", "1e-300"), "1 bit/s at least"),
        (("--rtt-ms", "3", "--bandwidth-mbit", "nan"), "--bandwidth-mbit"),
        (("--rtt-ms", "inf"), "--rtt-ms"),
        (("--rtt-ms", "3", "--loss", "2"), "--loss"),
        (("--rtt-ms", "3", "--loss", "0.9", "--burst", "2"), "make them longer"),
        (("--profile", "a", "--profiles", "none.yaml"), "cannot read none.yaml"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(cli: Cli, arguments: tuple[str, ...], what: str) -> None:
    result = cli("transfer", *arguments)
    assert result.code == 2
    assert what in result.err
    assert len(result.err.strip().splitlines()) == 1
