"""`hypergpu ledger`: check the record of a run, offline."""

from base64 import b64encode
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.errors import ConfigError, CorruptData
from hypergpu.common.files import read_text, shown
from hypergpu.common.latest import find_run
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import AsJson
from hypergpu.console import print_json, say
from hypergpu.ledger.consistency import compare
from hypergpu.ledger.files import read_key
from hypergpu.ledger.proofs import MAX_PROOF_BYTES
from hypergpu.ledger.proofs import check as check_proof
from hypergpu.ledger.proofs import prove as prove_receipt
from hypergpu.ledger.verifying import verify as verify_ledger

_HELP = """Check the record of a run, offline: decisions, receipts and rounds in a signed Merkle log.

Example: hypergpu ledger verify runs/first
"""
app = typer.Typer(help=_HELP, no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Public key of the ledger, or a file with it; by default ledger.vkey of the run."),
]


def _refused(error: CorruptData, *, as_json: bool) -> typer.Exit:
    """Print why something proves nothing, and return what ends the command."""
    if as_json:
        print_json({"valid": False, "fault": str(error)})
    else:
        say(error)
    return typer.Exit(1)


@app.command()
def verify(run_dir: Run, *, key: Key = None, as_json: AsJson = False) -> None:
    """Check every leaf, every checkpoint and every round of a run; name the first that is not as it was signed.

    Give the key from another source than the run: whoever can write to the run can put another key beside it. Exits
    with 1 if anything is wrong.

    Example: hypergpu ledger verify runs/first --key ledger.vkey
    """
    verdict = verify_ledger(find_run(run_dir), read_key(key) if key is not None else None)
    if as_json:
        print_json(verdict.as_json())
    else:
        for fault in verdict.faults:
            say(fault)
        if not verdict.faults:
            unsigned = f", and {verdict.unsigned} of nodes without a key" if verdict.unsigned else ""
            say(
                f"{verdict.origin}: {verdict.leaves} leaves and {verdict.rounds} rounds, all signed; "
                f"{verdict.receipts} receipts signed by their nodes{unsigned}"
            )
    if verdict.faults:
        raise typer.Exit(1)


@app.command()
def prove(
    run_dir: Run,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of the node.")],
    round_number: Annotated[int, typer.Argument(metavar="ROUND", min=1, max=LARGEST_COUNT, help="Round of its work.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; by default it is printed.")] = None,
) -> None:
    """Prove that a node's receipt for a round is in the ledger.

    The proof is a text (c2sp.org/tlog-proof) with the receipt, its place, and the last checkpoint.

    Example: hypergpu ledger prove runs/first node_1 2 --out receipt.tlog-proof
    """
    proof = prove_receipt(find_run(run_dir), node, round_number)
    if out is None:
        say(proof, end="")
        return
    try:
        out.write_text(proof)
    except OSError as error:
        raise ConfigError(f"cannot write {shown(out)}: {error.strerror}") from error
    say(f"{out}: {len(proof.encode())} bytes")


@app.command()
def check(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="File with a proof.")],
    *,
    key: Annotated[str, typer.Option(metavar="KEY", help="Public key of the ledger, or a file with it.")],
    as_json: AsJson = False,
) -> None:
    """Check a proof; it needs the ledger's public key, and no run. Exits with 1 if it proves nothing.

    Example: hypergpu ledger check receipt.tlog-proof --key runs/first/ledger.vkey
    """
    text, verifier = read_text(proof, MAX_PROOF_BYTES), read_key(key)
    try:
        found = check_proof(text, verifier)
    except CorruptData as error:
        raise _refused(error, as_json=as_json) from error
    if as_json:
        where = {"origin": found.checkpoint.origin, "index": found.index, "size": found.checkpoint.size}
        print_json({"valid": True, **where, "leaf": found.leaf, "is_signed_by_node": found.is_signed_by_node})
        return
    leaf, place = found.leaf, f"{found.index + 1} of {found.checkpoint.size} in {found.checkpoint.origin}"
    signed = "signed" if found.is_signed_by_node else "not signed"
    say(
        f"leaf {place}: receipt of {leaf.get('node')} "
        f"for round {leaf.get('round')}, {signed} by the node: update {leaf.get('update')}, "
        f"{leaf.get('samples')} samples, {leaf.get('outcome')}"
    )


@app.command()
def consistency(
    run_dir: Run,
    old: Annotated[
        str, typer.Argument(metavar="A", help="Number of leaves, or a file with a checkpoint that somebody has kept.")
    ],
    new: Annotated[
        str | None, typer.Argument(metavar="B", help="Number of leaves of a later checkpoint; by default the last.")
    ] = None,
    *,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Prove that the ledger with B leaves begins with the ledger with A leaves: nothing before was changed.

    The proof is that of RFC 6962, and is checked. Exits with 1 if the ledger does not go on from a kept checkpoint.

    Example: hypergpu ledger consistency runs/first kept-checkpoint
    """
    verifier = read_key(key) if key is not None else None
    try:
        found = compare(find_run(run_dir), old, new, verifier)
    except CorruptData as error:
        raise _refused(error, as_json=as_json) from error
    if as_json:
        print_json(found.as_json())
    elif found.fault:
        say(found.fault)
    else:
        say(
            f"{found.origin}: the ledger with {found.size} leaves begins with the {found.old} leaves of root "
            f"{found.old_root}"
        )
        for each in found.proof:
            say(b64encode(each).decode())
    if found.fault:
        raise typer.Exit(1)
