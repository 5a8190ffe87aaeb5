"""Division of an amount, addresses, and the tree."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.rewards.addresses import checksummed, read_addresses
from hypergpu.rewards.distribution import distribute
from hypergpu.rewards.keccak import keccak256
from hypergpu.rewards.merkle import MerkleTree, leaf_hash, verifies
from hypergpu.rewards.scores import Basis, read_epoch
from hypergpu.rewards.shares import divide
from tests.hypergpu.ledger_runs import decisions, write_run

ALICE, BOB = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
"""Two of the examples in EIP-55."""
SCORES = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.floats(0, 1e9) | st.sampled_from([0.0, 1.0, 3.0, 5e-324]),
    min_size=1,
    max_size=9,
)


@given(SCORES, st.integers(1, 2**256 - 1) | st.integers(1, 20))
def test_nothing_is_lost_to_rounding_and_nobody_gets_a_unit_more_or_less(scores: dict[str, float], total: int) -> None:
    if not any(scores.values()):
        with pytest.raises(InvalidInput, match="nobody can be paid"):
            divide(total, scores)
        return
    shares = divide(total, scores)
    assert sum(shares.values()) == total
    whole = sum(Fraction(score) for score in scores.values())
    for node, score in scores.items():
        assert abs(shares.get(node, 0) - total * Fraction(score) / whole) < 1
        assert score > 0 or node not in shares


def test_equal_remainders_go_by_name() -> None:
    assert divide(4, {"b": 1.0, "c": 1.0, "a": 1.0}) == {"a": 2, "b": 1, "c": 1}


def test_the_tree_is_that_of_openzeppelin() -> None:
    # the example of its README, whose leaves are (address, uint256), and the root that its own tests expect
    def leaf(digit: str, amount: int) -> bytes:
        return leaf_hash(bytes.fromhex(digit * 40).rjust(32, b"\0") + amount.to_bytes(32))

    tree = MerkleTree([leaf("1", 5 * 10**18), leaf("2", 25 * 10**17)])
    assert tree.root.hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"
    assert tree.proof(0)[0].hex() == "b92c48e9d7abe27fd8dfd6b5dfdbfb1c9a463f80c712b66f3a5180a090cccafc"


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40, unique=True), st.data())
def test_every_leaf_has_a_proof_and_nothing_else_has_one(leaves: list[bytes], data: st.DataObject) -> None:
    tree = MerkleTree(leaves)
    at = data.draw(st.integers(0, len(leaves) - 1))
    proof = tree.proof(at)
    assert verifies(leaves[at], proof, tree.root)
    assert len(proof) <= len(leaves).bit_length()
    assert not verifies(keccak256(leaves[at]), proof, tree.root)
    if proof:
        assert not verifies(leaves[at], proof[:-1], tree.root)
        changed = bytes([proof[0][0] ^ 1]) + proof[0][1:]
        assert not verifies(leaves[at], [changed, *proof[1:]], tree.root)


@pytest.mark.parametrize("address", [ALICE, BOB, "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB"])
def test_addresses_are_checked(address: str) -> None:
    assert checksummed(address) == checksummed(address.lower()) == checksummed(f"0x{address[2:].upper()}") == address
    swapped = address.replace("B", "b", 1) if "B" in address else address.replace("A", "a", 1)
    with pytest.raises(InvalidInput, match="typing error"):
        checksummed(swapped)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: the first line has to be node,address"),
        (f"{ALICE},n\n", "line 1: the first line"),
        (f"node,address\nn,{ALICE[:-1]}\n", "line 2: .* is no address"),
        (f"node,address\nn,{ALICE}\nn,{BOB}\n", "line 3: node 'n' is there twice"),
        (f"node,address\n,{ALICE}\n", "line 2: the name of the node is missing"),
        ("node,address\nn\n", "line 2: 1 fields"),
        (f"node,address\nn,0x{'0' * 40}\n", "line 2: the zero address"),
        ('node,address\n"n,x\n', "unexpected end of data"),
    ],
)
def test_a_wrong_file_of_addresses_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "nodes.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_addresses(file)


def test_who_cannot_be_paid_is_named() -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 0.0}
    with pytest.raises(InvalidInput, match="b earned a share and have no address"):
        distribute(10, scores, {"a": ALICE})
    with pytest.raises(InvalidInput, match="knows no x"):
        distribute(10, scores, {"a": ALICE, "b": BOB, "x": BOB})
    with pytest.raises(InvalidInput, match="2\\^256"):
        distribute(1 << 256, scores, {"a": ALICE, "b": BOB})
    (only,) = distribute(10, scores, {"a": ALICE, "b": ""}).shares
    assert (only.node, only.amount) == ("a", 10)
    whole = distribute(10, scores, {"a": ALICE, "b": BOB}).to_dict()
    assert [(each["node"], each["amount"]) for each in whole["claims"]] == [("a", "3"), ("b", "7")]


def run_of(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir()
    (folder / "rounds.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "nodes.json").write_text(json.dumps([{"node_id": each} for each in ("a", "b", "idle")]))
    return folder


def row(number: int, steps: int = 2, **batches: int) -> dict[str, Any]:
    return {"round": number, "local_steps": steps, "batch_sizes": batches, "contributors": sorted(batches)}


def test_an_epoch_takes_its_rounds_once(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [row(1, a=8), row(2, a=8), row(2, a=4, b=8), row(3, b=16)])
    own = run_of(tmp_path / "own", [{**row(1, steps=4, a=8, b=8), "node_steps": {"b": 1}}])
    assert read_epoch(own, Basis.SAMPLES).scores == {"a": 32.0, "b": 8.0, "idle": 0.0}
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "loc')
    assert read_epoch(run, Basis.SAMPLES).scores == {"a": 24.0, "b": 48.0, "idle": 0.0}
    assert read_epoch(run, Basis.SAMPLES, 2, 2).scores == {"a": 8.0, "b": 16.0, "idle": 0.0}
    for first, last in ((0, 2), (2, 4), (3, 2)):
        with pytest.raises(InvalidInput, match="rounds 1 to 3"):
            read_epoch(run, Basis.SAMPLES, first, last)


def test_points_below_zero_over_the_epoch_count_as_none(tmp_path: Path) -> None:
    points = [{"a": 0.5, "b": 0.5}, {"a": 0.25, "b": -0.75}, {}]
    run = run_of(tmp_path / "run", [{**row(number, a=8, b=8), "points": each} for number, each in enumerate(points, 1)])
    assert read_epoch(run, Basis.USEFULNESS).scores == {"a": 0.75, "b": 0.0, "idle": 0.0}
    assert read_epoch(run, Basis.USEFULNESS, 1, 1).scores == {"a": 0.5, "b": 0.5, "idle": 0.0}
    with pytest.raises(InvalidInput, match="--by samples"):
        read_epoch(run_of(tmp_path / "without", [row(1, a=8)]), Basis.USEFULNESS)


@pytest.mark.parametrize("by", Basis)
@pytest.mark.parametrize(
    "bad",
    [
        {"round": -1},
        {"round": True},
        {**row(1, a=1), "batch_sizes": {}, "points": 3},
        {**row(1), "contributors": 3, "points": {"a": "1"}},
        {**row(1), "contributors": [["a"]], "points": {"a": None}},
        {**row(1, a=-1), "points": {"a": float("nan")}},
    ],
)
def test_records_that_make_no_sense_are_refused(tmp_path: Path, bad: dict[str, Any], by: Basis) -> None:
    with pytest.raises(ConfigError, match="round"):
        read_epoch(run_of(tmp_path / "run", [bad]), by)


def test_records_that_the_ledger_did_not_sign_pay_nobody(cli: Any, tmp_path: Path) -> None:
    run, addresses, key = tmp_path / "run", tmp_path / "nodes.csv", tmp_path / "key"
    write_run(run, decisions(3, 2), points={"a": 0.5, "b": 0.5})
    addresses.write_text(f"node,address\na,{ALICE}\nb,{BOB}\n")
    key.write_text((run / "ledger.vkey").read_text())
    command = ("rewards", str(run), "--addresses", str(addresses), "--amount", "100")
    assert cli(*command).code == cli(*command, "--key", str(key)).code == 0
    lines = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text(lines.replace('"a":0.5', '"a":5.0', 1))
    refused = cli(*command)
    assert (refused.code, "rounds.jsonl, line 1" in refused.err) == (2, True), refused.err
    (run / "rounds.jsonl").write_text(lines)
    (run / "ledger.jsonl").unlink()
    assert cli(*command).code == 0, "a run without a ledger, as in a simulation"
    assert cli(*command, "--key", str(key)).code == 2


def test_the_command_divides_writes_and_checks(cli: Any, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [{**row(1, a=8, b=8), "points": {"a": 0.125, "b": 0.375}}])
    addresses, out = tmp_path / "nodes.csv", tmp_path / "epoch.json"
    addresses.write_text(f"node,address\na,{ALICE.lower()}\nb,{BOB}\n")
    arguments = ("rewards", str(run), "--addresses", str(addresses), "--amount")
    done = cli(*arguments, str(10**30 + 1), "--out", str(out))
    assert done.code == 0, done.err
    written = json.loads(out.read_text())
    assert written["root"] in done.out
    assert [each["amount"] for each in written["claims"]] == [str(25 * 10**28), str(75 * 10**28 + 1)]
    assert written["claims"][0]["address"] == ALICE
    assert cli(*arguments, str(10**30 + 1), "--check", str(out)).code == 0
    other = cli(*arguments, "5", "--check", str(out))
    assert (other.code, "differs" in other.err) == (2, True)
    for amount in ("1e18", "1,000", "-1", "0", str(1 << 256)):
        assert cli(*arguments, f"{amount}").code == 2
    for rounds in ("1", "2-1", "1-9", "a-b"):
        assert cli(*arguments, "10", "--rounds", rounds).code == 2
