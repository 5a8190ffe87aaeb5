"""The contract, compiled by Vyper and run in py-evm."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hypergpu.rewards.distribution import Distribution, Share, distribute
from hypergpu.rewards.keccak import keccak256

_RECURSION_LIMIT = sys.getrecursionlimit()
vyper = pytest.importorskip("vyper", reason="the contract is not tested: pip install 'hypergpu[chain]'")
eth_tester = pytest.importorskip("eth_tester", reason="the contract is not tested: pip install 'hypergpu[chain]'")
eth_abi = pytest.importorskip("eth_abi")
pytest.importorskip("eth")
sys.setrecursionlimit(_RECURSION_LIMIT)  # py-evm raises it for the whole process; other tests need it as users have it

SOURCE = Path(__file__).parents[3] / "hypergpu/rewards/Distributor.vy"
TOKEN = """
# pragma version 0.4.3
balanceOf: public(HashMap[address, uint256])

@deploy
def __init__():
    self.balanceOf[msg.sender] = 10**30

@external
def transfer(to: address, amount: uint256) -> bool:
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount
    return True
"""
DAY = 86_400
TOTAL = 1_000_003
SCORES = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 0.5}


@dataclass
class Contract:
    chain: Any
    address: str
    abi: list[dict[str, Any]]

    def transaction(self, sender: str, name: str, *arguments: Any) -> dict[str, Any]:
        function = next(each for each in self.abi if each.get("name") == name)
        types = [each["type"] for each in function["inputs"]]
        selector = keccak256(f"{name}({','.join(types)})".encode())[:4]
        data = "0x" + (selector + eth_abi.encode(types, arguments)).hex()
        return {"from": sender, "to": self.address, "gas": 500_000, "data": data}

    def read(self, name: str, *arguments: Any) -> int:
        """Read a number."""
        found = self.chain.call(self.transaction(self.chain.get_accounts()[0], name, *arguments))
        return int(found, 16)

    def call(self, sender: str, name: str, *arguments: Any, status: int = 1) -> None:
        """Send a transaction, which succeeds or, with status 0, reverts."""
        sent = self.chain.send_transaction(self.transaction(sender, name, *arguments))
        assert self.chain.get_transaction_receipt(sent)["status"] == status

    def refuses(self, why: str, sender: str, name: str, *arguments: Any) -> None:
        with pytest.raises(eth_tester.exceptions.TransactionFailed, match=why):
            self.chain.call(self.transaction(sender, name, *arguments))
        self.call(sender, name, *arguments, status=0)


def deployed(chain: Any, owner: str, source: str, *arguments: Any) -> Contract:
    made = vyper.compile_code(source, output_formats=["abi", "bytecode"])
    constructor = next(each for each in made["abi"] if each["type"] == "constructor")
    encoded = eth_abi.encode([each["type"] for each in constructor["inputs"]], arguments)
    data = made["bytecode"] + encoded.hex()
    sent = chain.send_transaction({"from": owner, "gas": 3_000_000, "data": data})
    return Contract(chain, chain.get_transaction_receipt(sent)["contract_address"], made["abi"])


@dataclass
class World:
    chain: Any
    token: Contract
    contract: Contract
    owner: str
    guardian: str
    accounts: list[str]
    shares: Distribution

    def wait(self, seconds: int) -> None:
        self.chain.time_travel(self.chain.get_block_by_number("latest")["timestamp"] + seconds)
        self.chain.mine_block()  # a call without a transaction sees the time of the latest block

    def open(self, epoch: int = 1) -> None:
        self.contract.call(self.owner, "propose", epoch, self.root, TOTAL)
        self.wait(DAY)

    @property
    def root(self) -> bytes:
        return bytes.fromhex(self.shares.root[2:])

    def claim_of(self, share: Share) -> tuple[int, int, list[bytes]]:
        claims = self.shares.to_dict()["claims"]
        return share.index, share.amount, [bytes.fromhex(each[2:]) for each in claims[share.index]["proof"]]


@pytest.fixture(scope="module")
def made() -> World:
    chain = eth_tester.EthereumTester(eth_tester.PyEVMBackend())
    owner, guardian, *accounts = chain.get_accounts()
    token = deployed(chain, owner, TOKEN)
    contract = deployed(chain, owner, SOURCE.read_text(), token.address, guardian, DAY)
    token.call(owner, "transfer", contract.address, TOTAL)
    shares = distribute(TOTAL, SCORES, dict(zip(SCORES, accounts, strict=False)))
    return World(chain, token, contract, owner, guardian, accounts, shares)


@pytest.fixture
def world(made: World) -> Iterator[World]:
    before = made.chain.take_snapshot()
    yield made
    made.chain.revert_to_snapshot(before)


def test_everybody_claims_the_share_once_and_the_whole_amount_is_paid(world: World) -> None:
    world.open()
    for share in world.shares.shares:
        claim = world.claim_of(share)
        world.contract.call(share.address, "claim", 1, *claim)
        assert world.token.read("balanceOf", share.address) == share.amount
        world.contract.refuses("claimed before", share.address, "claim", 1, *claim)
    assert world.token.read("balanceOf", world.contract.address) == 0
    assert world.contract.read("reserved") == 0


def test_forged_and_foreign_claims_revert(world: World) -> None:
    world.open()
    first, second = world.shares.shares[:2]
    index, amount, proof = world.claim_of(first)
    contract = world.contract
    contract.refuses("wrong proof", second.address, "claim", 1, index, amount, proof)
    contract.refuses("wrong proof", first.address, "claim", 1, index, amount + 1, proof)
    contract.refuses("wrong proof", first.address, "claim", 1, index + 9, amount, proof)
    contract.refuses("wrong proof", first.address, "claim", 1, index, amount, proof[:-1])
    contract.refuses("wrong proof", first.address, "claim", 1, index, amount, [*proof, bytes(32)])
    contract.refuses("wrong proof", first.address, "claim", 1, index, amount, world.claim_of(second)[2])
    contract.refuses("not open yet", first.address, "claim", 2, index, amount, proof)
    contract.call(first.address, "claim", 1, index, amount, proof)


def test_nothing_is_paid_before_the_window_has_passed_and_a_wrong_root_is_withdrawn_in_it(world: World) -> None:
    share = world.shares.shares[0]
    contract, claim = world.contract, world.claim_of(share)
    contract.call(world.owner, "propose", 1, world.root, TOTAL)
    world.wait(DAY - 60)
    contract.refuses("not open yet", share.address, "claim", 1, *claim)
    contract.refuses("neither owner nor guardian", share.address, "challenge", 1)
    contract.refuses("promised to others", world.owner, "withdraw", 1)
    contract.call(world.guardian, "challenge", 1)
    world.wait(DAY)
    contract.refuses("not open yet", share.address, "claim", 1, *claim)
    contract.refuses("not the next epoch", world.owner, "propose", 1, world.root, TOTAL)
    world.open(2)
    contract.refuses("not open to challenge", world.guardian, "challenge", 2)
    contract.call(share.address, "claim", 2, *claim)


def test_only_the_owner_proposes_pauses_and_withdraws(world: World) -> None:
    contract, share = world.contract, world.shares.shares[0]
    for sender in (world.guardian, share.address):
        contract.refuses("not the owner", sender, "propose", 1, world.root, TOTAL)
        contract.refuses("not the owner", sender, "set_paused", True)
        contract.refuses("not the owner", sender, "withdraw", 1)
    world.open()
    contract.call(world.owner, "set_paused", True)
    contract.refuses("paused", share.address, "claim", 1, *world.claim_of(share))
    contract.call(world.owner, "set_paused", False)
    contract.call(share.address, "claim", 1, *world.claim_of(share))


def test_no_more_is_promised_than_the_contract_holds_nor_paid_than_an_epoch_promises(world: World) -> None:
    contract, (first, *_, last) = world.contract, world.shares.shares
    contract.refuses("not funded", world.owner, "propose", 1, world.root, TOTAL + 1)
    contract.refuses("nothing to pay", world.owner, "propose", 1, bytes(32), TOTAL)
    contract.refuses("not the next epoch", world.owner, "propose", 2, world.root, TOTAL)
    # a root whose shares exceed its total takes nothing from another epoch
    contract.call(world.owner, "propose", 1, world.root, first.amount)
    contract.call(world.owner, "propose", 2, world.root, TOTAL - first.amount)
    world.wait(DAY)
    contract.call(first.address, "claim", 1, *world.claim_of(first))
    contract.refuses("reverted|^$|.", last.address, "claim", 1, *world.claim_of(last))
    assert contract.read("reserved") == TOTAL - first.amount
