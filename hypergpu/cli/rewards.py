"""`hypergpu rewards`: divide an amount among the nodes of a run, and make the proofs for a contract."""

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.extras import require_extra
from hypergpu.common.files import read_bytes, shown
from hypergpu.common.latest import find_run
from hypergpu.common.options import AsJson
from hypergpu.console import print_json, say
from hypergpu.coordinator.files import replace_text
from hypergpu.coordinator.ledger_files import LEAVES
from hypergpu.ledger.files import read_key
from hypergpu.ledger.verifying import verify
from hypergpu.rewards.scores import Basis, read_epoch

_AMOUNT: Final = re.compile(r"[0-9]{1,78}", re.ASCII)
_ROUNDS: Final = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)

Addresses = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="CSV file with the lines node,address; an empty address takes no share of the amount."
    ),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Public key of the run's ledger, or a file with it; by default, the run's own."),
]


def rewards(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    *,
    addresses: Addresses,
    amount: Annotated[str, typer.Option(metavar="N", help="Amount to divide, in the smallest unit of the token.")],
    by: Annotated[Basis, typer.Option(help="Score that counts; see docs/contribution.md.")] = Basis.USEFULNESS,
    rounds: Annotated[str | None, typer.Option(metavar="A-B", help="Rounds of the epoch; by default, all.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file of the tree and the proofs.")] = None,
    key: Key = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare the result with such a file of somebody else.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Divide an amount among the nodes of a run by their scores, and print the root of the shares' Merkle tree.

    Nothing is sent anywhere: a contract is given the root by its owner's hand. The same records, addresses and amount
    give the same root on any machine. Records that a ledger did not sign are refused.

    Example: hypergpu rewards runs/first --addresses nodes.csv --amount 1000000 --out epoch.json
    """
    require_extra("Crypto")
    from hypergpu.rewards.addresses import read_addresses  # noqa: PLC0415  (Keccak is an extra)
    from hypergpu.rewards.distribution import distribute  # noqa: PLC0415

    if not _AMOUNT.fullmatch(amount):
        raise InvalidInput(f"--amount {amount[:80]!r}: give a whole number, without separators or decimals")
    directory = find_run(run_dir)
    _require_unchanged(directory, key)
    epoch = read_epoch(directory, by, *_rounds(rounds))
    found = distribute(int(amount), epoch.scores, read_addresses(addresses))
    told = {"by": str(by), "rounds": [epoch.first_round, epoch.last_round], "scores": epoch.scores, **found.to_dict()}
    text = strict_json.dumps(told, indent=1) + "\n"
    if check is not None and strict_json.parse(read_bytes(check)) != strict_json.parse(text):
        raise InvalidInput(f"{shown(check)} differs from what these records give, whose root is {found.root}")
    if out is not None:
        _write(out, text)
    if as_json:
        print_json(told)
        return
    for share in found.shares:
        say(f"{share.node}  {share.address}  {share.amount}")
    say(f"root {found.root} of {found.total} for rounds {epoch.first_round} to {epoch.last_round}")


def _require_unchanged(run_dir: Path, key: str | None) -> None:
    """Check the records against the run's ledger. A run without one, as in a simulation, is taken as it is.

    Raises:
        InvalidInput: They are not those that were signed, or there is no ledger for the key.
    """
    if key is None and not (run_dir / LEAVES).exists():
        return
    faults = verify(run_dir, None if key is None else read_key(key)).faults
    if faults:
        raise InvalidInput(
            f"the records are not those that the ledger signed, so that nobody is paid by them: {faults[0]}"
        )


def _rounds(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    found = _ROUNDS.fullmatch(text)
    if found is None:
        raise InvalidInput(f"--rounds {text[:40]!r}: give the first and the last, as in 1-100")
    return int(found[1]), int(found[2])


def _write(out: Path, text: str) -> None:
    try:
        replace_text(out, text)
    except OSError as error:
        raise InvalidInput(f"cannot write {shown(out)}: {error.strerror or error}; choose another --out") from error
