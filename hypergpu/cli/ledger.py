"""`hypergpu ledger`: check the record of a run, offline."""

from base64 import b64encode
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.latest import find_run
from hypergpu.common.options import AsJson
from hypergpu.console import print_json, say
from hypergpu.ledger.consistency import compare
from hypergpu.ledger.files import read_key
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
            say(f"{verdict.origin}: {verdict.leaves} leaves and {verdict.rounds} rounds, all signed")
    if verdict.faults:
        raise typer.Exit(1)


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
    found = compare(find_run(run_dir), old, new, read_key(key) if key is not None else None)
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
