# pragma version 0.4.3
"""
@title Distributor
@license Apache-2.0
@notice Pays the shares of an epoch to whoever proves theirs, from tokens that the contract holds. It mints nothing.
@dev A leaf is keccak256(keccak256(abi.encode(index, account, amount))), as in OpenZeppelin's StandardMerkleTree.
     `hypergpu rewards` makes the roots and the proofs. A root can be withdrawn until its window has passed, and never
     after. The contract holds what the open roots promise: `reserved` never exceeds its balance.
"""
from ethereum.ercs import IERC20

event Proposed:
    epoch: indexed(uint256)
    root: bytes32
    total: uint256
    opens_at: uint256

event Challenged:
    epoch: indexed(uint256)
    by: indexed(address)

event Claimed:
    epoch: indexed(uint256)
    index: uint256
    account: indexed(address)
    amount: uint256

event PausedSet:
    paused: bool

struct Epoch:
    root: bytes32
    left: uint256
    opens_at: uint256

DEPTH: constant(uint256) = 32  # leaves below 2**32

OWNER: public(immutable(address))
GUARDIAN: public(immutable(address))
TOKEN: public(immutable(IERC20))
WINDOW: public(immutable(uint256))

paused: public(bool)
reserved: public(uint256)
last_epoch: public(uint256)
epochs: public(HashMap[uint256, Epoch])
claimed: public(HashMap[uint256, HashMap[uint256, bool]])

@deploy
def __init__(token: address, guardian: address, window: uint256):
    assert token.is_contract, "token is no contract"
    OWNER = msg.sender
    GUARDIAN = guardian
    TOKEN = IERC20(token)
    WINDOW = window

@external
def propose(epoch: uint256, root: bytes32, total: uint256):
    """
    @notice Propose the root of the next epoch; its shares can be claimed when the window has passed.
    """
    assert msg.sender == OWNER, "not the owner"
    assert epoch == self.last_epoch + 1, "not the next epoch"
    assert root != empty(bytes32) and total > 0, "nothing to pay"
    self.reserved += total
    assert self.reserved <= staticcall TOKEN.balanceOf(self), "not funded"
    self.last_epoch = epoch
    self.epochs[epoch] = Epoch(root=root, left=total, opens_at=block.timestamp + WINDOW)
    log Proposed(epoch=epoch, root=root, total=total, opens_at=block.timestamp + WINDOW)

@external
def challenge(epoch: uint256):
    """
    @notice Withdraw a root that is wrong, before its window has passed. Its number is not used again.
    """
    assert msg.sender in [OWNER, GUARDIAN], "neither owner nor guardian"
    found: Epoch = self.epochs[epoch]
    assert found.root != empty(bytes32) and block.timestamp < found.opens_at, "not open to challenge"
    self.reserved -= found.left
    self.epochs[epoch] = empty(Epoch)
    log Challenged(epoch=epoch, by=msg.sender)

@external
@nonreentrant
def claim(epoch: uint256, index: uint256, amount: uint256, proof: DynArray[bytes32, DEPTH]):
    """
    @notice Pay the caller's share of an epoch, once.
    """
    assert not self.paused, "paused"
    found: Epoch = self.epochs[epoch]
    assert found.root != empty(bytes32) and block.timestamp >= found.opens_at, "not open yet"
    assert not self.claimed[epoch][index], "claimed before"
    node: bytes32 = keccak256(keccak256(abi_encode(index, msg.sender, amount)))
    for each: bytes32 in proof:
        if convert(node, uint256) < convert(each, uint256):
            node = keccak256(concat(node, each))
        else:
            node = keccak256(concat(each, node))
    assert node == found.root, "wrong proof"
    self.claimed[epoch][index] = True
    self.epochs[epoch].left = found.left - amount
    self.reserved -= amount
    assert extcall TOKEN.transfer(msg.sender, amount, default_return_value=True), "transfer failed"
    log Claimed(epoch=epoch, index=index, account=msg.sender, amount=amount)

@external
def set_paused(paused: bool):
    """
    @notice Stop claims, or let them go on.
    """
    assert msg.sender == OWNER, "not the owner"
    self.paused = paused
    log PausedSet(paused=paused)

@external
@nonreentrant
def withdraw(amount: uint256):
    """
    @notice Return tokens to the owner that no root promises to anybody.
    """
    assert msg.sender == OWNER, "not the owner"
    assert self.reserved + amount <= staticcall TOKEN.balanceOf(self), "promised to others"
    assert extcall TOKEN.transfer(OWNER, amount, default_return_value=True), "transfer failed"
