"""Run directories with a ledger, written without a run."""

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.receipt import Receipt
from hypergpu.common.signed_note import Signer, public_bytes
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.run_records import line_of

SIGNER = Signer("hypergpu/0123456789ab", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
Leaf = tuple[str, dict[str, Any]]


def write_run(directory: Path, rounds: Iterable[list[Leaf]], signer: Signer = SIGNER, **figures: Any) -> Ledger:
    """Write a ledger whose rounds have these leaves, each with its kind, before that of the round, whose
    lines have these figures besides."""
    ledger, leaves, checkpoints, rows = Ledger(signer), list[str](), list[str](), list[str]()
    for number, added in enumerate(rounds, 1):
        for kind, body in added:
            ledger.append(kind, number, body)
        rows.append(line_of({"round": number, "samples": 100 * number, **figures}))
        ledger.append("round", number, {"row": sha256(rows[-1].encode()).hexdigest()})
        leaves += ledger.seal()
        row = ledger.publish(ledger.size)
        assert row is not None
        checkpoints.append(line_of(row))
    files = {"ledger.jsonl": leaves, "ledger.checkpoints": checkpoints, "rounds.jsonl": rows}
    directory.mkdir(exist_ok=True)
    for name, lines in {**files, "ledger.vkey": [str(signer.verifier)]}.items():
        (directory / name).write_text("".join(f"{line}\n" for line in lines))
    return ledger


def decisions(rounds: int, each: int) -> list[list[Leaf]]:
    """Leaves of as many decisions in each round."""
    return [
        [
            (
                "decision",
                {"about": "batch_size", "subject": f"node_{n}", "figures": {"samples": 32 + n, "x": 1 / (n + 1)}},
            )
            for n in range(each)
        ]
        for _ in range(rounds)
    ]


NODE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ANNOUNCED: Leaf = ("node", {"node": "node_1", "key": b64encode(public_bytes(NODE_KEY)).decode()})


def receipt(
    round_number: int, key: Ed25519PrivateKey = NODE_KEY, seen: tuple[int, str] = (0, ""), **changed: Any
) -> Leaf:
    """Leaf of a receipt; `changed` is changed after it was signed."""
    signed = Receipt("run-1", round_number, "node_1", 1, "ab" * 32, 640, 0.25, 0.5, None, *seen)
    leaf = signed.leaf(public_bytes(key), signed.sign(key))
    return "receipt", {**leaf, "outcome": "accepted", "weight": 640, "staleness": 0, **changed}
