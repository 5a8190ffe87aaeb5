"""Figures of the ledger: how long a verification takes, how large a proof is, and what a round pays for it.

    python benchmarks/ledger.py verify
    python benchmarks/ledger.py round

`verify` writes 100,000 leaves, 20 a round, once of decisions alone and once with 5 signed receipts in each round, and
verifies them. `round` runs the demo, and then its model with as many nodes on this machine and no network between them,
where it measures what the ledger costs: on the event loop and on threads of the coordinator, and in a node. The share
is that of the demo's median round. Goals: 2 s for 100,000 leaves, 1 KiB, and 1 % of a round.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypergpu.common.config import SystemConfig
from hypergpu.common.receipt import Receipt
from hypergpu.common.signed_note import Signer, public_bytes
from hypergpu.coordinator import training
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.run_records import line_of
from hypergpu.ledger.proofs import prove
from hypergpu.ledger.verifying import verify
from hypergpu.node.countersigning import Countersigning
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.tasks import load_task

LEAVES, EACH_ROUND, NODES = 100_000, 20, 5
KEY = Ed25519PrivateKey.generate()


def _receipt(number: int, node: int) -> dict[str, Any]:
    digest = sha256(b"%d %d" % (number, node)).hexdigest()
    receipt = Receipt("run-0123456789ab", number, f"node_{node}", 1, digest, 640, 1 / 3, 0.5, 0.3, 0, "")
    return {**receipt.leaf(public_bytes(KEY), receipt.sign(KEY)), "outcome": "accepted", "weight": 640, "staleness": 0}


def _write(directory: Path, receipts: int) -> None:
    """Write a ledger with this many receipts in each round, and decisions beside them."""
    ledger = Ledger(Signer("hypergpu/0123456789ab", Ed25519PrivateKey.generate()))
    for node in range(receipts):
        ledger.append("node", 1, {"node": f"node_{node}", "key": b64encode(public_bytes(KEY)).decode()})
    files: dict[str, list[str]] = {"ledger.jsonl": [], "ledger.checkpoints": [], "rounds.jsonl": []}
    for number in range(1, 1 + LEAVES // EACH_ROUND):
        for node in range(receipts):
            ledger.append("receipt", number, _receipt(number, node))
        for other in range(EACH_ROUND - 1 - receipts - (receipts if number == 1 else 0)):
            figures = {"samples": 32 + other, "seconds": number / 7, "gain": 1 / 3}
            ledger.append("decision", number, {"about": "batch_size", "subject": f"node_{other}", "figures": figures})
        row = line_of({"round": number, "samples": 3200})
        ledger.append("round", number, {"row": sha256(row.encode()).hexdigest()})
        files["ledger.jsonl"] += ledger.seal()
        published = ledger.publish(ledger.size)
        assert published is not None
        files["ledger.checkpoints"].append(line_of(published))
        files["rounds.jsonl"].append(row)
    for name, lines in {**files, "ledger.vkey": [str(ledger.verifier)]}.items():
        (directory / name).write_text("".join(f"{line}\n" for line in lines))


def measure_verification(receipts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _write(directory, receipts)
        times = []
        for _ in range(3):
            began = time.process_time()
            verdict = verify(directory)
            times.append(time.process_time() - began)
        assert not verdict.faults
        found = {"leaves": verdict.leaves, "checkpoints": verdict.checkpoints, "receipts": verdict.receipts}
        found["cpu_seconds"] = round(min(times), 2)  # type: ignore[assignment]
        if receipts:
            proof = prove(directory, "node_1", 17)
            leaf = next(line for line in proof.splitlines() if line.startswith("extra "))
            found |= {"proof_bytes": len(proof.encode()) - len(leaf) - 1, "with_receipt": len(proof.encode())}
        return found


# ---------------------------------------------------------------- a round


class Timed:
    """CPU time of functions, by name, on whatever thread they run."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def patch(self, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] += time.thread_time() - began

        return timed


def _demo_round_ms(rounds: int, directory: Path) -> tuple[float, float]:
    """Run the demo; return the median time of its rounds, and leaves per round."""
    command = [sys.executable, "-m", "hypergpu", "demo", "--quiet", f"--rounds={rounds}", f"--out={directory / 'demo'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (directory / "demo" / "rounds.jsonl").read_text().splitlines()]
    ends = [row["ended_seconds"] for row in rows]
    verdict = verify(directory / "demo")
    assert not verdict.faults, verdict.faults
    return 1e3 * statistics.median(np.diff(ends)), verdict.leaves / len(rows)


async def _train(rounds: int, directory: Path) -> tuple[Timed, int]:
    """Train the demo's model; return what the ledger took of the coordinator, and the bytes of an update."""
    timed = Timed()
    timed.patch(Ledger, "append", "seal", "saved", "state", "publish")
    timed.patch(training, "checked_receipt", "checkpoint_for")
    digest = Engine._digest

    def digested(self: Engine, values: Any) -> Any:
        began = time.thread_time()
        sha256(values.view(np.uint8).data).hexdigest()  # once more, where it can be timed
        timed.seconds["weights"] += time.thread_time() - began
        return digest(self, values)

    Engine._digest = digested  # type: ignore[method-assign]
    tree = {
        "training": {"task": "digits", "rounds": rounds, "min_nodes": NODES},
        "server": {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "linger_seconds": 0.0},
    }
    config = SystemConfig.model_validate(tree)
    coordinator = Coordinator(config, load_task("digits", 0), Options(directory / "run"))
    nodes: list[subprocess.Popen[bytes]] = []

    def announce(address: str, _: str) -> None:
        for number in range(NODES):
            command = [sys.executable, "-m", "hypergpu", "node", f"--coordinator={address}", "--insecure"]
            command += [f"--node-id=n{number}", f"--set=node.state_dir={directory}", "--log-level=error"]
            nodes.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))

    await coordinator.run(announce, asyncio.Event())
    for node in nodes:
        node.wait(60)
    return timed, int(coordinator.engine.model.manifest.total_bytes)


def _node_ms(nbytes: int) -> float:
    """Return what a round takes of a node: a receipt, and a checkpoint to check."""
    signing, signer = Countersigning(), Signer("hypergpu/0123456789ab", KEY)
    signing.begin(str(signer.verifier))
    ledger = Ledger(signer)
    header = pb.UpdateHeader(work=pb.WorkId(run_id="r", round=1, node_id="a", attempt=1), samples=4, loss=0.5)
    payload: Any = np.zeros(nbytes, np.uint8)
    shown = []
    for number in range(50):
        for _ in range(EACH_ROUND):
            ledger.append("decision", number, {"about": "batch_size", "figures": {"samples": number}})
        ledger.seal()
        seen = ledger.published.size
        ledger.publish(ledger.size)
        shown.append(pb.LedgerCheckpoint(note=ledger.published.note, proof=ledger.consistency(seen)))
    began = time.process_time()
    for each in shown:
        signing.see(each)
        signing.sign(header, payload)
    return 1e3 * (time.process_time() - began) / len(shown)


def measure_round(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        demo_ms, leaves = _demo_round_ms(rounds, directory)
        timed, nbytes = asyncio.run(_train(rounds, directory))
    of_coordinator = 1e3 * sum(timed.seconds.values()) / rounds
    of_node = _node_ms(nbytes)
    return {
        "demo_round_ms": round(demo_ms, 1),
        "demo_leaves_per_round": round(leaves, 1),
        "model_bytes": nbytes,
        "coordinator_ms": round(of_coordinator, 2),
        "node_ms": round(of_node, 2),
        "share": round((of_coordinator + of_node) / demo_ms, 5),
        "parts_ms": {part: round(1e3 * seconds / rounds, 3) for part, seconds in timed.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("verify", "round"))
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    if options.what == "verify":
        for receipts in (0, NODES):
            print(json.dumps(measure_verification(receipts)), flush=True)
    else:
        print(json.dumps(measure_round(options.rounds)))


if __name__ == "__main__":
    main()
