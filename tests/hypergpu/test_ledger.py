"""Offline verification of a ledger: whatever is changed in it is found and named."""

import random
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.errors import CorruptData, InvalidInput
from hypergpu.common.signed_note import Signer
from hypergpu.coordinator.run_lock import RunLock, is_written
from hypergpu.ledger.proofs import check, prove
from hypergpu.ledger.verifying import Fault, Verdict, verify
from tests.hypergpu.ledger_runs import ANNOUNCED, SIGNER, Leaf, decisions, receipt, write_run

ROUNDS, EACH = 500, 19
"""10,000 leaves."""
FILES = ("ledger.jsonl", "ledger.checkpoints")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large")
    write_run(path, decisions(ROUNDS, EACH))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", decisions(4, 3))
    return tmp_path / "run"


def test_a_ledger_as_it_was_signed_is_valid(large: Path) -> None:
    verdict = verify(large)
    assert verdict.faults == []
    assert (verdict.leaves, verdict.signed, verdict.checkpoints, verdict.rounds) == (10_000, 10_000, 500, 500)


def changed_byte(data: bytes, draws: random.Random) -> tuple[bytes, int]:
    place = draws.randrange(len(data))
    return data[:place] + bytes([data[place] ^ draws.randint(1, 255)]) + data[place + 1 :], data.count(
        b"\n", 0, place
    ) + 1


def dropped_byte(data: bytes, draws: random.Random) -> tuple[bytes, int]:
    place = draws.randrange(len(data))
    return data[:place] + data[place + 1 :], data.count(b"\n", 0, place) + 1


def dropped_line(data: bytes, draws: random.Random) -> tuple[bytes, int]:
    lines = data.splitlines(keepends=True)
    place = draws.randrange(len(lines))
    return b"".join(lines[:place] + lines[place + 1 :]), place + 1


def exchanged_lines(data: bytes, draws: random.Random) -> tuple[bytes, int]:
    lines = data.splitlines(keepends=True)
    first, second = sorted(draws.sample(range(len(lines)), 2))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines), first + 1


CHANGES = (changed_byte, dropped_byte, dropped_line, exchanged_lines)


def require_found(run: Path, seed: int) -> None:
    """Change one thing of a ledger, and check that the verification names the place."""
    draws = random.Random(seed)
    file, change = run / draws.choice(FILES), draws.choice(CHANGES)
    before = file.read_bytes()
    after, line = change(before, draws)
    if after == before:  # lines that are the same were exchanged
        return
    file.write_bytes(after)
    try:
        verdict = verify(run)
    finally:
        file.write_bytes(before)
    assert named(verdict, file.name, line), (
        f"seed {seed}: {change.__name__} of {file.name}, line {line}: {verdict.faults}"
    )


def named(verdict: Verdict, file: str, line: int) -> bool:
    def is_it(fault: Fault) -> bool:
        here = fault.file == file and (fault.line == line or f"line {line} " in fault.text)
        return here or f"the last line of {file} was dropped" in fault.text

    return any(is_it(each) for each in verdict.faults)


@pytest.mark.parametrize("seed", range(12))
def test_any_change_of_a_log_of_10_000_leaves_is_found_and_named(large: Path, seed: int) -> None:
    require_found(large, seed)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(12, 2012, 100))
def test_two_thousand_changes_of_a_log_of_10_000_leaves_are_found_and_named(large: Path, first: int) -> None:
    for seed in range(first, first + 100):
        require_found(large, seed)


def test_every_changed_byte_of_a_small_ledger_is_found(small: Path) -> None:
    for name in (*FILES, "ledger.vkey", "rounds.jsonl"):
        data = (small / name).read_bytes()
        for place in range(0, len(data), 13):
            (small / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert verify(small).faults, f"byte {place} of {name}"
        (small / name).write_bytes(data.replace(b"\n", b"\r", 1))
        assert verify(small).faults, f"another end of a line of {name}"
        (small / name).write_bytes(data)
    assert not verify(small).faults


def edit(run: Path, old: str, new: str, file: str = "ledger.jsonl") -> list[str]:
    text = (run / file).read_text()
    assert old in text
    (run / file).write_text(text.replace(old, new, 1))
    return [str(each) for each in verify(run).faults]


def test_a_fault_is_told_in_words(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "other")
    changed = "ledger.jsonl, line 2: leaf 2 was changed (decision batch_size node_1, round 1)"
    assert edit(small, '"samples":33', '"samples":34') == [changed]
    lines = (tmp_path / "other" / "ledger.jsonl").read_text().splitlines(keepends=True)

    def faults(changed: list[str]) -> list[str]:
        (tmp_path / "other" / "ledger.jsonl").write_text("".join(changed))
        return [str(each) for each in verify(tmp_path / "other").faults]

    dropped = "ledger.jsonl, line 6: leaf 6 was dropped; here is leaf 7 (decision batch_size node_2, round 2)"
    assert faults(lines[:5] + lines[6:]) == [dropped]
    moved = [*lines[:4], lines[6], lines[5], lines[4], *lines[7:]]
    text = "ledger.jsonl, line 5: leaf 5 is in another place; here is leaf 7 (decision batch_size node_2, round 2)"
    assert faults(moved) == [text]
    put = "ledger.jsonl, line 4: a line was put before leaf 4 (which is no JSON now)"
    assert faults([*lines[:3], "more\n", *lines[3:]]) == [put]
    assert faults(lines[:14]) == ["ledger.jsonl, line 15: leaves 15 to 16 were dropped from its end"]


def test_a_round_that_was_edited_in_rounds_jsonl_is_named(small: Path) -> None:
    fault = "rounds.jsonl, line 2: it is not the line of round 2 that was signed"
    assert edit(small, '"samples":200', '"samples":900', "rounds.jsonl") == [fault]
    rows = (small / "rounds.jsonl").read_text().splitlines(keepends=True)
    (small / "rounds.jsonl").write_text(rows[0])
    assert [str(each) for each in verify(small).faults] == ["rounds.jsonl: the line of round 2 was dropped"]


def test_a_ledger_that_was_written_anew_with_another_key_is_refused_by_the_one_that_is_known(tmp_path: Path) -> None:
    forger = Signer(SIGNER.verifier.name, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    write_run(tmp_path / "forged", decisions(2, 2), forger)
    assert verify(tmp_path / "forged").faults == []
    faults = [str(each) for each in verify(tmp_path / "forged", SIGNER.verifier).faults]
    assert any("is not signed by the key" in each for each in faults)
    assert any(each.startswith("ledger.vkey, line 1: it is the key") for each in faults)


def test_leaves_behind_the_last_checkpoint_are_named(small: Path) -> None:
    lines = (small / "ledger.checkpoints").read_text().splitlines(keepends=True)
    (small / "ledger.checkpoints").write_text("".join(lines[:-1]))
    (fault,) = verify(small).faults
    assert str(fault).startswith("ledger.jsonl, line 13: leaves 13 to 16 are in no checkpoint: the last line of ")


def test_what_a_coordinator_that_runs_has_not_signed_yet_is_no_fault(small: Path) -> None:
    leaves = (small / "ledger.jsonl").read_text()
    (small / "ledger.jsonl").write_text(leaves + '{"kind":"decision"}\n')
    (small / "rounds.jsonl").write_text((small / "rounds.jsonl").read_text() + '{"round":5}\n')
    assert verify(small).faults
    with RunLock(small):
        assert verify(small).faults == []
        (small / "ledger.jsonl").write_text(leaves[:-20])
        assert verify(small).faults, "what is signed cannot be missing"
    assert not is_written(small)


# ---------------------------------------------------------------- receipts


def receipts_of(directory: Path, *rounds: list[Leaf]) -> Verdict:
    write_run(directory, rounds)
    return verify(directory)


def test_receipts_are_signed_by_the_key_that_their_node_announced(tmp_path: Path) -> None:
    verdict = receipts_of(tmp_path / "good", [ANNOUNCED, receipt(1)], [receipt(2)])
    assert (verdict.faults, verdict.receipts, verdict.unsigned) == ([], 2, 0)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    faults = {
        "is not signed by the node": [[ANNOUNCED, receipt(1, loss=0.5)]],
        "has another key than the node has announced": [[ANNOUNCED, receipt(1, other)]],
        "was accepted twice": [[ANNOUNCED, receipt(1), receipt(1)]],
        "is none, although it is signed by the coordinator": [[("node", {"node": "node_1", "key": "?"})]],
    }
    for number, (text, rounds) in enumerate(faults.items()):
        (fault,) = receipts_of(tmp_path / str(number), *rounds).faults
        assert (fault.file, text in fault.text) == ("ledger.jsonl", True), fault


def test_a_receipt_tells_that_its_node_was_shown_another_ledger(tmp_path: Path) -> None:
    ledger = write_run(tmp_path / "first", [[ANNOUNCED]])
    note = ledger.published.note
    seen = (2, note.split("\n")[2])
    assert receipts_of(tmp_path / "same", [ANNOUNCED], [receipt(2, seen=seen)]).faults == []
    (fault,) = receipts_of(tmp_path / "other", [("decision", {}), ANNOUNCED], [receipt(2, seen=seen)]).faults
    assert "names a ledger of 2 leaves with the root" in fault.text
    assert fault.text.endswith("it was forked")


# ---------------------------------------------------------------- proofs


@pytest.fixture(scope="module")
def with_receipts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("receipts")
    write_run(path, [[ANNOUNCED], *([*rest, receipt(2 + number)] for number, rest in enumerate(decisions(40, 20)))])
    return path


def test_a_proof_needs_no_run_and_is_small(with_receipts: Path) -> None:
    proof = prove(with_receipts, "node_1", 20)
    proven = check(proof, SIGNER.verifier)
    assert (proven.leaf["node"], proven.leaf["round"], proven.is_signed_by_node) == ("node_1", 20, True)
    without_leaf = "\n".join(line for line in proof.split("\n") if not line.startswith("extra "))
    assert len(without_leaf.encode()) < 1024


def test_no_changed_proof_is_accepted(with_receipts: Path) -> None:
    proof = prove(with_receipts, "node_1", 20).encode()
    for place in range(0, len(proof), 7):
        changed = proof[:place] + bytes([proof[place] ^ 1]) + proof[place + 1 :]
        with pytest.raises(CorruptData):
            check(changed.decode(errors="replace"), SIGNER.verifier)
    stranger = Signer(SIGNER.verifier.name, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(CorruptData, match="is not signed by the key"):
        check(proof.decode(), stranger.verifier)


def test_what_is_not_in_the_ledger_is_not_proven(with_receipts: Path) -> None:
    for node, number in (("node_2", 20), ("node_1", 1)):
        with pytest.raises(InvalidInput, match="the ledger has no receipt of"):
            prove(with_receipts, node, number)
