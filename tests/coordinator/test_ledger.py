"""The ledger of a run: what its leaves are, when a checkpoint of it is published, and how it goes on."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.errors import CannotResume
from hypergpu.common.merkle import MerkleTree, leaf_hash, require_consistency
from hypergpu.common.signed_note import Checkpoint, Signer, verifier_key
from hypergpu.coordinator.core.adaptation.decision_log import ClusterReason
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.engine import MOST_WAITING_LEAVES
from hypergpu.coordinator.failpoints import Point
from tests.coordinator.test_durability import BlockedSync, FullDisk, Trained, left_behind

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def leaves_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def checkpoints_of(out: Path) -> list[Checkpoint]:
    key = verifier_key((out / "ledger.vkey").read_text())
    return [key.open(json.loads(line)["note"]) for line in (out / "ledger.checkpoints").read_text().splitlines()]


def tree_of(out: Path) -> MerkleTree:
    return MerkleTree(leaf_hash(line) for line in (out / "ledger.jsonl").read_bytes().splitlines())


# ---------------------------------------------------------------- the log


def test_leaves_are_sealed_with_a_signed_root_and_published_later() -> None:
    ledger = Ledger(Signer("hypergpu/000000000000", KEY))
    ledger.append("start", 1, {"run_id": "run-1"})
    ledger.note([ev.RunEvent("decision", 1, "", decision=decision()), ev.Finish(ev.FinishReason.STOPPED, "enough")], 2)
    lines = ledger.seal()
    assert lines == [
        '{"kind":"start","round":1,"run_id":"run-1"}',
        '{"about":"rule","figures":{"a":1.5},"kind":"decision","reason":"set_by_user","round":1,"subject":"node_1"}',
        '{"detail":"enough","kind":"end","reason":"stopped","round":2}',
    ]
    assert ledger.published.note == ""
    assert ledger.publish(2) is None, "these leaves are signed together"
    row = ledger.publish(3)
    assert row is not None
    tree = MerkleTree(leaf_hash(line.encode()) for line in lines)
    assert ledger.verifier.open(row["note"]) == Checkpoint("hypergpu/000000000000", 3, tree.root())
    assert ledger.seal() == []


def decision() -> Decision:
    return Decision(1, DecisionKind.RULE, "node_1", ClusterReason.SET_BY_USER, {"a": 1.5})


def test_a_state_has_the_leaves_that_the_file_may_lack() -> None:
    ledger = Ledger(Signer("hypergpu/000000000000", KEY))
    for number in range(3):
        ledger.append("leaf", number, {})
    ledger.seal()
    ledger.saved(2)
    assert ledger.state()["leaves"] == ['{"kind":"leaf","round":2}']
    assert ledger.state()["size"] == 3
    ledger.append("leaf", 4, {})
    assert ledger.state()["size"] == 3, "a leaf that waits is not part of a state"
    ledger.seal()
    ledger.saved(9)
    assert ledger.state()["leaves"] == []


def test_the_proof_for_a_size_is_kept_until_the_next_checkpoint() -> None:
    ledger = Ledger(Signer("hypergpu/000000000000", KEY))
    tree = MerkleTree()
    for number in range(1, 30):
        ledger.append("leaf", number, {})
        for line in ledger.seal():
            tree.append(leaf_hash(line.encode()))
        ledger.publish(ledger.size)
        for seen in range(number + 2):
            expected = tree.consistency(seen) if 0 < seen < number else []
            assert ledger.consistency(seen) == ledger.consistency(seen) == expected


# ---------------------------------------------------------------- a run


async def test_each_round_and_each_decision_is_a_leaf_and_each_round_has_a_checkpoint(tmp_path: Path) -> None:
    trained = Trained(tmp_path, policy="none", rounds=3)
    await trained.begin()
    await trained.train(3)
    await trained.engine.finished.wait()
    await trained.engine.close()
    leaves = leaves_of(tmp_path)
    assert (leaves[0]["kind"], leaves[0]["run_id"]) == ("start", trained.engine.run_id)
    assert leaves[-1]["kind"] == "end"
    rounds = [leaf for leaf in leaves if leaf["kind"] == "round"]
    assert [leaf["round"] for leaf in rounds] == [1, 2, 3]
    assert all(len(leaf["weights"]) == 64 for leaf in rounds)
    told = [event.text for event in trained.told if event.kind == "decision"]
    assert len([leaf for leaf in leaves if leaf["kind"] == "decision"]) == len(told) > 0
    checkpoints = checkpoints_of(tmp_path)
    tree = tree_of(tmp_path)
    assert [each.root for each in checkpoints] == [tree.root(each.size) for each in checkpoints]
    assert len(checkpoints) == 3
    assert checkpoints[-1].size == len(leaves)


async def test_nobody_sees_a_checkpoint_before_its_round_is_on_the_disk(tmp_path: Path) -> None:
    storage = BlockedSync(asyncio.get_running_loop())
    trained = Trained(tmp_path, storage=storage)
    await trained.begin()
    storage.blocks = True
    await trained.train(1)
    await storage.is_asked.wait()
    assert trained.engine.ledger.size > 0
    assert trained.engine.ledger.published.note == ""
    storage.go_on()
    await trained.closed(1)
    assert trained.engine.ledger.published.size == trained.engine.ledger.size
    storage.blocks = False
    await trained.close()


async def test_a_round_that_is_not_on_the_disk_is_told_but_its_checkpoint_is_not_published(tmp_path: Path) -> None:
    storage = FullDisk()
    trained = Trained(tmp_path, storage=storage, every=1000)
    await trained.begin()
    await trained.train(1)
    await trained.closed(1)
    published = trained.engine.ledger.published
    storage.full = {Point.LOG_SYNC, Point.CHECKPOINT_WRITE}
    await trained.train(2)
    await trained.closed(3)
    assert trained.engine.ledger.published == published
    storage.full = set()
    await trained.close()
    assert trained.engine.ledger.published.size == trained.engine.ledger.size == checkpoints_of(tmp_path)[-1].size


async def test_leaves_do_not_wait_in_memory_for_a_round_that_never_comes(tmp_path: Path) -> None:
    trained = Trained(tmp_path)
    await trained.begin()
    ledger = trained.engine.ledger
    for number in range(MOST_WAITING_LEAVES + 1):
        ledger.append("leaf", 1, {"number": number})
    await trained.engine.retry()
    await trained.engine._records.flush()
    await trained.engine._records.sync()
    assert ledger.waiting == 0
    assert ledger.published.note == "", "no state of the run has them"
    await trained.engine.retry()
    assert ledger.state()["leaves"] == [], "they are on the disk"
    await trained.train(1)
    await trained.closed(1)
    assert ledger.published.size == ledger.size > MOST_WAITING_LEAVES
    await trained.close()


# ---------------------------------------------------------------- resuming


async def test_a_resumed_ledger_goes_on_from_what_was_published(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    before = checkpoints_of(out)[-1]
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:7])  # what was not synced is lost
    trained = Trained(out, resume=True, every=1000)
    await trained.begin()
    assert trained.engine.ledger.published.size == before.size
    await trained.train(1)
    await trained.closed(6)
    after = trained.engine.ledger.verifier.open(trained.engine.ledger.published.note)
    proof = trained.engine.ledger.consistency(before.size)
    require_consistency(before.size, before.root, after.size, after.root, proof)
    await trained.close()
    starts = [leaf for leaf in leaves_of(out) if leaf["kind"] == "start"]
    assert [leaf["round"] for leaf in starts] == [1, 6]
    assert [leaf["round"] for leaf in leaves_of(out) if leaf["kind"] == "round"] == [1, 2, 3, 4, 5, 6]
    tree = tree_of(out)
    assert [each.root for each in checkpoints_of(out)] == [tree.root(each.size) for each in checkpoints_of(out)]


def edited(out: Path) -> None:
    data = bytearray((out / "ledger.jsonl").read_bytes())
    data[20] ^= 1
    (out / "ledger.jsonl").write_bytes(data)


def shortened(out: Path) -> None:
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:2]))


def without_key(out: Path) -> None:
    (out / ".ledger-key").unlink()


def rewound(out: Path) -> None:
    """The last record of the log of rounds is lost, and nodes have seen its checkpoint."""
    (file,) = (out / "checkpoints").glob("rounds-*.log")
    file.write_bytes(file.read_bytes()[:-3])


FAULTS = {
    edited: "do not lead to the signed checkpoint",
    shortened: r"has 2 leaves, and \d+ were written",
    without_key: "is not signed by the key",
    rewound: r"nodes may have seen it with \d+ leaves, and the run goes back to \d+",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_ledger_that_cannot_go_on_is_refused_and_replaced_only_by_force(tmp_path: Path, fault: Any) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    fault(out)
    files = {file: (out / file).read_bytes() for file in ("ledger.jsonl", "ledger.checkpoints", "ledger.vkey")}
    with pytest.raises(CannotResume, match=FAULTS[fault]):
        Trained(out, resume=True, every=1000)
    assert {file: (out / file).read_bytes() for file in files} == files, "nothing was changed"
    shutil.copytree(out, tmp_path / "forced")
    trained = Trained(tmp_path / "forced", resume=True, force=True, every=1000)
    await trained.begin()
    assert trained.engine.ledger.verifier.name != verifier_key(files["ledger.vkey"].decode()).name
    aside = {file: (tmp_path / "forced" / file.replace("ledger", "ledger-1")).read_bytes() for file in files}
    assert aside == files
    await trained.close()


async def test_a_new_run_has_another_ledger_and_keeps_the_earlier_one(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        trained = Trained(tmp_path)
        await trained.begin()
        await trained.train(1)
        await trained.closed(1)
        await trained.close()
        names.append(verifier_key((tmp_path / "ledger.vkey").read_text()).name)
    earlier = tmp_path / "earlier" / "1"
    assert verifier_key((earlier / "ledger.vkey").read_text()).name == names[0] != names[1]
    assert leaves_of(earlier)[-1]["kind"] == "end"
