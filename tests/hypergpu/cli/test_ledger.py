"""`hypergpu ledger`: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest

from tests.hypergpu.conftest import Cli
from tests.hypergpu.ledger_runs import ANNOUNCED, SIGNER, decisions, receipt, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", decisions(4, 3))
    return tmp_path / "run"


def note_of(run: Path, line: int) -> str:
    note: str = json.loads((run / "ledger.checkpoints").read_text().splitlines()[line])["note"]
    return note


def test_a_valid_ledger(cli: Cli, run: Path, tmp_path: Path) -> None:
    result = cli("ledger", "verify", str(run))
    assert (result.code, result.out) == (
        0,
        "hypergpu/0123456789ab: 16 leaves and 4 rounds, all signed; 0 receipts signed by their nodes\n",
    )
    (tmp_path / "key").write_text(f"{SIGNER.verifier}\n")
    for key in (str(tmp_path / "key"), str(SIGNER.verifier)):
        found = json.loads(cli("ledger", "verify", str(run), "--key", key, "--json").out)
        assert found["valid"]
        assert (found["leaves"], found["rounds"], found["faults"]) == (16, 4, [])


def test_a_fault_is_told_and_ends_with_1(cli: Cli, run: Path) -> None:
    text = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(text.replace('"samples":34', '"samples":35', 1))
    result = cli("ledger", "verify", str(run))
    assert (result.code, result.out) == (
        1,
        "ledger.jsonl, line 3: leaf 3 was changed (decision batch_size node_2, round 1)\n",
    )
    (fault,) = json.loads(cli("ledger", "verify", str(run), "--json").out)["faults"]
    assert (fault["file"], fault["line"]) == ("ledger.jsonl", 3)


def test_what_is_no_run_and_no_key_is_refused_with_2(cli: Cli, run: Path, tmp_path: Path) -> None:
    result = cli("ledger", "verify", str(tmp_path))
    assert result.code == 2
    assert "has no ledger.jsonl: name the directory of a run" in result.err
    assert "is no key of a log" in cli("ledger", "verify", str(run), "--key", "a+b+c").err
    assert "cannot read" in cli("ledger", "verify", str(run), "--key", str(tmp_path / "none")).err


def test_a_ledger_goes_on_from_a_kept_checkpoint(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text(note_of(run, 1))
    result = cli("ledger", "consistency", str(run), str(tmp_path / "kept"))
    assert result.code == 0
    assert result.out.startswith("hypergpu/0123456789ab: the ledger with 16 leaves begins with the 8 leaves of root ")
    found = json.loads(cli("ledger", "consistency", str(run), "8", "12", "--json").out)
    assert (found["old"], found["size"], found["consistent"], len(found["proof"])) == (8, 12, True, 1)
    assert "expected 1 to 16" in cli("ledger", "consistency", str(run), "17").err
    assert "expected 1 to 16" in cli("ledger", "consistency", str(run), "1", "0").err


def test_a_ledger_that_was_forked_or_taken_back_ends_with_1(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text(note_of(run, 2))
    write_run(tmp_path / "forked", [[("decision", {"about": "another"})], *decisions(4, 3)])
    result = cli("ledger", "consistency", str(tmp_path / "forked"), str(tmp_path / "kept"))
    assert result.code == 1
    assert "are not those of the checkpoint: a fork" in result.out
    write_run(tmp_path / "back", decisions(2, 3))
    result = cli("ledger", "consistency", str(tmp_path / "back"), str(tmp_path / "kept"), "--json")
    assert result.code == 1
    assert json.loads(result.out)["fault"].endswith("has 8 leaves, and the checkpoint 12: it was taken back")


def test_a_kept_checkpoint_of_another_ledger_is_refused(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text(note_of(run, 1).replace("0123456789ab", "ffffffffffff"))
    result = cli("ledger", "consistency", str(run), str(tmp_path / "kept"))
    assert result.code == 1
    assert "is not signed by the key" in result.out


def test_a_receipt_is_proven_and_checked_without_the_run(cli: Cli, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [[ANNOUNCED, receipt(1)], [receipt(2)]])
    result = cli("ledger", "prove", str(tmp_path / "run"), "node_1", "2", "--out", str(tmp_path / "proof"))
    assert result.code == 0
    assert cli("ledger", "prove", str(tmp_path / "run"), "node_1", "2").out == (tmp_path / "proof").read_text()
    checked = cli("ledger", "check", str(tmp_path / "proof"), "--key", str(SIGNER.verifier))
    assert checked.code == 0
    said = "leaf 4 of 5 in hypergpu/0123456789ab: receipt of node_1 for round 2, signed by the node: "
    assert checked.out.startswith(said)
    found = json.loads(cli("ledger", "check", str(tmp_path / "proof"), "--key", str(SIGNER.verifier), "--json").out)
    assert (found["index"], found["size"], found["leaf"]["round"], found["is_signed_by_node"]) == (3, 5, 2, True)
    (tmp_path / "proof").write_text("nothing")
    result = cli("ledger", "check", str(tmp_path / "proof"), "--key", str(SIGNER.verifier))
    assert result.code == 1
    assert "this is no proof" in result.out
    result = cli("ledger", "prove", str(tmp_path / "run"), "node_9", "2")
    assert (result.code, "has no receipt of 'node_9' for round 2" in result.err) == (2, True)
    result = cli("ledger", "prove", str(tmp_path / "run"), "node_1", "2", "--out", str(tmp_path / "none" / "x"))
    assert "cannot write" in result.err
