"""`hypergpu plan` on the command line."""

import json
from pathlib import Path

import pytest

from hypergpu.common.text import parse_size
from tests.hypergpu.conftest import Cli

LINKS = "name,rtt_ms,up_mbit,down_mbit,step_seconds,price_per_hour\na,4,1000,1000,0.05,2\nb,30,20,100,0.06,\n"


@pytest.fixture
def links(tmp_path: Path) -> str:
    (tmp_path / "links.csv").write_text(LINKS)
    return "links.csv"


def test_a_plan_says_hours_bytes_money_and_the_configuration(cli: Cli, links: str) -> None:
    given = ("plan", "--model-bytes", "500kB", "--links", links, "--price", "0.5", "--seeds", "2", "--jobs", "1")
    shown = cli(*given)
    assert shown.code == 0, shown.err
    assert "the work of 1,000 rounds" in shown.out
    assert "against as given" in shown.out
    assert "orchestrator:\n  policy: none" in shown.out
    record = json.loads(cli(*given, "--json").out)
    assert record["best"]["hours"]["mean"] > 0
    assert record["best"]["config"]["compression"]["strategy"] == "fixed"
    reference = record["reference"]
    assert reference["money"]["mean"] == pytest.approx(2.5 * reference["hours"]["mean"])
    assert len(record["losers"]) + 1 == record["candidates"]
    assert record["settings"][-1] == reference


def test_a_curve_may_come_from_a_file(cli: Cli, links: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "convergence: {learning_rate: 0.1, noise_scale: 30, loss_start: 3, loss_floor: 0.1, loss_scale: 4,\n"
        "  loss_power: 1, metric_start: 0.1, metric_limit: 0.98, metric_scale: 3, metric_power: 1, model_bytes: 77}\n"
    )
    given = ("plan", "--model-bytes", "500kB", "--links", links, "--curve", "mine.yaml", "--target", "0.9")
    shown = cli(*given, "--seeds", "1", "--candidates", "2", "--jobs", "1", "--json")
    assert shown.code == 0, shown.err
    record = json.loads(shown.out)
    assert (record["curve"], record["target"], record["reference"]["policy"]) == ("mine", 0.9, "reactive")
    assert record["candidates"] == 2
    beyond = cli(*given[:-1], "0.99")
    assert (beyond.code, beyond.out) == (2, "")
    assert "the curve of mine ends at accuracy 98.0 % and never reaches 99.0 %" in beyond.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--model-bytes", "44 megs"), "--model-bytes: '44 megs' is no size; expected a number of bytes, as in 44MB"),
        (("--task", "chars", "--curve", "x.yaml"), "give --task or --curve"),
        (("--curve", "x.yaml"), "--curve: give the value to reach with --target"),
        (("--target", "0.9"), "--target: a value is reached on a learning curve"),
        (("--task", "char"), "did you mean 'chars'"),
        (("--links", "none.csv"), "cannot read none.csv"),
    ],
)
def test_a_wrong_option_is_named(cli: Cli, links: str, options: tuple[str, ...], told: str) -> None:
    shown = cli("plan", "--model-bytes", "1MB", "--links", links, *options)
    assert (shown.code, shown.out) == (2, "")
    assert told in shown.err


@pytest.mark.parametrize(
    ("text", "count"),
    [("44MB", 44_000_000), ("1.5 GiB", 3 << 29), ("312", 312), ("1k", 1000), ("2KiB", 2048), ("0.5MB", 500_000)],
)
def test_a_size_has_its_unit(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "0", "-1MB", "1 XB", "1e9", "1iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|less than a byte"):
        parse_size(text)
