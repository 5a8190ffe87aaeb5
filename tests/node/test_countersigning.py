"""Receipts of a node and its view of the ledger: what is signed, what is kept, and when a node stops."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.errors import ForkedLedger
from hypergpu.common.merkle import MerkleTree, leaf_hash
from hypergpu.common.wire import receipt_of
from hypergpu.node.countersigning import Countersigning
from hypergpu.protos import coordinator_pb2 as pb
from tests.node.conftest import LEDGER
from tests.node.test_agent import order

TREE = MerkleTree(leaf_hash(b"%d" % number) for number in range(20))
OTHER = MerkleTree(leaf_hash(b"other %d" % number) for number in range(20))


def shown(size: int, seen: int = 0, tree: MerkleTree = TREE) -> pb.LedgerCheckpoint:
    return pb.LedgerCheckpoint(note=LEDGER.sign(size, tree.root(size)), proof=tree.consistency(seen, size))


def test_the_key_and_the_checkpoint_outlast_the_process(tmp_path: Path) -> None:
    first = Countersigning(tmp_path / "state" / "n1")
    first.begin(str(LEDGER.verifier))
    first.see(shown(8))
    key = tmp_path / "state" / "n1.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    second = Countersigning(tmp_path / "state" / "n1")
    assert second.public_key == first.public_key
    second.begin(str(LEDGER.verifier))
    assert second.ledger_size == 8
    with pytest.raises(ForkedLedger, match=r"remove .*n1\.checkpoint"):
        second.see(shown(9, 8, OTHER))
    assert Countersigning().public_key != Countersigning().public_key, "a node without a name keeps nothing"


def test_files_that_cannot_be_used_stop_no_node(tmp_path: Path) -> None:
    (tmp_path / "n1.key").write_bytes(b"short")
    (tmp_path / "n1.checkpoint").mkdir()
    signing = Countersigning(tmp_path / "n1")
    assert len(signing.public_key) == 32
    signing.begin(str(LEDGER.verifier))
    signing.see(shown(8))
    assert signing.ledger_size == 8


def test_a_receipt_is_of_the_bytes_and_figures_and_of_the_ledger_that_was_seen() -> None:
    signing = Countersigning()
    signing.begin(str(LEDGER.verifier))
    signing.see(shown(8))
    header = pb.UpdateHeader(work=pb.WorkId(run_id="r", round=3, node_id="n1", attempt=1), samples=64, loss=0.1)
    payload: Any = np.arange(100, dtype=np.uint8)
    sent = signing.sign(header, payload)
    assert (sent.ledger_size, sent.ledger_root) == (8, TREE.root(8))
    digest = "bce0aff19cf5aa6a7469a30d61d04e4376e4bbf6381052ee9e7f33925c954d52"
    receipt = receipt_of(header, digest, sent.ledger_size, sent.ledger_root)
    assert receipt.is_signed(signing.public_key, sent.signature)
    header.samples = 65
    assert not receipt_of(header, digest, 8, TREE.root(8)).is_signed(signing.public_key, sent.signature)


async def test_a_node_signs_each_update_and_says_what_it_has_seen(cluster: Any) -> None:
    notes = [shown(8), shown(12, 8), *[shown(12) for _ in range(200)]]
    async with cluster(order(1), order(2), checkpoints=notes) as c:
        await c.run()
    assert len(c.fake.headers) == 2
    assert all(len(header.receipt.signature) == 64 for header in c.fake.headers)
    seen = c.fake.ledger_sizes
    assert seen == sorted(seen)
    assert set(seen) <= {0, 8, 12}


async def test_a_node_leaves_a_coordinator_whose_ledger_was_forked_with_its_next_heartbeat(
    cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async with cluster(keep_open=True, checkpoints=[shown(8), shown(9, 8, OTHER)]) as c:
        with pytest.raises(ForkedLedger, match="was forked or taken back after 8 leaves"):
            await c.run()
    assert c.fake.ledger_sizes == [0, 8]
    assert c.fake.left[0].startswith("ForkedLedger: the ledger hypergpu/0123456789ab was forked")
    said = capsys.readouterr().out
    assert "the ledger of the coordinator was forked" in said
    assert LEDGER.sign(8, TREE.root(8)).split("\n")[2] in said, "the checkpoint that it had seen"
    assert LEDGER.sign(9, OTHER.root(9)).split("\n")[2] in said, "and the one that it was shown"
